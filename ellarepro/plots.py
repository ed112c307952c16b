"""A run as a picture: which path each layer took, with which precisions, and how training went.

python -m ellarepro.plots RUN_DIR_OR_RESULT_JSON [--out FILE.png]
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.errors import UserError
from ellarepro.inspection import HEAD, PathRow, by_path, heading, result_file
from ellarepro.results import RunResult, read_result, write_atomically

# Name and colour (Okabe and Ito's palette, told apart by colour-blind readers) of each path.
PATHS = {
    "f_fc": ("F-FC", "#E69F00"),
    "fc": ("FC", "#D55E00"),
    "s_fc": ("S-FC", "#CC79A7"),
    "conv": ("CONV", "#0072B2"),
    "s_conv": ("S-CONV", "#56B4E9"),
    "gconv": ("GCONV", "#009E73"),
    HEAD: ("head", "#000000"),
}
MARKERS = {
    **{"weight": "o", "theta1": "^", "theta2": "v", "u": "o", "u1": "^", "u2": "v"},
    **{"omega": "D", "omega1": "<", "omega2": ">", "head.0": "o", "head.2": "s"},
}
NO_CURVATURE = "no curvature was fitted"
FLOOR = 1e-3
"""Effective numbers of parameters below this are drawn here: nothing is left of the path, on a scale without a zero."""


def plot_effective_parameters(result: RunResult, path: Path) -> None:
    """Draw `result` as a PNG at `path`: precisions and effective parameters by layer and path, loss and evidence.

    Raises:
        OSError: `path` cannot be written.
    """
    save(draw(result), path)


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG at `path`, atomically.

    Raises:
        OSError: `path` cannot be written.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    write_atomically(path, stream.getvalue())


def draw(result: RunResult) -> Figure:
    """Return the figure of `result`; a panel without data says so."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)
    figure.suptitle(heading(result))
    (precisions, effective), (shares, curves) = figure.subplots(2, 2)
    rows = by_path(result)
    _draw_precisions(precisions, rows)
    _draw_effective(effective, rows)
    draw_shares(shares, rows)
    _legend_beside(shares)
    _draw_curves(curves, result)
    return figure


def draw_shares(axes: Axes, rows: Sequence[PathRow]) -> None:
    """Draw a bar a layer, stacked of its paths' shares in the effective number of weights; no legend."""
    axes.set(title="relative effective number of parameters", xlabel="layer", ylabel="share of the layer (%)")
    axes.set_ylim(0, 100)
    shared = [row for row in rows if row.share is not None]
    if not shared:
        say(axes, NO_CURVATURE)
        return
    layers = list(dict.fromkeys(row.layer for row in shared))
    bottoms = dict.fromkeys(layers, 0.0)
    for path in sorted({row.path for row in shared}, key=path_order):
        own = {row.layer: row.share for row in shared if row.path == path}
        name, colour = path_style(path)
        axes.bar(own.keys(), own.values(), bottom=[bottoms[layer] for layer in own], label=name, color=colour)
        bottoms |= {layer: bottoms[layer] + share for layer, share in own.items()}
    axes.set_xlim(-0.5, len(layers) - 0.5)


def path_order(path: str) -> int:
    """Return where `path` stands among others, in legends and stacks."""
    return list(PATHS).index(path) if path in PATHS else len(PATHS)


def path_style(path: str) -> tuple[str, str]:
    """Return the name and the colour of `path`; grey for one that `PATHS` does not know."""
    return PATHS.get(path, (path, "#999999"))


def say(axes: Axes, message: str) -> None:
    """Write `message` where the data would be."""
    axes.set_xticks([])
    # A shared axis shows the others' scale.
    axes.yaxis.set_visible(len(axes.get_shared_y_axes().get_siblings(axes)) > 1)
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes, color="#666666")


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
    _legend_beside(axes)


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
    _legend_beside(axes)


def _legend_beside(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the run that the command line names; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.plots", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder or its result.json")
    parser.add_argument("--out", type=Path, help="default: effective_parameters.png beside the result")
    options = parser.parse_args(arguments)
    source = result_file(options.run)
    target = options.out or source.with_name("effective_parameters.png")
    try:
        plot_effective_parameters(read_result(source), target)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
