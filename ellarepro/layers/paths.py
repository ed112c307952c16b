"""A layer that is the mean of its paths (eq. 4, with a mean in place of the sum)."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ellarepro.layers.subsample import keep_largest_phase


class PathMean(nn.Module):
    """Mean over named paths that share input and output shapes; a single path is passed through.

    Two equivariant paths that subsampled each by itself could keep different phases: a shift of the input by one pixel
    would then shift one of them and not the other, and their sum would not be equivariant. Such paths are left at
    full resolution, and their sum is subsampled.

    Args:
        paths: name to layer, in the order in which they are added.
        subsampled: names of paths with an output map of the input's size, whose sum is halved to that of the others.

    Raises:
        ValueError: no path is given, or a name that is no path's.
    """

    def __init__(self, paths: Mapping[str, nn.Module], subsampled: Collection[str] = ()):
        super().__init__()
        if not paths:
            raise ValueError("a layer needs at least one path")
        if strays := sorted(set(subsampled) - set(paths)):
            raise ValueError(f"subsampled must name paths among {', '.join(paths)}; got {', '.join(strays)}")
        self.paths = nn.ModuleDict(paths)
        self.subsampled = frozenset(subsampled)

    def forward(self, features: Tensor) -> Tensor:
        return self.mean(self.outputs(features))

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """What each path makes of `features (B, C, H, W)`, by name: `(B, D, H', W')`, whole if `subsampled`."""
        return {name: path(features) for name, path in self.paths.items()}

    def mean(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The layer's output `(B, D, H', W')` from its paths' `outputs`."""
        whole = [output for name, output in outputs.items() if name in self.subsampled]
        halves = [output for name, output in outputs.items() if name not in self.subsampled]
        if whole:
            halves.append(keep_largest_phase(_sum(whole)))
        return _PixelsLast.apply(_sum(halves) / len(self.paths)) if len(self.paths) > 1 else halves[0]


class _PixelsLast(torch.autograd.Function):
    """The same map with the pixels of a channel together in memory, in the forward and in the backward pass.

    Each kind of path writes its maps in an order of its own; what follows a sum of two orders would be slow to read.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor) -> Tensor:
        return maps.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous()

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return tangent.contiguous()


def _sum(outputs: list[Tensor]) -> Tensor:
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total
