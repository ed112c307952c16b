"""Runs side by side, a column a run: what each layer uses, how its precisions got there, the evidence (Figure 3)."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from ellarepro.errors import UserError
from ellarepro.figures.canvas import ARBITRARY, say
from ellarepro.figures.shares import draw_shares
from ellarepro.inspection import has_curvature, shown_curves, untrained_shares
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import (
    EVIDENCE_COLOUR,
    UNTRAINED_COLOUR,
    UNTRAINED_LABEL,
    layer_title,
    path_colour,
    path_marker,
    path_order,
    path_shade,
    path_title,
)

MOST_RUNS = 12
"""What still can be told apart side by side."""
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
    figure = Figure(figsize=(1.5 + 3.3 * len(results), 9.5), layout=ConstrainedLayoutEngine(hspace=0.06))
    grid = figure.subplots(3, len(results), squeeze=False)
    for column, result, title in zip(grid.T, results, _titles(results), strict=True):
        draw_shares(column[0], result.relative_effective_parameters, untrained_shares(result)[0])
        column[0].set_title(title, fontsize="medium")
        column[0].set_ylabel("relative effective number\nof parameters (%)")
        _draw_precisions(column[1], result)
        _draw_evidence(column[2], result)
    for row in grid:
        _share_scales(row)
    _legend(figure, results)
    return figure


def _draw_precisions(axes: Axes, result: RunResult) -> None:
    shown = shown_curves(result)
    curves = shown.curves
    axes.set(xlabel=f"epoch\n({ARBITRARY})" if shown.is_scaled else "epoch", ylabel=shown.quantity)
    axes.set_title(shown.title.replace(" over ", " over\n").replace("ω", "ω\n(the second ω of a path dashed)"))
    if not curves:
        say(axes, NOT_LEARNED)
        return
    axes.set_yscale("log")
    layers = list(dict.fromkeys(layer for layer, *_ in curves))
    for (layer, path, part), values in curves.items():
        parts = [other for *place, other in curves if place == [layer, path]]
        axes.plot(
            result.series("fit_epoch"),
            [math.nan if value is None else value for value in values],
            color=path_shade(path, layers.index(layer) / max(len(layers) - 1, 1)),
            linestyle=("-", "--")[parts.index(part) % 2],
            marker=path_marker(path),
            markersize=3,
            label=f"{path_title(path)} {layer}",
        )
    axes.grid(alpha=0.3)


def _draw_evidence(axes: Axes, result: RunResult) -> None:
    axes.set(title="evidence", xlabel="epoch", ylabel="−log marginal likelihood\n(nats per datum)")
    if not result.history.get("fit_epoch"):
        say(axes, NOT_LEARNED)
        return
    evidence = result.series("neg_log_marglik_per_datum")
    axes.plot(result.series("fit_epoch"), evidence, "o-", markersize=3, color=EVIDENCE_COLOUR)
    axes.grid(alpha=0.3)


def _share_scales(row: Sequence[Axes]) -> None:
    """Give the panels of `row` that show the same quantity one scale, named at the first of neighbours."""
    shown = [axes for axes in row if axes.yaxis.get_visible()]
    quantities = [axes.get_ylabel() for axes in shown]
    limits = [axes.get_ylim() for axes in shown]
    for index, axes in enumerate(shown):
        same = [own for own, quantity in zip(limits, quantities, strict=True) if quantity == quantities[index]]
        axes.set_ylim(min(low for low, _ in same), max(high for _, high in same))
        if index and quantities[index - 1] == quantities[index]:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)


def _legend(figure: Figure, results: Sequence[RunResult]) -> None:
    used = {path for result in results for own in result.relative_effective_parameters.values() for path in own}
    handles = [
        Line2D([], [], color=path_colour(path), marker=path_marker(path), linewidth=5, label=path_title(path))
        for path in sorted(used, key=path_order)
    ]
    if any(untrained_shares(result)[0] for result in results):
        handles.append(Line2D([], [], color=UNTRAINED_COLOUR, linewidth=2, label=UNTRAINED_LABEL))
    title = "over training: pale to full colour from the first layer to the last"
    columns = min(len(handles), 3 * len(results))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=title)
    legend.get_title().set_multialignment("center")


def _titles(results: Sequence[RunResult]) -> list[str]:
    """What was run and how well it did; with the end of the run's id where titles would be the same."""
    titles = [
        f"{r.dataset}\n{layer_title(r.layer)}, prior {r.prior}\nbudget {r.budget}, seed {r.seed}\ntest {r.measured()}"
        for r in results
    ]
    return [
        f"{title}\n{r.run_id.rpartition('-')[2]}" if titles.count(title) > 1 else title
        for title, r in zip(titles, results, strict=True)
    ]
