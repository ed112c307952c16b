"""A run as a picture: which path each layer took, with which precisions, and how training went.

python -m ellarepro.plots RUN_DIR_OR_RESULT_JSON [--out FILE.png]
"""

import argparse
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.errors import UserError
from ellarepro.results import RESULT_FILE, RunResult, read_result, write_atomically

# Name and colour (Okabe and Ito's palette, told apart by colour-blind readers) of each path.
PATHS = {
    "f_fc": ("F-FC", "#E69F00"),
    "fc": ("FC", "#D55E00"),
    "s_fc": ("S-FC", "#CC79A7"),
    "conv": ("CONV", "#0072B2"),
    "s_conv": ("S-CONV", "#56B4E9"),
    "gconv": ("GCONV", "#009E73"),
}
HEAD_COLOUR = "#000000"
MARKERS = {"weight": "o", "theta1": "^", "theta2": "v", "u": "o", "u1": "^", "u2": "v", "omega": "D"}

TENSOR = re.compile(r"blocks\.(?P<block>\d+)\.paths\.(?P<path>\w+)\.(?P<rest>.+)")


def plot_effective_parameters(result: RunResult, path: Path) -> None:
    """Draw `result` as a PNG at `path`: effective parameters and precisions by layer and path, loss and evidence.

    Raises:
        OSError: `path` cannot be written.
    """
    stream = io.BytesIO()
    draw(result).savefig(stream, format="png", dpi=150)
    write_atomically(path, stream.getvalue())


def draw(result: RunResult) -> Figure:
    """Return the figure of `result`; a panel without data says so."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    shares, precisions, curves = figure.subplots(1, 3)
    figure.suptitle(f"{result.dataset} · {result.layer} · {result.objective} · budget {result.budget}")
    _draw_shares(shares, result)
    _draw_precisions(precisions, result)
    _draw_curves(curves, result)
    return figure


def _draw_shares(axes: Axes, result: RunResult) -> None:
    layers = sorted(result.relative_effective_parameters, key=_natural)
    axes.set(title="relative effective parameters", xlabel="layer", ylabel="share of the layer (%)", ylim=(0, 100))
    if not layers:
        _say(axes, "no curvature was fitted")
        return
    bottoms = [0.0] * len(layers)
    used = {path for shares in result.relative_effective_parameters.values() for path in shares}
    for path in sorted(used, key=_order):
        heights = [result.relative_effective_parameters[layer].get(path) or 0.0 for layer in layers]
        name, colour = _style(path)
        axes.bar(layers, heights, bottom=bottoms, label=name, color=colour, width=0.8)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    _legend_below(axes)


def _draw_precisions(axes: Axes, result: RunResult) -> None:
    axes.set(title="prior precision of the weights", xlabel="layer", ylabel="precision", yscale="log")
    points = [
        (*place, value) for tensor, value in result.prior_precision.items() if value and (place := _place(tensor))
    ]
    layers = sorted({layer for layer, *_ in points}, key=_natural)
    series = sorted({(path, part) for _, path, part, _ in points}, key=lambda s: (_order(s[0]), s[1]))
    if not points:
        _say(axes, "no precisions")
        return
    paths = list(dict.fromkeys(path for path, _ in series if path != "head"))
    for path, part in series:
        name, colour = ("head", HEAD_COLOUR) if path == "head" else _style(path)
        # Paths stand side by side within a layer: where they agree, their points would hide each other.
        shift = 0.0 if path == "head" else 0.22 * (paths.index(path) - (len(paths) - 1) / 2)
        own = [(layers.index(layer) + shift, value) for layer, *key, value in points if tuple(key) == (path, part)]
        label = name if part == "weight" else f"{name} {part}"
        axes.plot(*zip(*own, strict=True), MARKERS.get(part, "s"), color=colour, label=label, markersize=6, alpha=0.9)
    for index in range(0, len(layers), 2):
        axes.axvspan(index - 0.5, index + 0.5, color="#f0f0f0", zorder=0)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.grid(axis="y", alpha=0.3)
    _legend_below(axes)


def _draw_curves(axes: Axes, result: RunResult) -> None:
    axes.set(title="training", xlabel="epoch", ylabel="nats per datum")
    history = result.history
    if not history.get("epoch"):
        _say(axes, "no history")
        return
    axes.plot(history["epoch"], history["loss"], color="#0072B2", label="train loss")
    if history.get("fit_epoch"):
        evidence = history["neg_log_marglik_per_datum"]
        axes.plot(history["fit_epoch"], evidence, "o-", markersize=3, color="#D55E00", label="−log marginal likelihood")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    _legend_below(axes)


def _place(tensor: str) -> tuple[str, str, str] | None:
    """Return (layer, path, part) of a weight tensor's name, None for a bias and what is in no layer."""
    if tensor.endswith("bias"):
        return None
    if tensor.startswith("head."):
        return "head", "head", "weight"
    if found := TENSOR.fullmatch(tensor):
        return str(int(found["block"]) + 1), found["path"], found["rest"].removesuffix(".weight")
    return None


def _natural(layer: str) -> tuple[int, str]:
    return (int(layer), "") if layer.isdecimal() else (sys.maxsize, layer)


def _order(path: str) -> int:
    return list(PATHS).index(path) if path in PATHS else len(PATHS)


def _style(path: str) -> tuple[str, str]:
    return PATHS.get(path, (path, "#999999"))


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)


def _say(axes: Axes, message: str) -> None:
    axes.set_xticks([])
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes, color="#666666")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the run that the command line names; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.plots", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder or its result.json")
    parser.add_argument("--out", type=Path, help="default: effective_parameters.png beside the result")
    options = parser.parse_args(arguments)
    source = options.run / RESULT_FILE if options.run.is_dir() else options.run
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
