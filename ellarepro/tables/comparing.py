"""How sure the lead of one cell over another is: over seeds, and for want of test samples."""

import math
import statistics

import numpy as np

from ellarepro.results import unpacked
from ellarepro.tables.cells import NOT_RUN, Cell

SEEDS = 3
"""How many of each cell a test over seeds takes at least."""
LEVEL = 0.05


def told_apart(one: Cell, other: Cell) -> bool | None:
    """Whether Welch's t-test tells the means over seeds apart at `LEVEL`; None where either has fewer than `SEEDS`."""
    from scipy.stats import ttest_ind_from_stats

    if min(len(one.by_seed), len(other.by_seed)) < SEEDS:
        return None
    moments = [
        number
        for cell in (one, other)
        for number in (statistics.fmean(cell.by_seed), statistics.stdev(cell.by_seed), len(cell.by_seed))
    ]
    return bool(ttest_ind_from_stats(*moments, equal_var=False).pvalue < LEVEL)


def lead_error(one: Cell, other: Cell) -> tuple[float, str] | None:
    """Sampling error of the difference of two accuracies, points, and how it is known; None of other measures.

    It is "paired" where every run of both says which samples of one test set it had right: the standard error of the
    mean difference a sample. Otherwise it is "unpaired", as of two independent test sets: for networks that mostly fail
    on the same samples, too large.
    """
    if one.sampling_error is None or other.sampling_error is None:
        return None
    if not (one.outcomes and other.outcomes) or (one.data, one.test_size) != (other.data, other.test_size):
        return math.hypot(one.sampling_error, other.sampling_error), "unpaired"
    gaps = _outcomes(one) - _outcomes(other)
    return 100 * float(gaps.std()) / math.sqrt(len(gaps)), "paired"


def error_text(one: Cell, other: Cell) -> str:
    """`lead_error` in words, "–" where there is none."""
    known = lead_error(one, other)
    return f"{known[0]:.2f} {known[1]}" if known else NOT_RUN


def _outcomes(cell: Cell) -> np.ndarray:
    """The share of the cell's runs that had each test sample right."""
    return np.mean([unpacked(text, cell.test_size or 0) for text in cell.outcomes], axis=0)
