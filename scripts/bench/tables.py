"""What benchmarks give: tables of measured numbers, as text, as JSON, and beside those of an earlier run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

HIGHER, LOWER = "higher", "lower"
NOISE = 3.0
"""A number is worse than before if it is so by this many times the noise of both, and by a twentieth."""
_LEAST = 0.05


@dataclass(frozen=True)
class Measure:
    """A measured number.

    Attributes:
        unit: `s`, `MB`, `%`, or none.
        noise: in the same unit: half of the range between the quartiles of its rounds.
        worse: `higher` or `lower` if a change in this direction is one for the worse, else nothing.
    """

    value: float
    unit: str = ""
    noise: float = 0.0
    worse: str = ""

    def __str__(self) -> str:
        return f"{self.value:.3g}" if abs(self.value) < 1000 else f"{self.value:.0f}"

    def is_worse_than(self, before: "Measure") -> bool:
        """Whether the change from `before` is one for the worse and beyond noise."""
        change = (self.value - before.value) * (1 if self.worse == HIGHER else -1)
        return bool(self.worse) and change > max(NOISE * (self.noise + before.noise), _LEAST * abs(before.value))


@dataclass(frozen=True)
class Table:
    """Measured numbers by row and column; not each row has every column."""

    title: str
    rows: dict[str, dict[str, Measure]]

    def lines(self) -> Iterator[str]:
        """The table for the terminal: units with the columns, a dash for what is missing."""
        rows = self.rows.values()
        heads = {name: f"{name}, {cell.unit}" if cell.unit else name for row in rows for name, cell in row.items()}
        widths = {name: max(len(head), *(len(str(row.get(name, ""))) for row in rows)) for name, head in heads.items()}
        first = max(map(len, self.rows)) + 2
        yield self.title
        yield "".ljust(first) + "  ".join(heads[name].rjust(width) for name, width in widths.items())
        for label, row in self.rows.items():
            yield label.ljust(first) + "  ".join(str(row.get(name, "–")).rjust(width) for name, width in widths.items())


def as_json(tables: list[Table]) -> list[dict[str, Any]]:
    """Tables as plain values."""
    return [asdict(table) for table in tables]


def of_json(tables: list[dict[str, Any]]) -> list[Table]:
    """Tables from what `as_json` gave."""
    return [
        Table(
            table["title"],
            {label: {name: Measure(**cell) for name, cell in row.items()} for label, row in table["rows"].items()},
        )
        for table in tables
    ]


def became_worse(before: list[Table], now: list[Table], same_machine: bool) -> Iterator[str]:
    """A line for each number that is worse than `before` beyond noise; of another machine only ratios are looked at."""
    known = {
        (table.title, label, name): cell
        for table in before
        for label, row in table.rows.items()
        for name, cell in row.items()
    }
    for table in now:
        for label, row in table.rows.items():
            for name, cell in row.items():
                old = known.get((table.title, label, name))
                if old is None or (cell.unit == "s" and not same_machine) or not cell.is_worse_than(old):
                    continue
                noise = 100 * max(old.noise, cell.noise) / (abs(old.value) or 1.0)
                what = f"{name}, {cell.unit}" if cell.unit else name
                yield f"{table.title}: {label}: {what}: {old} -> {cell} (noise {noise:.0f}%)"
