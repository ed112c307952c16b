"""Bars of shares."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from ellarepro.figures.canvas import NO_CURVATURE, say
from ellarepro.labels import path_colour, path_order, path_title


def draw_shares(axes: Axes, shares: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a bar for each of `shares` {bar: {path: percent}}, stacked of its paths; no legend.

    Where there is one path alone its bars would say nothing, and a word stands in their place.
    """
    axes.set(title="relative effective number of parameters", xlabel="layer", ylabel="share of the layer (%)")
    axes.set_ylim(0, 100)
    paths = sorted({path for own in shares.values() for path in own}, key=path_order)
    if len(paths) < 2:
        say(axes, f"{path_title(*paths)} alone: nothing to share" if paths else NO_CURVATURE)
        return
    bottoms = dict.fromkeys(shares, 0.0)
    for path in paths:
        own = {bar: values[path] for bar, values in shares.items() if path in values}
        below = [bottoms[bar] for bar in own]
        axes.bar(list(own), list(own.values()), bottom=below, label=path_title(path), color=path_colour(path))
        bottoms |= {bar: bottoms[bar] + share for bar, share in own.items()}
    axes.set_xlim(-0.5, len(shares) - 0.5)
