"""A run as a picture: which path each layer took, with which precisions, and how training went."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.figures.canvas import NO_CURVATURE, legend_beside, path_order, path_style, say
from ellarepro.figures.shares import draw_shares
from ellarepro.inspection import HEAD, PathRow, by_path, heading
from ellarepro.results import RunResult

MARKERS = {
    **{"weight": "o", "theta1": "^", "theta2": "v", "u": "o", "u1": "^", "u2": "v"},
    **{"omega": "D", "omega1": "<", "omega2": ">", "head.0": "o", "head.2": "s"},
}
FLOOR = 1e-3
"""Effective numbers of parameters below this are drawn here: nothing is left of the path, on a scale without a zero."""


def draw_run(result: RunResult) -> Figure:
    """Return the figure of `result`; a panel without data says so."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)
    figure.suptitle(heading(result))
    (precisions, effective), (shares, curves) = figure.subplots(2, 2)
    rows = by_path(result)
    _draw_precisions(precisions, rows)
    _draw_effective(effective, rows)
    draw_shares(shares, rows)
    legend_beside(shares)
    _draw_curves(curves, result)
    return figure


def _draw_precisions(axes: Axes, rows: Sequence[PathRow]) -> None:
    axes.set(title="prior precision, without biases", xlabel="layer", ylabel="precision")
    points = [(row.layer, row.path, part, value) for row in rows for part, value in row.precisions.items() if value]
    _draw_points(axes, points, "no precisions")


def _draw_effective(axes: Axes, rows: Sequence[PathRow]) -> None:
    axes.set(title="effective number of parameters of the weights", xlabel="layer", ylabel="number")
    numbered = [row for row in rows if row.effective is not None]
    if any(row.effective < FLOOR for row in numbered):
        axes.set_ylabel(f"number ({FLOOR:g}: this or less)")
    points = [(row.layer, row.path, "weight", max(row.effective, FLOOR)) for row in numbered]
    _draw_points(axes, points, NO_CURVATURE)


def _draw_points(axes: Axes, points: Sequence[tuple[str, str, str, float]], without: str) -> None:
    """Draw (layer, path, part, value) on a log scale: a colour a path, a marker a part; say `without` if none."""
    if not points:
        say(axes, without)
        return
    axes.set_yscale("log")
    layers = list(dict.fromkeys(layer for layer, *_ in points))
    series = sorted(dict.fromkeys((path, part) for _, path, part, _ in points), key=lambda s: (path_order(s[0]), s[1]))
    paths = list(dict.fromkeys(path for path, _ in series if path != HEAD))
    for path, part in series:
        name, colour = path_style(path)
        # Paths stand side by side within a layer: where they agree, their points would hide each other.
        shift = 0.0 if path == HEAD else 0.22 * (paths.index(path) - (len(paths) - 1) / 2)
        own = [(layers.index(layer) + shift, value) for layer, *key, value in points if tuple(key) == (path, part)]
        label = name if part == "weight" else part if path == HEAD else f"{name} {part}"
        axes.plot(*zip(*own, strict=True), MARKERS.get(part, "s"), color=colour, label=label, markersize=6, alpha=0.9)
    for index in range(0, len(layers), 2):
        axes.axvspan(index - 0.5, index + 0.5, color="#f0f0f0", zorder=0)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.grid(axis="y", alpha=0.3)
    legend_beside(axes)


def _draw_curves(axes: Axes, result: RunResult) -> None:
    axes.set(title="training", xlabel="epoch", ylabel="nats per datum")
    history = result.history
    if not history.get("epoch"):
        say(axes, "no history")
        return
    axes.plot(history["epoch"], history["loss"], color="#999999", label="train loss")
    if history.get("fit_epoch"):
        evidence = history["neg_log_marglik_per_datum"]
        label = "−log marginal\nlikelihood"
        axes.plot(history["fit_epoch"], evidence, "o-", markersize=3, color="#000000", label=label)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    legend_beside(axes)
