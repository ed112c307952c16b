"""What a table is made of once it is filled in: cells in rows in a grid."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ellarepro.results import accuracy_error

NOT_RUN = "–"
RANGES = ("count", "bounds")
"""Kinds of which the smallest and the largest number are shown, and no mean."""


@dataclass(frozen=True)
class Cell:
    """One number of a table, ours over seeds and the published.

    `measure` says of what, a key of `spec.MEASURES`. `runs` holds one list a run: one value, or a value a layer where
    `kind` is "layers" (then mean, min and max over layers are shown). `kind` "count" is a number that does not vary
    with the seed, "bounds" a lower and an upper one. `published` is empty where the paper prints nothing, [value], or
    [mean, min, max]. `better` is 1 where more is better, -1 where less is, else 0. `run_ids` are those of `runs`;
    `left_out` those of runs that only guess, where another seed learned. Of an accuracy, `test_size` says of how many
    samples it is, `outcomes` which of them each run had right (`results.packed`; empty unless all say so) and `data`
    on which data (a fingerprint).
    """

    row: str
    column: str
    measure: str
    runs: Sequence[Sequence[float]]
    published: Sequence[float]
    digits: int
    kind: str = "seeds"
    better: int = 0
    run_ids: Sequence[str] = ()
    left_out: Sequence[str] = ()
    test_size: int | None = None
    outcomes: Sequence[str] = field(default=(), repr=False)
    data: str = ""

    @property
    def by_seed(self) -> list[float]:
        """A number a run: its mean over layers where it has several."""
        return [statistics.fmean(run) for run in self.runs]

    @property
    def mean(self) -> float | None:
        """Mean over runs (of the mean over layers); None where nothing was run."""
        return statistics.fmean(self.by_seed) if self.runs else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over runs; None for fewer than two, and for counts."""
        if len(self.runs) < 2 or self.kind in RANGES:
            return None
        return statistics.stdev(self.by_seed)

    @property
    def sampling_error(self) -> float | None:
        """Standard error of an accuracy for want of test samples, points; None of other measures.

        It is that of one network at the mean accuracy. Runs of several seeds share a test set: the error of their mean
        is a little smaller.
        """
        if self.mean is None or not self.test_size:
            return None
        return 100 * accuracy_error(self.mean / 100, self.test_size)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest value over runs and layers; None where nothing was run."""
        values = [value for run in self.runs for value in run]
        return (min(values), max(values)) if values else None

    @property
    def difference(self) -> float | None:
        """Our mean less the published one; None where there is only one of them."""
        return self.mean - self.published[0] if self.mean is not None and self.published else None

    def text(self) -> str:
        """Return `ours [published]`, either part "–" or absent where there is none."""
        published = f" [{self.published_text()}]" if self.published else ""
        return self.ours_text() + published

    def ours_text(self) -> str:
        """Return our number with its spread over seeds or layers and its sampling error, "–" where nothing was run."""
        if self.mean is None or self.bounds is None:
            return NOT_RUN
        low, high = (f"{bound:.{self.digits}f}" for bound in self.bounds)
        if self.kind in RANGES:
            return low if low == high else f"{low}–{high}"
        text = f"{self.mean:.{self.digits}f}"
        if self.std is not None:
            text += f" ± {self.std:.{self.digits}f}"
        if self.sampling_error is not None:
            text += f" ({self.sampling_error:.2f})"
        if self.kind == "layers":
            text += f" ({low}–{high})"
        if self.left_out:
            return f"{text} n={len(self.runs)} of {len(self.runs) + len(self.left_out)}"
        return text if len(self.runs) == 1 else f"{text} n={len(self.runs)}"

    def published_text(self) -> str:
        """Return the published number as the paper prints it, "" where it prints none."""
        if not self.published:
            return ""
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
    """One edition of a table. `notes` are lines for below it; `edition` tells it from the others of its table.

    `setting` is what an edition of the same table with other code, or by another recipe, has in common with it.
    """

    table: str
    title: str
    headers: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    budget: str
    source: str
    edition: str
    setting: str = ""

    @property
    def coverage(self) -> tuple[int, int]:
        """How many of the published numbers have ours beside them, and how many there are."""
        published = [cell for row in self.rows for cell in row.cells if cell.published]
        return sum(cell.mean is not None for cell in published), len(published)
