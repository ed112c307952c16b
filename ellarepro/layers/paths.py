"""A layer that is the mean of its paths (eq. 4, with a mean in place of the sum)."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ellarepro.layers.subsample import keep_first_phase, keep_largest_phase


class PathMean(nn.Module):
    """Mean over named paths that share input and output shapes; a single path is passed through.

    Two equivariant paths that subsampled each by itself could keep different phases: a shift of the input by one pixel
    would then shift one of them and not the other, and their sum would not be equivariant. Such paths are left at
    full resolution, and their sum is subsampled.

    Args:
        paths: name to layer, in the order in which they are added.
        subsampled: names of paths with an output map of the input's size, whose sum is halved to that of the others.
        adaptive: whether it keeps each sample's largest phase; the first one otherwise.

    Raises:
        ValueError: no path is given, or a name that is no path's.
    """

    def __init__(self, paths: Mapping[str, nn.Module], subsampled: Collection[str] = (), adaptive: bool = True):
        super().__init__()
        if not paths:
            raise ValueError("a layer needs at least one path")
        if strays := sorted(set(subsampled) - set(paths)):
            raise ValueError(f"subsampled must name paths among {', '.join(paths)}; got {', '.join(strays)}")
        self.paths = nn.ModuleDict(paths)
        self.subsampled, self.adaptive = frozenset(subsampled), adaptive

    def forward(self, features: Tensor) -> Tensor:
        return self.mean(self.outputs(features))

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """What each path makes of `features (B, C, H, W)`, by name: `(B, D, H', W')`, whole if `subsampled`."""
        return {name: path(self._shared(features)) for name, path in self.paths.items()}

    def mean(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The layer's output `(B, D, H', W')` from its paths' `outputs`."""
        whole = [output for name, output in outputs.items() if name in self.subsampled]
        halves = [output for name, output in outputs.items() if name not in self.subsampled]
        if whole:
            halves.append((keep_largest_phase if self.adaptive else keep_first_phase)(_sum(whole)))
        return _sum(halves) / len(self.paths) if len(self.paths) > 1 else halves[0]

    def _shared(self, features: Tensor) -> Tensor:
        return _PixelsLastGradient.apply(features) if len(self.paths) > 1 else features


def _pixels_last(maps: Tensor) -> Tensor:
    """The same `maps (B, C, H, W)` with the pixels of a channel together in memory.

    Each kind of path writes its maps in an order of its own, and a sum of two orders takes several times as long as a
    copy. Of maps with samples last, the copy is the transpose of a matrix, for which there is a kernel.
    """
    if maps.stride(0) == 1 and not maps.is_contiguous():
        return maps.permute(1, 2, 3, 0).flatten(0, 2).t().contiguous().view(maps.shape)
    return maps.contiguous()


class _PixelsLastGradient(torch.autograd.Function):
    """The same map, with a gradient in `_pixels_last` order: those of all paths are summed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor) -> Tensor:
        return maps.view_as(maps)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _pixels_last(gradient)

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


def _sum(outputs: list[Tensor]) -> Tensor:
    total = _pixels_last(outputs[0])
    for output in outputs[1:]:
        total = total + _pixels_last(output)
    return total
