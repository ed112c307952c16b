"""Eigenvalues of curvature blocks, and the log-determinants and effective numbers that need nothing more."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ellarepro.curvature.eigen import symmetric_eigenvalues
from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.structures import Block

_PART = 2**18
"""Eigenvalues that are summed together: a few intermediates of so many lie in a cache."""


class Curvature(Protocol):
    """What the marginal likelihood asks of H: `log_det_ratio(precisions)`, differentiable.

    Attributes:
        blocks: what H is made of, tensor by tensor, for a posterior; None where it is not.
    """

    blocks: dict[str, Block] | None

    def log_det_ratio(self, precisions: Tensor) -> Tensor:
        """log |H + diag(delta)| - log |diag(delta)|, for one precision a tensor `(L,)`."""


class SpectralCurvature:
    """H by the eigenvalues of each tensor's block.

    Args:
        eigenvalues: of each tensor's one or two factors, `(G, d)` or `(1, d)`, in float64, at least zero; zeros may be
            left out. Those of the block are their products.
        blocks: what they are the eigenvalues of, for a posterior.
    """

    def __init__(self, eigenvalues: Sequence[list[Tensor]], blocks: dict[str, Block] | None = None):
        self.blocks = blocks
        self.eigenvalues = eigenvalues

    @classmethod
    def from_blocks(cls, blocks: dict[str, Block]) -> "SpectralCurvature":
        """Decompose blocks, eigenvalues only.

        Raises:
            CurvatureError: a factor is not finite.
        """
        found = each_factor(_sum_eigenvalues, [[f.total for f in b.parts] for b in blocks.values()], list(blocks))
        pairs = zip(found, blocks.values(), strict=True)
        return cls([[v * f.scale for v, f in zip(values, b.parts, strict=True)] for values, b in pairs], blocks)

    @property
    def spectra(self) -> list[Tensor]:
        """The eigenvalues of each tensor's block, in no order."""
        return [eigenvalue_grid(values).flatten() for values in self.eigenvalues]

    def log_det_ratio(self, precisions: Tensor) -> Tensor:
        """Sum over tensors and eigenvalues of log(1 + lambda / delta): exact for large and for small delta."""
        return _LogDetRatio.apply(precisions, self.eigenvalues)


class _LogDetRatio(torch.autograd.Function):
    """The sum of log(1 + lambda / delta), whose derivative in delta is taken in the same pass.

    A block has as many eigenvalues as its tensor has entries. A part of them at a time is made from those of the
    factors, in a cache; all of them are never held, let alone what a graph would keep of them.
    """

    @staticmethod
    def forward(ctx, precisions: Tensor, eigenvalues: Sequence[list[Tensor]]) -> Tensor:
        deltas = precisions.to(eigenvalues[0][0].device).unbind()
        sums = [_ratio_sums(values, delta) for values, delta in zip(eigenvalues, deltas, strict=True)]
        logs, numbers = torch.stack(sums).T.to(precisions.device)
        ctx.save_for_backward(-numbers / precisions)
        return logs.sum()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def _ratio_sums(values: list[Tensor], delta: Tensor) -> Tensor:
    """`(2,)`: the sums of log(1 + lambda / delta) and of lambda / (lambda + delta) over the eigenvalues of a block."""
    total = values[0].new_zeros(2)
    for part in _parts(values):
        total += torch.stack([(part / delta).log1p_().sum(), (part / (part + delta)).sum()])
    return total


def _parts(values: list[Tensor]) -> Iterator[Tensor]:
    """The grid of `eigenvalue_grid`, about `_PART` entries at a time."""
    left, right = values if len(values) == 2 else (values[0], torch.ones_like(values[0][:1, :1]))
    groups = max(len(left), len(right))
    rows = max(_PART // max(right.shape[1], 1), 1)
    at_once = max(rows // max(left.shape[1], 1), 1)
    for ours, others in zip(
        left.expand(groups, -1).split(at_once), right.expand(groups, -1).split(at_once), strict=True
    ):
        for few in ours.split(rows, dim=1):
            yield eigenvalue_grid([few, others])


class FullCurvature:
    """H as one dense matrix with the correlations between all tensors: the oracle, for small networks.

    Args:
        matrix: `(P, P)`, float64.
        sizes: entries of each tensor, summing to P.
    """

    blocks: dict[str, Block] | None = None

    def __init__(self, matrix: Tensor, sizes: Sequence[int]):
        self.matrix = matrix
        self.sizes = torch.tensor(sizes)

    def each_entry(self, precisions: Tensor) -> Tensor:
        """The precision of each entry, `(P,)`, from that of each tensor, `(L,)`."""
        return precisions.repeat_interleave(self.sizes.to(precisions.device))

    def log_det_ratio(self, precisions: Tensor) -> Tensor:
        """log |I + D^-1/2 H D^-1/2| with D = diag(delta)."""
        root = self.each_entry(precisions).rsqrt()
        scaled = self.matrix * root[:, None] * root[None, :]
        return torch.linalg.slogdet(scaled + torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device))[1]


def eigenvalue_grid(values: list[Tensor]) -> Tensor:
    """`(G, I, J)` products of `(G or 1, I)` and `(G or 1, J)`; `(G, I, 1)` for a single factor."""
    return values[0][:, :, None] if len(values) == 1 else values[0][:, :, None] * values[1][:, None, :]


def each_factor(function: Callable, kfacs: list[list], names: list[str]) -> list[list]:
    """`function(factor, name)` of every factor, computed once for a factor that two tensors share."""
    found = {}
    for factors, name in zip(kfacs, names, strict=True):
        for factor in factors:
            if id(factor) not in found:
                found[id(factor)] = function(factor, name)
    return [[found[id(factor)] for factor in factors] for factors in kfacs]


def _sum_eigenvalues(total: MomentSum, name: str) -> Tensor:
    return symmetric_eigenvalues(total.smallest(), name).double()
