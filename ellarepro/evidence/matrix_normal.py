"""Gaussian posteriors with Kronecker-factored covariance, q = N(M, S kron A), in the blocks of the curvature.

A tensor is seen as `(G, I, J)`, as in `curvature.interop.kron`. Group g has the covariance S_g kron A_g, with S_g
`(I, I)` of its rows and A_g `(J, J)` of its columns. A factor with one group serves all of them. A tensor with a single
factor, a bias say, has J = 1 and A = 1.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ellarepro.curvature.eigen import symmetric_eigenvectors
from ellarepro.curvature.structures import Block

Spectrum = tuple[Tensor, Tensor]
ROTATED = 128
"""Of a factor: a wider one keeps the eigenvectors of its start, and learns the eigenvalues."""


class MatrixNormal(nn.Module):
    """q of one tensor, whose mean M is the tensor itself.

    A factor has the root Q sqrt(s) R, with Q and s the eigenvectors and eigenvalues of the start, fixed, and R lower
    triangular, learned and the identity at the start; diagonal where the factor is wider than `ROTATED`. So one
    learning rate suits all entries, the trace is a weighted sum of squares of R, and no step multiplies two matrices of
    the factor's width.

    Args:
        mean: the parameter, in its own shape.
        spectra: one or two, of S and A at the start: eigenvalues `(G, d)` or `(1, d)`, eigenvectors in columns
            `(G, d, d)` or `(1, d, d)`.
        group_axis: as in `Block`.
    """

    def __init__(self, mean: nn.Parameter, spectra: Sequence[Spectrum], group_axis: int | None):
        super().__init__()
        self.shape, self.group_axis = mean.shape, group_axis
        self.groups = max(len(values) for values, _ in spectra)
        for index, (values, basis) in enumerate(spectra):
            self.register_buffer(f"values{index}", values.to(mean.dtype))
            self.register_buffer(f"basis{index}", basis.to(mean.dtype))
        self.changes = nn.ParameterList(
            [torch.zeros_like(basis if basis.shape[1] <= ROTATED else basis[:0]) for _, basis in self.spectra]
        )
        self.log_scales = nn.ParameterList([torch.zeros_like(values) for values, _ in self.spectra])
        for change in self.changes:
            change.register_post_accumulate_grad_hook(_keep_lower)

    @property
    def spectra(self) -> list[Spectrum]:
        """Of S and A at the start."""
        buffers = list(self.buffers())
        return list(zip(buffers[::2], buffers[1::2], strict=True))

    @classmethod
    def of_block(cls, mean: nn.Parameter, block: Block, precision: float, factor: float = 1.0) -> "MatrixNormal":
        """The Laplace posterior of `factor` times a Kronecker block, as near as S kron A comes to it.

        With one factor it is (H + precision)^-1. With two, the precision is split between them as KFAC's damping is, by
        pi = sqrt(mean eigenvalue of the one / of the other).

        Raises:
            CurvatureError: a factor of the block is not finite.
        """
        spectra = [symmetric_eigenvectors(part) for part in block.factors]
        spectra[0] = spectra[0][0] * factor, spectra[0][1]
        damping = [precision]
        if len(spectra) == 2:
            means = [values.mean().clamp_min(1e-30) for values, _ in spectra]
            pi = (means[0] / means[1]).sqrt().item()
            damping = [pi * precision**0.5, precision**0.5 / pi]
        starts = [(1 / (values + amount), basis) for (values, basis), amount in zip(spectra, damping, strict=True)]
        return cls(mean, starts, block.group_axis)

    def roots(self) -> list[Tensor]:
        """Roots C of S and A, C C^T."""
        units = [torch.eye(basis.shape[1]).to(basis).expand_as(basis) for _, basis in self.spectra]
        return [self._root_times(side, unit) for side, unit in enumerate(units)]

    def _root_times(self, side: int, vectors: Tensor) -> Tensor:
        """Q sqrt(s) R of a factor times the next to last axis of `vectors (..., G, d, n)`."""
        values, basis = self.spectra[side]
        scaled = self.log_scales[side].exp()[..., None] * vectors
        if len(change := self.changes[side]):
            scaled = scaled + _times(change, vectors)
        return _times(basis, values.sqrt()[..., None] * scaled)

    def noise(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal numbers `(count, G, I, J)` for as many draws."""
        like, widths = self.log_scales[0], [scale.shape[1] for scale in self.log_scales]
        size = [count, self.groups, *widths, *([1] if len(widths) == 1 else [])]
        return torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)

    def deviations(self, noise: Tensor) -> Tensor:
        """Draws of theta - M, `(count, ...)` in the tensor's shape; differentiable in the factors.

        Many at once cost little more than one: each factor is read once.
        """
        drawn = self._root_times(0, noise)
        if len(self.changes) == 2:
            drawn = self._root_times(1, drawn.mT).mT
        return _in_order(drawn, self.group_axis).reshape(len(noise), *self.shape)

    def deviation(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw."""
        return self.deviations(self.noise(1, generator))[0]

    def trace(self) -> Tensor:
        """Of the covariance: sum over groups of tr S tr A."""
        learned = zip(self.spectra, self.changes, self.log_scales, strict=True)
        traces = [
            (values * ((2 * scale).exp() + (change.square().sum(2) if len(change) else 0))).sum(1)
            for (values, _), change, scale in learned
        ]
        product = traces[0] * traces[1] if len(traces) == 2 else traces[0]
        return product.expand(self.groups).sum()

    def log_det(self) -> Tensor:
        """Of the covariance: sum over groups of J log|S| + I log|A|."""
        pairs = zip(self.spectra, self.log_scales, strict=True)
        whole = [(values.log() + 2 * scale).sum(1).expand(self.groups) for (values, _), scale in pairs]
        if len(whole) == 1:
            return whole[0].sum()
        rows, columns = (values.shape[1] for values, _ in self.spectra)
        return (columns * whole[0] + rows * whole[1]).sum()

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
        rows = self.log_scales[0].shape[1]
        return self.groups, rows, self.shape.numel() // (self.groups * rows)


def kl_divergence(q: MatrixNormal, mean: Tensor, log_precision: Tensor) -> Tensor:
    """KL(q || N(0, 1/delta)) in nats, with delta = exp(log_precision) a scalar and `mean` that of q."""
    size = mean.numel()
    second_moment = q.trace() + mean.square().sum()
    return (log_precision.exp() * second_moment - size - size * log_precision - q.log_det()) / 2


def _in_order(grouped: Tensor, axis: int | None) -> Tensor:
    """`(G, I, J)` to the tensor's own order of axes."""
    return grouped.transpose(-3, -2) if axis == 1 else grouped


def _keep_lower(change: Tensor) -> None:
    """A gradient in the entries below the diagonal alone: those above and on it stay zero."""
    cast(Tensor, change.grad).tril_(-1)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`matrices (G, d, d)`, or `(1, d, d)` for all groups, times `vectors (..., G, d, n)`."""
    if len(matrices) == 1:  # A product with a matrix that is expanded would copy it for each group.
        return torch.einsum("ij,...jn->...in", matrices[0], vectors)
    return torch.einsum("gij,...gjn->...gin", matrices, vectors)
