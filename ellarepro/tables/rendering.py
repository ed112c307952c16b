"""The three forms of a table: Markdown, LaTeX, CSV."""

import csv
import io
from collections.abc import Collection, Sequence

from ellarepro.tables.cells import Cell, Grid
from ellarepro.tables.markdown import markdown_table

CSV_COLUMNS = (
    *("table", "row", "column", "ours_mean", "ours_std", "sampling_error", "seeds", "left_out"),
    *("published", "budget", "source", "edition"),
)
"""`seeds` are those of the mean, `left_out` those that only guess; `sampling_error` is of accuracies, in points."""

_TEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def markdown(grids: Sequence[Grid]) -> str:
    """Return the grids as Markdown, columns padded so that it also reads well on a terminal."""
    return "\n\n".join(_markdown(grid) for grid in grids) + "\n"


def latex(grids: Sequence[Grid]) -> str:
    """Return the grids as LaTeX tables (needs the package booktabs)."""
    return "\n\n".join(_latex(grid) for grid in grids) + "\n"


def comma_separated(grids: Sequence[Grid]) -> str:
    """Return the grids as CSV, one line a number (`CSV_COLUMNS`); bounds are columns `….min`, `….max`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for grid in grids:
        for cell in (cell for row in grid.rows for cell in row.cells):
            for suffix, mean, std, published in _numbers(cell):
                name = [grid.table, cell.row, cell.column + suffix]
                numbers = ["" if number is None else f"{number:.6g}" for number in (mean, std, cell.sampling_error)]
                shown = "" if published is None else f"{published:g}"
                counts = [len(cell.runs), len(cell.left_out)]
                writer.writerow([*name, *numbers, *counts, shown, grid.budget, grid.source, grid.edition])
    return stream.getvalue()


RENDERERS = {"md": markdown, "tex": latex, "csv": comma_separated}


def _lines(grid: Grid) -> list[list[str]]:
    return [[*row.labels, *(cell.text() for cell in row.cells)] for row in grid.rows]


def plain(grid: Grid, columns: Collection[str] | None = None) -> str:
    """Return `grid` as a Markdown table alone, without its title and notes; of `columns` (all if not given)."""
    labels = len(grid.rows[0].labels)
    names = [cell.column for cell in grid.rows[0].cells]
    shown = [i for i in range(labels + len(names)) if i < labels or columns is None or names[i - labels] in columns]
    return markdown_table([[line[i] for i in shown] for line in [list(grid.headers), *_lines(grid)]], labels)


def _markdown(grid: Grid) -> str:
    notes = "\n".join(f"- {note}" for note in grid.notes)
    return f"## {grid.title}\n\n{plain(grid)}\n\n{notes}"


def _latex(grid: Grid) -> str:
    labels = len(grid.rows[0].labels)
    alignment = "l" * labels + "r" * (len(grid.headers) - labels)
    head, *body = [" & ".join(map(_escape, line)) + r" \\" for line in [grid.headers, *_lines(grid)]]
    caption = _escape(". ".join([grid.title, *grid.notes]))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}.}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _escape(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _numbers(cell: Cell) -> list[tuple[str, float | None, float | None, float | None]]:
    published = [*cell.published, None, None, None]
    numbers = [("", cell.mean, cell.std, published[0])]
    if cell.kind in ("layers", "bounds"):
        low, high = cell.bounds or (None, None)
        numbers += [(".min", low, None, published[1]), (".max", high, None, published[2])]
    return numbers
