"""Orderings of the paper: which of two numbers that a table prints is the better one, and whether ours agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ellarepro.tables.cells import Cell, Grid
from ellarepro.tables.comparing import LEVEL, SEEDS, error_text, lead_error, told_apart
from ellarepro.tables.markdown import markdown_table
from ellarepro.tables.spec import SPECS

ERRORS = 2
"""Sampling errors of a difference that two accuracies of too few seeds for a test must be apart."""
YES, NO, TIE = "yes", "no", "tie"
RULE = (
    "An ordering holds where ours are in the same order and are no tie. "
    f"Of {SEEDS} seeds each, a tie is a pair that Welch's t-test over seeds does not tell apart at {LEVEL:.0%}. "
    f"Of fewer, it is a pair of accuracies less than {ERRORS} sampling errors of their difference apart; "
    "other measures are compared as they are. "
    f"An ordering is clear where each has {SEEDS} seeds, it is no tie and accuracies are {ERRORS} sampling errors "
    "apart, too. Each pair is tested by itself."
)

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
    def lead(self) -> float | None:
        """By how much ours are in the same order, below zero where they are in the other; None where one is missing."""
        if self.first.mean is None or self.second.mean is None:
            return None
        return (self.first.mean - self.second.mean) * (self.first.better or 1)

    @property
    def tested(self) -> bool:
        """Whether both have the seeds that a test takes."""
        return min(len(self.first.runs), len(self.second.runs)) >= SEEDS

    @property
    def verdict(self) -> str | None:
        """`YES` where ours are in the same order, `NO` where in the other, else `TIE`; None where one is missing."""
        if self.lead is None:
            return None
        apart = told_apart(self.first, self.second)
        if apart is None:
            apart = self._beyond_sampling()
        return TIE if not apart else YES if self.lead > 0 else NO

    @property
    def clear(self) -> bool:
        """Whether `verdict` is of seeds enough, and of test samples."""
        return self.tested and self.verdict in (YES, NO) and self._beyond_sampling()

    def _beyond_sampling(self) -> bool:
        error, _ = lead_error(self.first, self.second) or (0.0, "")
        return abs(self.lead or 0.0) > ERRORS * error


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
    return f"orderings of the paper that hold here: {'; '.join(parts)}" if parts else ""


def page(grids: Sequence[Grid]) -> str:
    """Every ordering of the paper of which `grids` have both cells, as Markdown: those that do not hold come first."""
    return "\n\n".join([*(f"## {grid.title}\n\n{_listing(grid)}" for grid in grids), RULE]) + "\n"


def _both_run(grid: Grid) -> list[Ordering]:
    return [ordering for ordering in orderings(grid) if ordering.lead is not None]


def _count(found: Sequence[Ordering]) -> str:
    """How many hold and how many are ties; of those with the seeds, how many hold clearly, and clearly do not."""
    verdicts, clear = [o.verdict for o in found], [o.verdict for o in found if o.clear]
    ties = f", ties {verdicts.count(TIE)}" if TIE in verdicts else ""
    count, tested = f"{verdicts.count(YES)} of {len(found)}{ties}", sum(o.tested for o in found)
    if not tested:
        return count
    return f"{count} (of {tested} with {SEEDS} seeds {clear.count(YES)} clearly, {clear.count(NO)} clearly not)"


def _listing(grid: Grid) -> str:
    found = sorted(_both_run(grid), key=lambda ordering: (NO, TIE, YES).index(str(ordering.verdict)))
    head = ["what differs", "ahead in the paper", "of", "ours", "and", "sampling error of the lead", "holds"]
    lines = [[o.kind, _name(o.first), _name(o.second), o.first.text(), o.second.text(), *_said(o)] for o in found]
    return f"{summary(grid)}\n\n{markdown_table([head, *lines], labels=3)}" if found else "nothing to compare yet"


def _name(cell: Cell) -> str:
    return f"{cell.row} {cell.column}"


def _said(ordering: Ordering) -> list[str]:
    """The sampling error of the lead, and the verdict."""
    verdict = f"{ordering.verdict}, clearly" if ordering.clear else str(ordering.verdict)
    return [error_text(ordering.first, ordering.second), verdict]
