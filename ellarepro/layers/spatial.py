"""The contract of every spatial layer: built from channels and shapes, maps `(B, C, H, W)` to `(B, D, H', W')`."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from ellarepro.layers.tensors import BIAS, WEIGHT, TensorInfo

Shape = tuple[int, int]

RELU_GAIN = 2.0**0.5
VARIANCE_DRAWS = 100


class SpatialLayer(nn.Module):
    """A linear map between feature maps, the unit that a path of the network is made of.

    Subclasses take, after these four arguments, `gain`: the factor by which the output's standard deviation at
    initialisation exceeds the root mean square of the input (sqrt(2) preserves the scale through a ReLU).

    Args:
        in_channels: C.
        out_channels: D.
        in_shape: `(H, W)` of the input map.
        out_shape: `(H', W')` of the output map: the input's, or half of it in both axes.

    Raises:
        ValueError: a size that is not positive, or an output map that is neither the input's nor half of it.
    """

    title: str = ""
    """What a path of such layers is called in tables and figures; its name in `layer=` if nothing is said."""
    colour: str = "#999999"
    """In figures; of Okabe and Ito's palette, then of Tol's, both of which colour-blind readers can tell apart."""
    marker: str = "o"
    """In figures, one of matplotlib's."""
    parts: Mapping[str, tuple[str, str]] = {"weight": ("weight", WEIGHT), "bias": ("bias", BIAS)}
    """What each parameter tensor is called and its role (`tensors.py`), by its name in `named_parameters()`."""
    equivariant_to: frozenset[str] = frozenset()
    """Of `translation`, `rotation` (by 90 degrees) and `reflection`, what the layer commutes with, exactly."""
    options: frozenset[str] = frozenset()
    """Keyword arguments that the layer takes beside these, by the names that `build_network` has for them."""
    priors: tuple[str, ...] = ("theta",)
    """`prior=` choices that have a meaning for its parameters (Section 3.2)."""

    def __init__(self, in_channels: int, out_channels: int, in_shape: Shape, out_shape: Shape):
        super().__init__()
        if min(in_channels, out_channels, *in_shape, *out_shape) < 1:
            raise ValueError(f"sizes must be positive, got {in_channels=} {out_channels=} {in_shape=} {out_shape=}")
        if out_shape != in_shape and out_shape != (in_shape[0] / 2, in_shape[1] / 2):
            raise ValueError(f"out_shape must be in_shape {in_shape} or half of it, got {out_shape}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.in_shape: Shape = (in_shape[0], in_shape[1])
        self.out_shape: Shape = (out_shape[0], out_shape[1])

    @property
    def subsamples(self) -> bool:
        """Whether the output map is half the input's."""
        return self.in_shape != self.out_shape

    def tensor_info(self, layer: str, path: str) -> dict[str, TensorInfo]:
        """What each parameter tensor is, by name, where the layer is the path `path` of the network's layer `layer`.

        Raises:
            NotImplementedError: `parts` has no entry for a tensor.
        """
        tensors = dict(self.named_parameters())
        if silent := sorted(tensors.keys() - self.parts.keys()):
            raise NotImplementedError(f"{type(self).__name__}.parts has no entry for {', '.join(silent)}")
        return {name: TensorInfo(layer, path, *self.parts[name], p.numel()) for name, p in tensors.items()}

    @torch.no_grad()
    def unit_variance(self, features: Tensor) -> Tensor:
        """Variance of the output for `features (B, C, H, W)` where weights are standard normal and biases zero.

        The mean over samples, channels and positions, a scalar. The prior variance is this over the product of the
        weight tensors' precisions. Layers say it by a formula, for the positions before any subsampling; one that does
        not gets it from draws of what it puts out, after it.
        """
        drawn, generator = deepcopy(self), torch.Generator(features.device).manual_seed(0)
        tensors = {name: p for name, p in drawn.named_parameters() if self.parts[name][1] in (WEIGHT, BIAS)}
        squares = []
        for _ in range(VARIANCE_DRAWS):
            for name, p in tensors.items():
                p.normal_(generator=generator) if self.parts[name][1] == WEIGHT else p.zero_()
            squares.append(drawn(features).square().mean())
        return torch.stack(squares).mean()

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.in_shape}, {self.out_shape}"


def normal_parameter(*shape: int, std: float) -> nn.Parameter:
    """A parameter drawn from N(0, std^2) with the global generator."""
    return nn.Parameter(torch.randn(shape) * std)


def zero_bias(features: int) -> nn.Parameter:
    """A bias of `features` zeros."""
    return nn.Parameter(torch.zeros(features))
