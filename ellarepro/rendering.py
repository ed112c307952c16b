"""What a rendered table consists of, and its three forms: Markdown, LaTeX, CSV."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOT_RUN = "–"

CSV_COLUMNS = ("table", "row", "column", "ours_mean", "ours_std", "seeds", "published", "budget", "source", "edition")

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


@dataclass(frozen=True)
class Cell:
    """One number of a table, ours over seeds and the published.

    `runs` holds one list a run: one value, or a value a layer where `kind` is "layers" (then mean, min and max over
    layers are shown). `kind` "count" is a number that does not vary with the seed. `published` is empty where the
    paper prints nothing, [value], or [mean, min, max].
    """

    row: str
    column: str
    runs: Sequence[Sequence[float]]
    published: Sequence[float]
    digits: int
    kind: str = "seeds"

    @property
    def mean(self) -> float | None:
        """Mean over runs (of the mean over layers); None where nothing was run."""
        return statistics.fmean(map(statistics.fmean, self.runs)) if self.runs else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over runs; None for fewer than two, and for counts."""
        if len(self.runs) < 2 or self.kind == "count":
            return None
        return statistics.stdev(map(statistics.fmean, self.runs))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest value over runs and layers; None where nothing was run."""
        values = [value for run in self.runs for value in run]
        return (min(values), max(values)) if values else None

    def text(self) -> str:
        """Return `ours [published]`, either part "–" or absent where there is none."""
        published = f" [{self._published()}]" if self.published else ""
        return self._ours() + published

    def _ours(self) -> str:
        if self.mean is None:
            return NOT_RUN
        low, high = (f"{bound:.{self.digits}f}" for bound in self.bounds)
        if self.kind == "count":
            return low if low == high else f"{low}–{high}"
        text = f"{self.mean:.{self.digits}f}"
        if self.std is not None:
            text += f" ± {self.std:.{self.digits}f}"
        if self.kind == "layers":
            text += f" ({low}–{high})"
        return text if len(self.runs) == 1 else f"{text} n={len(self.runs)}"

    def _published(self) -> str:
        if self.kind == "count":
            return f"{self.published[0]:.1f}"
        mean, *bounds = (f"{number:.{self.digits}f}" for number in self.published)
        return f"{mean} ({bounds[0]}–{bounds[1]})" if bounds else mean


@dataclass(frozen=True)
class Row:
    """One line of a table: what it is called and its cells in column order."""

    labels: Sequence[str]
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Grid:
    """One edition of a table. `notes` are lines for below it; `edition` tells it from the others of its table."""

    table: str
    title: str
    headers: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    budget: str
    source: str
    edition: str


def markdown(grids: Sequence[Grid]) -> str:
    """Return the grids as Markdown, columns padded so that it also reads well on a terminal."""
    return "\n\n".join(_markdown(grid) for grid in grids) + "\n"


def latex(grids: Sequence[Grid]) -> str:
    """Return the grids as LaTeX tables (needs the package booktabs)."""
    return "\n\n".join(_latex(grid) for grid in grids) + "\n"


def comma_separated(grids: Sequence[Grid]) -> str:
    """Return the grids as CSV, one line a number (`CSV_COLUMNS`); bounds over layers are columns `….min`, `….max`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for grid in grids:
        for cell in (cell for row in grid.rows for cell in row.cells):
            for suffix, mean, std, published in _numbers(cell):
                name = [grid.table, cell.row, cell.column + suffix]
                numbers = ["" if number is None else f"{number:.6g}" for number in (mean, std)]
                shown = "" if published is None else f"{published:g}"
                writer.writerow([*name, *numbers, len(cell.runs), shown, grid.budget, grid.source, grid.edition])
    return stream.getvalue()


RENDERERS = {"md": markdown, "tex": latex, "csv": comma_separated}


def _lines(grid: Grid) -> list[list[str]]:
    return [[*row.labels, *(cell.text() for cell in row.cells)] for row in grid.rows]


def _markdown(grid: Grid) -> str:
    table = markdown_table([list(grid.headers), *_lines(grid)], labels=len(grid.rows[0].labels))
    notes = "\n".join(f"- {note}" for note in grid.notes)
    return f"## {grid.title}\n\n{table}\n\n{notes}"


def markdown_table(lines: Sequence[Sequence[str]], labels: int) -> str:
    """Return `lines`, the first of which holds the headers, as a Markdown table, padded so that it reads well as it is.

    The first `labels` columns are aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if i < labels else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [[f"{text:{'<' if i < labels else '>'}{widths[i]}}" for i, text in enumerate(line)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


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
    published = [*cell.published, None][:1] if cell.kind != "layers" else [*cell.published, None, None, None]
    numbers = [("", cell.mean, cell.std, published[0])]
    if cell.kind == "layers":
        low, high = cell.bounds or (None, None)
        numbers += [(".min", low, None, published[1]), (".max", high, None, published[2])]
    return numbers
