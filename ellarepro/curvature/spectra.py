"""Eigenvalues of curvature blocks, and the log-determinants and effective numbers that need nothing more."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor

from ellarepro.curvature.eigen import CurvatureError, symmetric_eigenvalues
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
        grids = [_Grid(values) for values in eigenvalues]
        self._grids = [list(grid) if grid.size <= _PART else grid for grid in grids]

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
        return _LogDetRatio.apply(precisions, self._grids)


class _LogDetRatio(torch.autograd.Function):
    """The sum of log(1 + lambda / delta), whose derivative in delta is taken in the same pass.

    What a graph would keep of the eigenvalues of a large block is several times what they take.
    """

    @staticmethod
    def forward(ctx, precisions: Tensor, grids: Sequence[Iterable[Tensor]]) -> Tensor:
        logs, numbers = [], []
        for grid, delta in zip(grids, precisions.unbind(), strict=True):
            parts = [((part / delta).log1p_().sum(), (part / (part + delta)).sum()) for part in grid]
            logs.append(reduce(add, (log for log, _ in parts)))
            numbers.append(reduce(add, (number for _, number in parts)))
        ctx.save_for_backward(-torch.stack(numbers).to(precisions) / precisions)
        return torch.stack(logs).sum().to(precisions)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class _Grid:
    """The eigenvalues of a block, as many as its tensor has entries: made from those of its factors, a part at a time.

    A part and what is computed of it stay in a cache; all of them would be read from memory at every hyper-step.
    """

    def __init__(self, values: list[Tensor]):
        left, right = values if len(values) == 2 else (values[0], torch.ones_like(values[0][:1, :1]))
        groups = max(len(left), len(right))
        self.left, self.right = left.expand(groups, -1), right.expand(groups, -1)
        self.size = self.left.numel() * right.shape[1]

    def __iter__(self) -> Iterator[Tensor]:
        rows = max(_PART // max(self.right.shape[1], 1), 1)
        groups = max(rows // max(self.left.shape[1], 1), 1)
        for left, right in zip(self.left.split(groups), self.right.split(groups), strict=True):
            for few in left.split(rows, dim=1):
                yield eigenvalue_grid([few, right])


class FullCurvature:
    """H as one dense matrix with the correlations between all tensors: the oracle, for small networks.

    Args:
        matrix: `(P, P)`, float64.
        sizes: entries of each tensor, summing to P.
    """

    blocks: dict[str, Block] | None = None

    def __init__(self, matrix: Tensor, sizes: Sequence[int]):
        self.matrix = matrix
        self.sizes = torch.tensor(sizes, device="cpu")

    def each_entry(self, precisions: Tensor) -> Tensor:
        """The precision of each entry, `(P,)`, from that of each tensor, `(L,)`."""
        return precisions.repeat_interleave(self.sizes.to(precisions.device))

    def log_det_ratio(self, precisions: Tensor) -> Tensor:
        """log |I + D^-1/2 H D^-1/2| with D = diag(delta).

        Raises:
            CurvatureError: H is not finite, or so large beside delta that rounding makes H + D indefinite.
        """
        root = self.each_entry(precisions).to(self.matrix).rsqrt()
        scaled = self.matrix * root[:, None] * root[None, :]
        identity = torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
        try:
            cholesky = torch.linalg.cholesky(scaled + identity)
        except torch.linalg.LinAlgError as error:
            raise CurvatureError(
                f"the full curvature plus the prior's precisions ({precisions.min():.3g} and more) is not positive "
                "definite; take larger precisions, or structure=kron"
            ) from error
        return 2 * cholesky.diagonal().log().sum().to(precisions)


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
