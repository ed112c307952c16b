"""What all figures share: words in place of data, legends, and the way to a file."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.resume.files import write_atomically

NO_CURVATURE = "no curvature was fitted"
ARBITRARY = "the scale of each ReLU layer is arbitrary"
"""What must stand where precisions of several layers are drawn."""


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


def say(axes: Axes, message: str) -> None:
    """Write `message` where the data would be."""
    axes.set_xticks([])
    axes.yaxis.set_visible(False)
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes, color="#666666")


def legend_beside(axes: Axes) -> None:
    """Put the legend of `axes` to its right, if it has one."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
