"""Gaussian posteriors with Kronecker-factored covariance, q = N(M, S kron A), in the blocks of the curvature.

A tensor is seen as `(G, I, J)`, as in `curvature.interop.kron`. Group g has the covariance S_g kron A_g, with S_g
`(I, I)` of its rows and A_g `(J, J)` of its columns. A factor with one group serves all of them. A tensor with a single
factor, a bias say, has J = 1 and A = 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ellarepro.curvature.structures import Block


class MatrixNormal(nn.Module):
    """q of one tensor, whose mean M is the tensor itself.

    The Cholesky factors are L R with L that of the start, fixed, and R lower triangular, learned and the identity at
    the start: so that one learning rate suits all entries.

    Args:
        mean: the parameter, in its own shape.
        factors: one or two covariances `(G, d, d)` or `(1, d, d)`, S and A.
        group_axis: as in `Block`.
    """

    def __init__(self, mean: nn.Parameter, factors: Sequence[Tensor], group_axis: int | None):
        super().__init__()
        self.shape, self.group_axis = mean.shape, group_axis
        self.groups = max(len(factor) for factor in factors)
        for index, factor in enumerate(factors):
            self.register_buffer(f"start{index}", torch.linalg.cholesky(factor).to(mean.dtype))
        self.changes = nn.ParameterList([torch.zeros_like(start) for start in self.starts])
        self.log_scales = nn.ParameterList([start.new_zeros(start.shape[:2]) for start in self.starts])

    @property
    def starts(self) -> list[Tensor]:
        """The Cholesky factors of S and A at the start."""
        return list(self.buffers())

    @classmethod
    def of_block(cls, mean: nn.Parameter, block: Block, precision: float, factor: float = 1.0) -> "MatrixNormal":
        """The Laplace posterior of `factor` times a Kronecker block, as near as S kron A comes to it.

        With one factor it is (H + precision)^-1. With two, the precision is split between them as KFAC's damping is, by
        pi = sqrt(mean eigenvalue of the one / of the other).
        """
        factors = [part.double() for part in block.factors]
        factors[0] = factors[0] * factor
        if len(factors) == 1:
            damped = [_damped(factors[0], precision)]
        else:
            means = [part.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-30) for part in factors]
            pi = (means[0] / means[1]).sqrt()
            damped = [_damped(factors[0], pi * precision**0.5), _damped(factors[1], precision**0.5 / pi)]
        return cls(mean, [torch.linalg.inv(part) for part in damped], block.group_axis)

    def roots(self) -> list[Tensor]:
        """The Cholesky factors of S and A."""
        pairs = zip(self.starts, self.changes, self.log_scales, strict=True)
        return [start @ (change.tril(-1) + torch.diag_embed(scale.exp())) for start, change, scale in pairs]

    def deviation(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of theta - M, in the tensor's shape; differentiable in the factors."""
        roots = self.roots()
        size = [self.groups, *(root.shape[1] for root in roots), *([1] if len(roots) == 1 else [])]
        noise = torch.randn(size, generator=generator, dtype=roots[0].dtype, device=roots[0].device)
        drawn = roots[0] @ noise
        return _in_order(drawn @ roots[1].mT if len(roots) == 2 else drawn, self.group_axis).reshape(self.shape)

    def trace(self) -> Tensor:
        """Of the covariance: sum over groups of tr S tr A."""
        traces = [root.square().sum((1, 2)) for root in self.roots()]
        product = traces[0] * traces[1] if len(traces) == 2 else traces[0]
        return product.expand(self.groups).sum()

    def log_det(self) -> Tensor:
        """Of the covariance: sum over groups of J log|S| + I log|A|."""
        roots = zip(self.starts, self.log_scales, strict=True)
        halves = [(start.diagonal(dim1=1, dim2=2).log() + scale).sum(1).expand(self.groups) for start, scale in roots]
        if len(halves) == 1:
            return 2 * halves[0].sum()
        rows, columns = (start.shape[1] for start in self.starts)
        return 2 * (columns * halves[0] + rows * halves[1]).sum()

    def dense(self) -> Tensor:
        """The covariance `(P, P)` in the tensor's order, for tests."""
        size = self.shape.numel()
        order = _in_order(torch.arange(size).reshape(self._grouped_shape()), self.group_axis).flatten()
        roots = [root.expand(self.groups, -1, -1) for root in self.roots()]
        covariances = [root @ root.mT for root in roots]
        blocks = [torch.kron(*pair) if len(pair) == 2 else pair[0] for pair in zip(*covariances, strict=True)]
        matrix = torch.block_diag(*blocks)
        return matrix[order][:, order]

    def _grouped_shape(self) -> tuple[int, int, int]:
        rows = self.starts[0].shape[1]
        return self.groups, rows, self.shape.numel() // (self.groups * rows)


def kl_divergence(q: MatrixNormal, mean: Tensor, log_precision: Tensor) -> Tensor:
    """KL(q || N(0, 1/delta)) in nats, with delta = exp(log_precision) a scalar and `mean` that of q."""
    size = mean.numel()
    second_moment = q.trace() + mean.square().sum()
    return (log_precision.exp() * second_moment - size - size * log_precision - q.log_det()) / 2


def _in_order(grouped: Tensor, axis: int | None) -> Tensor:
    """`(G, I, J)` to the tensor's own order of axes."""
    return grouped.transpose(-3, -2) if axis == 1 else grouped


def _damped(matrices: Tensor, amount: Tensor | float) -> Tensor:
    return matrices + amount * torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
