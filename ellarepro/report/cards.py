"""What `make gpu` has measured on cards, and what `make noether` has found, as the report shows them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ellarepro.errors import UserError
from ellarepro.noether.study import read_records, tables


@dataclass(frozen=True)
class Card:
    """What the page shows of one card, or of one budget of Noether's razor.

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


def read_noether(folders: Sequence[Path]) -> list[Card]:
    """The budgets of Noether's razor below `folders`, those in `noether/*`."""
    found = [budget for folder in folders for budget in sorted(folder.glob("noether/*"))]
    return [Card(f"budget {budget.name}", [], tables(read_records(budget))) for budget in found]


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
