"""What `make gpu` has measured on cards, as the report shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ellarepro.errors import UserError


@dataclass(frozen=True)
class Card:
    """What the page shows of one card.

    Attributes:
        notes: what is slower than it should be, and how long whole tables take.
        tables: title and lines, the first of which holds the headers.
    """

    name: str
    notes: Sequence[str]
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]]


def read_cards(folders: Sequence[Path]) -> list[Card]:
    """The cards below `folders`, those in `gpu/*.json`.

    Raises:
        UserError: a file is damaged.
    """
    return [_card(file) for folder in folders for file in sorted(folder.glob("gpu/*.json"))]


def _card(file: Path) -> Card:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        tables = [table for part in kept["parts"].values() for table in part["tables"]]
        return Card(kept["card"], [*kept["slow"], *kept["hours"]], [(t["title"], _lines(t["rows"])) for t in tables])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not what make gpu writes ({type(error).__name__}); delete it") from error


def _lines(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [["", *names], *([label, *(_text(row.get(name)) for name in names)] for label, row in rows.items())]


def _text(cell: Mapping[str, Any] | None) -> str:
    return "–" if cell is None else f"{cell['value']:.4g} {cell['unit']}".strip()
