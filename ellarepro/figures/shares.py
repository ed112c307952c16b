"""Bars of shares."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ellarepro.figures.canvas import NO_CURVATURE, path_order, path_style, say
from ellarepro.inspection import PathRow


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
