"""What a change of code or recipe does to the cells of a table, beside the seeds' spread."""

from collections.abc import Iterator, Sequence

from ellarepro.tables.cells import NOT_RUN, RANGES, Cell, Grid
from ellarepro.tables.comparing import LEVEL, SEEDS, error_text, told_apart
from ellarepro.tables.markdown import markdown_table

RULE = (
    f"A cell is better or worse where both have {SEEDS} seeds and Welch's t-test over seeds tells them apart at "
    f"{LEVEL:.0%}; otherwise the change is within the seeds. Of fewer seeds nothing is tested. "
    "The sampling error is that of the change of an accuracy, in points."
)
HEAD = ["row", "column", "before", "now", "change", "sampling error", "verdict"]


def page(grids: Sequence[Grid], before: Sequence[Grid]) -> str:
    """Every cell that both have, as Markdown: each of `grids` beside the most complete of `before` in its setting."""
    parts = []
    for grid in grids:
        old = next((other for other in before if other.setting == grid.setting), None)
        parts.append(f"## {grid.title}\n\n{_listing(grid, old) if old else _nothing(before)}")
    return "\n\n".join([*parts, RULE]) + "\n"


def _nothing(before: Sequence[Grid]) -> str:
    settings = "; ".join(dict.fromkeys(grid.setting for grid in before))
    return f"before: no run in this setting, only {settings}"


def _listing(grid: Grid, old: Grid) -> str:
    pairs = list(_pairs(grid, old))
    lines = [[now.row, now.column, was.ours_text(), now.ours_text(), *_said(was, now)] for was, now in pairs]
    beside = f"before: {old.title}"
    if not lines:
        return f"{beside}\n\nno cell has been run in both"
    verdicts = [line[-1] for line in lines]
    counted = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in sorted(set(verdicts)))
    return f"{beside}\n\nof {len(lines)} cells that both have: {counted}\n\n{markdown_table([HEAD, *lines], labels=2)}"


def _pairs(grid: Grid, old: Grid) -> Iterator[tuple[Cell, Cell]]:
    earlier = {(cell.row, cell.column): cell for row in old.rows for cell in row.cells}
    for cell in (cell for row in grid.rows for cell in row.cells):
        was = earlier.get((cell.row, cell.column))
        if was and was.mean is not None and cell.mean is not None and cell.kind not in RANGES:
            yield was, cell


def _said(was: Cell, now: Cell) -> list[str]:
    """The change, its sampling error and what can be said of it."""
    change = (now.mean or 0.0) - (was.mean or 0.0)
    text = f"{change:+.{now.digits}f}"
    if list(now.runs) == list(was.runs):
        return [text, NOT_RUN, "the same"]
    apart = told_apart(was, now)
    way = {1: "better", -1: "worse", 0: "other"}[(change > 0) * now.better - (change < 0) * now.better]
    verdict = "not tested" if apart is None else way if apart else "within the seeds"
    return [text, error_text(was, now), verdict]
