"""What a parameter tensor of a network is: where it stands, and in which role."""

from collections.abc import Mapping
from dataclasses import dataclass

WEIGHT, BIAS, LENGTHSCALE = "weight", "bias", "lengthscale"
HEAD = "head"
EVERYWHERE = "all"
"""As a layer: all of them at once."""


@dataclass(frozen=True)
class Place:
    """One parameter tensor of a network.

    Attributes:
        layer: "1", "2", … from the image on, then "head".
        path: as in `layer=`: "f_fc", "conv", …; those of the head are its linear layers, "linear0" and "linear2".
        part: what its layer calls it: "weight"; "theta1", "theta2"; "u", "u1", "u2"; "omega", "omega1", …; "bias".
        role: "weight", "bias" or "lengthscale".
        size: number of its entries.
    """

    layer: str
    path: str
    part: str
    role: str
    size: int


def by_path(places: Mapping[str, Place], role: str) -> dict[tuple[str, str], list[str]]:
    """Return {(layer, path): names of its tensors in this `role`}, in order; paths that have none are there, too."""
    grouped: dict[tuple[str, str], list[str]] = {(place.layer, place.path): [] for place in places.values()}
    for name, place in places.items():
        if place.role == role:
            grouped[place.layer, place.path].append(name)
    return grouped
