"""Bars of shares."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke

from ellarepro.figures.canvas import NO_CURVATURE, say
from ellarepro.symmetry.labels import UNTRAINED_COLOUR, UNTRAINED_LABEL, path_colour, path_order, path_title
from ellarepro.symmetry.shares import boundaries

Shares = Mapping[str, Mapping[str, float]]
"""{bar: {path: percent}}"""


def draw_shares(axes: Axes, shares: Shares, untrained: Shares | None = None) -> None:
    """Draw a bar for each of `shares`, stacked of its paths; no legend.

    Where there is one path alone its bars would say nothing, and a word stands in their place.

    Args:
        untrained: shares before any training; a mark on each bar says where its paths then met.
    """
    axes.set(title="relative effective number of parameters", xlabel="layer", ylabel="share of the layer (%)")
    axes.set_ylim(0, 100)
    paths = sorted({path for own in shares.values() for path in own}, key=path_order)
    if len(paths) < 2:
        say(axes, f"{path_title(*paths)} alone: nothing to share" if paths else NO_CURVATURE)
        return
    bars, bottoms = list(shares), dict.fromkeys(shares, 0.0)
    for path in paths:
        own = {bar: values[path] for bar, values in shares.items() if path in values}
        below = [bottoms[bar] for bar in own]
        axes.bar(list(own), list(own.values()), bottom=below, label=path_title(path), color=path_colour(path))
        bottoms |= {bar: bottoms[bar] + share for bar, share in own.items()}
    if marks := boundaries(untrained or {}, paths):
        places, heights = zip(*((bars.index(bar), height) for bar, height in marks), strict=True)
        left, right = ([place + side for place in places] for side in (-0.46, 0.46))
        lines = axes.hlines(heights, left, right, UNTRAINED_COLOUR, linewidth=2, label=UNTRAINED_LABEL)
        lines.set_path_effects([Stroke(linewidth=5, foreground="white"), Normal()])
    axes.set_xlim(-0.5, len(shares) - 0.5)
