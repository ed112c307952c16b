"""Runs side by side, a column a run: what each layer uses, how its precisions got there, the evidence (Figure 3)."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ellarepro.errors import UserError
from ellarepro.figures.canvas import path_order, path_style, say
from ellarepro.figures.shares import draw_shares
from ellarepro.inspection import by_path, has_curvature, precision_curves
from ellarepro.results import RunResult

MOST_RUNS = 12
"""What still can be told apart side by side."""
PALEST = 0.7
"""How much white the colour of the first layer holds."""
NOT_LEARNED = "nothing was learned before the end"


def draw_side_by_side(results: Sequence[RunResult]) -> Figure:
    """Return the figure of `results`, three panels a column: shares by layer, precisions and evidence over training.

    Raises:
        UserError: no run, more than `MOST_RUNS`, or a run without curvature (MAP).
    """
    if not 1 <= len(results) <= MOST_RUNS:
        raise UserError(f"runs: got {len(results)}; a figure takes 1 to {MOST_RUNS}")
    if without := [result.run_id for result in results if not has_curvature(result)]:
        raise UserError(
            f"runs: got {', '.join(without)}, which fitted no curvature (objective=map) and so learned no precisions; "
            "give runs with objective=laplace"
        )
    figure = Figure(figsize=(1.5 + 3.3 * len(results), 9.5), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06)
    grid = figure.subplots(3, len(results), squeeze=False)
    for row in grid[:2]:
        for axes in row[1:]:
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)
    for (shares, precisions, evidence), result, title in zip(grid.T, results, _titles(results), strict=True):
        draw_shares(shares, by_path(result))
        shares.set_title(title, fontsize="medium")
        _draw_precisions(precisions, result)
        _draw_evidence(evidence, result)
    for axes in grid[:, 1:].flat:
        axes.set_ylabel("")
    _legend(figure, results)
    return figure


def _draw_precisions(axes: Axes, result: RunResult) -> None:
    subject = "ω" if result.prior == "omega" else "the weights"
    axes.set(title=f"learned precision of {subject}", xlabel="epoch", ylabel="prior precision", yscale="log")
    curves = precision_curves(result)
    if not curves:
        say(axes, NOT_LEARNED)
        return
    layers = list(dict.fromkeys(layer for layer, _ in curves))
    for (layer, path), values in curves.items():
        colour = _pale(path_style(path)[1], layers.index(layer) / max(len(layers) - 1, 1))
        finite = [math.nan if value is None else value for value in values]
        axes.plot(result.history["fit_epoch"], finite, ".-", markersize=3, color=colour, label=f"{path} {layer}")
    axes.grid(alpha=0.3)


def _draw_evidence(axes: Axes, result: RunResult) -> None:
    axes.set(title="evidence", xlabel="epoch", ylabel="−log marginal likelihood\n(nats per datum)")
    if not result.history.get("fit_epoch"):
        say(axes, NOT_LEARNED)
        return
    evidence = result.history["neg_log_marglik_per_datum"]
    axes.plot(result.history["fit_epoch"], evidence, "o-", markersize=3, color="#000000")
    axes.grid(alpha=0.3)


def _legend(figure: Figure, results: Sequence[RunResult]) -> None:
    used = {row.path for result in results for row in by_path(result) if row.share is not None}
    styles = [path_style(path) for path in sorted(used, key=path_order)]
    handles = [Patch(color=colour, label=name) for name, colour in styles]
    title = "over training: pale to full colour\nfrom the first layer to the last"
    columns = min(len(handles), 3)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=title)
    legend.get_title().set_multialignment("center")


def _titles(results: Sequence[RunResult]) -> list[str]:
    """What was run and how well it did; with the end of the run's id where titles would be the same."""
    titles = [
        f"{r.dataset}\n{r.layer}, prior {r.prior}\nbudget {r.budget}, seed {r.seed}\n"
        f"test accuracy {100 * r.test_accuracy:.1f} %"
        for r in results
    ]
    return [
        f"{title}\n{r.run_id.rpartition('-')[2]}" if titles.count(title) > 1 else title
        for title, r in zip(titles, results, strict=True)
    ]


def _pale(colour: str, depth: float) -> tuple[float, ...]:
    """`colour` mixed with white: `PALEST` at depth 0, none at depth 1."""
    white = PALEST * (1 - depth)
    return tuple(white + (1 - white) * channel for channel in to_rgb(colour))
