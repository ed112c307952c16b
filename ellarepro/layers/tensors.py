"""What a parameter tensor of a network is: where it stands, and in which role."""

from collections.abc import Mapping
from dataclasses import dataclass

WEIGHT, BIAS, LENGTHSCALE = "weight", "bias", "lengthscale"
HEAD = "head"
EVERYWHERE = "all"
"""As a layer: all of them at once."""


@dataclass(frozen=True)
class TensorInfo:
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


def by_path(tensors: Mapping[str, TensorInfo], role: str) -> dict[tuple[str, str], list[str]]:
    """Return {(layer, path): names of its tensors in this `role`}, in order; paths that have none are there, too."""
    grouped: dict[tuple[str, str], list[str]] = {(tensor.layer, tensor.path): [] for tensor in tensors.values()}
    for name, tensor in tensors.items():
        if tensor.role == role:
            grouped[tensor.layer, tensor.path].append(name)
    return grouped
