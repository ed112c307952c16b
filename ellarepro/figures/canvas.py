"""What all figures share: how a path looks, words in place of data, legends, and the way to a file."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.files import write_atomically
from ellarepro.inspection import HEAD

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
NO_CURVATURE = "no curvature was fitted"


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG at `path`, atomically.

    Raises:
        OSError: `path` cannot be written.
    """
    write_atomically(path, as_png(figure))


def as_png(figure: Figure) -> bytes:
    """The content of a PNG file with `figure`."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


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


def legend_beside(axes: Axes) -> None:
    """Put the legend of `axes` to its right, if it has one."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
