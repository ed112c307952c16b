"""Learned conserved quantities: how many, how near to the known algebra, and what their matrices look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from ellarepro.figures.canvas import say

SHOWN = 2
"""The number of oscillators of which matrices are drawn."""


def draw_generators(records: Mapping[int, Sequence[Any]]) -> Figure:
    """Singular values and angles of U(1) to U(5), all seeds, above the matrices A of two oscillators, seed 0.

    Args:
        records: those of n oscillators, by n.
    """
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(2, 1)))
    for column, axes in enumerate(np.asarray(upper.subplots(2, 5, sharey="row")).T):
        n, (values, angles) = column + 1, axes
        values.set_title(f"U({n})")
        own = records[n]
        if not own:
            say(values, "not run")
            say(angles, "not run")
        for record in own:
            spectrum = np.array(record["singular_values"])
            values.semilogy(np.arange(1, len(spectrum) + 1), spectrum, ".-", linewidth=0.5, markersize=3)
            angles.plot(np.arange(1, n * n + 1), record["angles"], ".-", linewidth=0.5, markersize=3)
        values.set_ylim(1e-5, 10)
        values.axvline(n * n + 0.5, color="#999999", linestyle="--", linewidth=0.8)
        angles.axhline(1, color="#999999", linestyle="--", linewidth=0.8)
        angles.set_xlim(0.5, n * n + 0.5)
        angles.set_xlabel("index")
        for axis in (values, angles):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if n == 1:
            values.set_ylabel("singular value")
            angles.set_ylabel("principal angle, degrees")
    _draw_matrices(lower, records[SHOWN])
    return figure


def _draw_matrices(figure: SubFigure, records: Sequence[Any]) -> None:
    shown = [record for record in records if "leading" in record]
    if not shown:
        say(figure.subplots(), "no matrices of this size")
        return
    leading, d = np.array(shown[0]["leading"]), 2 * SHOWN
    figure.suptitle(f"A of the leading {len(leading)} quantities, {SHOWN} oscillators (q above and left of p)")
    for index, axes in enumerate(figure.subplots(1, len(leading))):
        matrix = leading[index, : d * d].reshape(d, d)
        axes.imshow(matrix, cmap="RdBu_r", vmin=-0.75, vmax=0.75)
        for row, column in np.ndindex(d, d):
            axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"C{index + 1}", fontsize=9)
