"""What paths and layers are called, and how they look in figures: as the layer classes say."""

from ellarepro.layers.spatial import SpatialLayer
from ellarepro.network import LAYERS, PATHS

TRAINING_COLOUR, EVIDENCE_COLOUR, UNTRAINED_COLOUR = "#999999", "#000000", "#000000"
UNTRAINED_LABEL = "before training"
PALEST = 0.7
"""How much white the colour of the first layer holds."""


def path_title(path: str) -> str:
    """Return what tables and figures call `path`: "F-FC" for "f_fc"; an unknown one keeps its name."""
    return _layer(path).title or path


def layer_title(layer: str) -> str:
    """Return what tables and figures call `layer=`: "F-FC+CONV" for "f_fc_conv"; an unknown one keeps its name."""
    return "+".join(map(path_title, LAYERS.get(layer, (layer,))))


def path_colour(path: str) -> str:
    """Return the colour of `path` in figures; the head's linear layers are black."""
    return _layer(path).colour if path in PATHS else "#000000"


def path_shade(path: str, depth: float) -> str:
    """Return the colour of `path` mixed with white: `PALEST` at depth 0, the first layer; none at 1, the last."""
    colour, white = path_colour(path), PALEST * (1 - depth)
    channels = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(255 * white + (1 - white) * channel):02x}" for channel in channels)


def path_marker(path: str) -> str:
    """Return matplotlib's marker of `path`."""
    return _layer(path).marker


def is_equivariant(path: str) -> bool:
    """Return whether layers of `path` commute with some transformation: what other paths are measured against."""
    return bool(_layer(path).equivariant_to)


def path_order(path: str) -> tuple[bool, int]:
    """Return where `path` stands among others in legends and stacks: the free ones first, then the equivariant ones."""
    return is_equivariant(path), list(PATHS).index(path) if path in PATHS else len(PATHS)


def _layer(path: str) -> type[SpatialLayer]:
    return PATHS.get(path, SpatialLayer)
