"""A run as a picture: which path each layer took, with which precisions, and how training went."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ellarepro.figures.canvas import ARBITRARY, NO_CURVATURE, legend_beside, say
from ellarepro.figures.shares import draw_shares
from ellarepro.inspection import PathRow, heading, path_rows, untrained_shares
from ellarepro.layers.tensors import HEAD
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import EVIDENCE_COLOUR, TRAINING_COLOUR, path_colour, path_marker, path_order, path_title

FLOOR = 1e-3
"""Effective numbers of parameters below this are drawn here: nothing is left of the path, on a scale without a zero."""
LENGTHSCALE_MARKERS = "<>"
SMALL = 1e-2
"""Nats a datum, of changes that can have either sign."""


def draw_run(result: RunResult) -> Figure:
    """Return the figure of `result`; a panel without data says so. A third row is there where the use is known."""
    lines = 3 if result.path_use else 2
    figure = Figure(figsize=(14, 3.75 * lines), layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.06))
    figure.suptitle(heading(result))
    (precisions, effective), (shares, curves), *use = figure.subplots(lines, 2)
    rows = path_rows(result)
    _draw_precisions(precisions, rows)
    _draw_effective(effective, rows)
    draw_shares(shares, result.relative_effective_parameters, untrained_shares(result)[0])
    legend_beside(shares)
    _draw_curves(curves, result)
    for changes, variances in use:
        _draw_use(changes, variances, rows)
    return figure


def _draw_precisions(axes: Axes, rows: Sequence[PathRow]) -> None:
    caption = f"layer\n(compare within a layer: {ARBITRARY})"
    axes.set(title="prior precision, of factors their product", xlabel=caption, ylabel="precision")
    parts = [(row, {"": row.precision, **row.lengthscales}) for row in rows]
    points = [(row.layer, row.path, part, value) for row, own in parts for part, value in own.items() if value]
    _draw_points(axes, points, "no precisions")


def _draw_effective(axes: Axes, rows: Sequence[PathRow]) -> None:
    axes.set(title="effective number of weights", xlabel="layer", ylabel="number")
    known = [(row.layer, row.path, row.effective) for row in rows if row.effective is not None]
    if any(number < FLOOR for *_, number in known):
        axes.set_ylabel(f"number ({FLOOR:g}: this or less)")
    _draw_points(axes, [(layer, path, "", max(number, FLOOR)) for layer, path, number in known], NO_CURVATURE)


def _draw_use(changes: Axes, variances: Axes, rows: Sequence[PathRow]) -> None:
    changes.set(title="change of test NLL without the path", xlabel="layer", ylabel="nats a datum")
    by_part = [(row, {"": row.nll_change, "(constant)": row.nll_change_constant}) for row in rows]
    changed = [
        (row.layer, row.path, part, own) for row, parts in by_part for part, own in parts.items() if own is not None
    ]
    _draw_points(changes, changed, "not recorded", signed=True)
    variances.set(title="prior variance of the output, over the equivariant path's", xlabel="layer", ylabel="ratio")
    ratios = [(row.layer, row.path, "", row.variance_ratio) for row in rows if row.variance_ratio]
    _draw_points(variances, ratios, "no equivariant path to compare with")


def _draw_points(axes: Axes, points: Sequence[tuple[str, str, str, float]], without: str, signed: bool = False) -> None:
    """Draw (layer, path, part, value) on a log scale; say `without` if there are none.

    Where values are `signed` the scale is linear up to `SMALL` on either side of zero. A colour and a marker a path,
    whose solid points are the part ""; other parts are hollow.
    """
    if not points:
        say(axes, without)
        return
    points = [(layer, HEAD if layer == HEAD else path, part, value) for layer, path, part, value in points]
    if signed:
        axes.set_yscale("symlog", linthresh=SMALL)
    else:
        axes.set_yscale("log")
    layers = list(dict.fromkeys(layer for layer, *_ in points))
    paths = sorted({path for _, path, *_ in points} - {HEAD}, key=path_order)
    for path in [*paths, HEAD]:
        # Paths stand side by side within a layer: where they agree, their points would hide each other.
        shift = 0.22 * (paths.index(path) - (len(paths) - 1) / 2) if path != HEAD else 0.0
        for index, part in enumerate(dict.fromkeys(part for _, own, part, _ in points if own == path)):
            own = [(layers.index(layer) + shift, value) for layer, *key, value in points if key == [path, part]]
            axes.plot(
                *zip(*own, strict=True),
                linestyle="none",
                marker=LENGTHSCALE_MARKERS[(index - 1) % 2] if part else path_marker(path),
                fillstyle="none" if part else "full",
                markersize=6,
                alpha=0.9,
                color=path_colour(path),
                label=f"{path_title(path)} {part}".strip(),
            )
    for index in range(0, len(layers), 2):
        axes.axvspan(index - 0.5, index + 0.5, color="#f0f0f0", zorder=0)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.grid(axis="y", alpha=0.3)
    legend_beside(axes)


def _draw_curves(axes: Axes, result: RunResult) -> None:
    axes.set(title="training", xlabel="epoch", ylabel="nats per datum")
    if not result.series("epoch"):
        say(axes, "no history")
        return
    axes.plot(result.series("epoch"), result.series("loss"), color=TRAINING_COLOUR, label="train loss")
    if fits := result.series("fit_epoch"):
        evidence = result.series("neg_log_marglik_per_datum")
        label = "−log marginal\nlikelihood"
        axes.plot(fits, evidence, "o-", markersize=3, color=EVIDENCE_COLOUR, label=label)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    legend_beside(axes)
