"""Orderings of the paper: which of two numbers that a table prints is the better one, and whether ours agree."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ellarepro.tables.cells import Cell, Grid
from ellarepro.tables.markdown import markdown_table
from ellarepro.tables.spec import SPECS

SIGMAS = 2
"""Standard deviations over seeds of a difference, above which it is called clear."""
KINDS = ("MAP or Laplace", "layer types", "shares of paths")


@dataclass(frozen=True)
class Ordering:
    """Two cells in the order of the paper: `first` has the better number, of shares the larger.

    `kind`, one of `KINDS`, is what they differ in.
    """

    kind: str
    first: Cell
    second: Cell

    @property
    def holds(self) -> bool | None:
        """Whether ours are in the same order; None where either has not been run."""
        return None if (lead := self._lead()) is None else lead > 0

    @property
    def clear(self) -> bool | None:
        """Whether ours are further apart than their seeds; None where either has fewer than two."""
        lead, spreads = self._lead(), [cell.std for cell in (self.first, self.second) if cell.std is not None]
        return abs(lead) > SIGMAS * math.hypot(*spreads) if lead is not None and len(spreads) == 2 else None

    def _lead(self) -> float | None:
        if self.first.mean is None or self.second.mean is None:
            return None
        return (self.first.mean - self.second.mean) * (self.first.better or 1)


def orderings(grid: Grid) -> list[Ordering]:
    """The pairs of numbers in `grid` that differ in the paper, and in one thing: objective, layer type or path."""
    rows = [row.cells for row in grid.rows]
    columns = [] if SPECS[grid.table].spans_datasets else list(zip(*rows, strict=True))
    pairs = [pair for line in [*rows, *columns] for pair in combinations(line, 2)]
    return [found for pair in pairs for found in _ordering(*pair)]


def _ordering(*cells: Cell) -> Iterator[Ordering]:
    kind = _kind(*cells)
    published = [cell.published[0] * (cell.better or 1) for cell in cells if cell.published]
    if kind and len(set(published)) == 2:
        second, first = (cell for _, cell in sorted(zip(published, cells, strict=True), key=lambda pair: pair[0]))
        yield Ordering(kind, first, second)


def _kind(one: Cell, other: Cell) -> str | None:
    """What two cells differ in; None where that is more than one thing, or nothing that can be better or more."""
    if one.kind == other.kind == "layers":
        return "shares of paths"
    if one.measure != other.measure or not one.better:
        return None
    (objective, rest), (other_objective, other_rest) = (cell.column.split("/") for cell in (one, other))
    if one.row == other.row and rest == other_rest:
        return "MAP or Laplace"
    return "layer types" if objective == other_objective else None


def summary(grid: Grid) -> str:
    """One line: how many of the paper's orderings hold in `grid`, by kind; "" where nothing can be compared."""
    found = _both_run(grid)
    kinds = [[o for o in found if o.kind == kind] for kind in KINDS]
    parts = [f"{own[0].kind} {_count(own)}" for own in kinds if own]
    return f"orderings of the paper that hold here: {', '.join(parts)}" if parts else ""


def page(grids: Sequence[Grid]) -> str:
    """Every ordering of the paper of which `grids` have both cells, as Markdown: those that do not hold come first."""
    return "\n\n".join(f"## {grid.title}\n\n{_listing(grid)}" for grid in grids) + "\n"


def _both_run(grid: Grid) -> list[Ordering]:
    return [ordering for ordering in orderings(grid) if ordering.holds is not None]


def _count(found: Sequence[Ordering]) -> str:
    """How many hold; of those with seeds, how many clearly, and how many clearly do not."""
    count = f"{[ordering.holds for ordering in found].count(True)} of {len(found)}"
    seeded = [ordering for ordering in found if ordering.clear is not None]
    clear = [ordering.holds for ordering in seeded if ordering.clear]
    if not seeded:
        return count
    return f"{count} (of {len(seeded)} with seeds {clear.count(True)} clearly, {clear.count(False)} clearly not)"


def _listing(grid: Grid) -> str:
    found = sorted(_both_run(grid), key=lambda ordering: bool(ordering.holds))
    head = ["what differs", "ahead in the paper", "of", "ours", "and", "holds"]
    lines = [[o.kind, _name(o.first), _name(o.second), o.first.text(), o.second.text(), _verdict(o)] for o in found]
    return f"{summary(grid)}\n\n{markdown_table([head, *lines], labels=3)}" if found else "nothing to compare yet"


def _name(cell: Cell) -> str:
    return f"{cell.row} {cell.column}"


def _verdict(ordering: Ordering) -> str:
    return ("yes" if ordering.holds else "no") + (", clearly" if ordering.clear else "")
