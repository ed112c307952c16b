"""Products with the inverse of damped blocks: what a natural gradient is made by.

The damping is split between the two factors of a block (Martens and Grosse, 2015, Section 6.3): A + pi sqrt(damping) I
and B + sqrt(damping) / pi I, with pi^2 the mean eigenvalue of A over that of B. A single factor has it whole.
"""

from collections import defaultdict
from math import sqrt

import torch
from torch import Tensor

from ellarepro.curvature.structures import Block, Factor

LARGE = 2**20
"""Entries of the weight of a dense layer from which on to transpose it takes longer than a product with kept rows."""


class DampedInverses:
    """(F + damping)^-1 for the block F of each tensor.

    Args:
        blocks: by parameter name.
        damping: positive.

    Nothing is looked at on the host. Where a factor has overflowed, or rounding exceeds the damping, products are NaN.
    """

    @torch.no_grad()
    def __init__(self, blocks: dict[str, Block], damping: float):
        damped = {
            name: [_Damped(part, shift) for part, shift in zip(block.parts, _shifts(block.parts, damping), strict=True)]
            for name, block in blocks.items()
        }
        _invert([factor for factors in damped.values() for factor in factors])
        self._factors = damped
        self._axes = {name: block.group_axis for name, block in blocks.items()}

    @torch.no_grad()
    def replace(self, newer: "DampedInverses") -> bool:
        """Copy the numbers of `newer` to where those of this one lie, where a captured CUDA graph reads them.

        Returns:
            False, and nothing is copied, where a shape differs.
        """
        kept, found = self._tensors(), newer._tensors()
        if [one.shape for one in kept] != [one.shape for one in found]:
            return False
        for one, other in zip(kept, found, strict=True):
            one.copy_(other)
        return True

    def _tensors(self) -> list[Tensor]:
        factors = [factor for each in self._factors.values() for factor in each]
        return [t for one in factors for t in (one.shift, one.matrix, one.rows) if t is not None]

    def times(self, name: str, gradient: Tensor) -> Tensor:
        """The inverse of the block of the tensor `name` times `gradient`, in its shape."""
        factors, axis = self._factors[name], self._axes[name]
        first, last = factors[0].width, factors[1].width if len(factors) == 2 else 1
        grouped = gradient.reshape((first, -1, last) if axis == 1 else (-1, first, last))
        if axis == 1:
            grouped = grouped.transpose(0, 1)
        result = factors[0].before(grouped)
        if len(factors) == 2:
            result = factors[1].after(result)
        return (result.transpose(0, 1) if axis == 1 else result).reshape(gradient.shape)


class _Damped:
    """A factor A plus `shift` I, and what its inverse is made of.

    Of rows S with A = scale S^T S, the inverse is (I - S^T (S S^T + shift / scale I)^-1 S) / shift (Woodbury).

    Attributes:
        rows: S `(G, R, d)`, or None where the matrix is kept.
        matrix: what is to be inverted, `(G, d, d)` or `(G, R, R)`, later its inverse.
    """

    def __init__(self, factor: Factor, shift: Tensor):
        self.shift = shift
        self.rows: Tensor | None = None
        if factor.total.matrix is None:
            (self.rows,) = factor.total.rows
            kept, added, self.width = self.rows @ self.rows.mT, shift / factor.scale, self.rows.shape[-1]
        else:
            kept, added, self.width = factor.dense(), shift, factor.total.matrix.shape[-1]
        self.matrix = kept + torch.diag_embed(added.expand(kept.shape[-1]))

    def before(self, columns: Tensor) -> Tensor:
        """The inverse times `columns (G, d, k)`."""
        if self.rows is None or len(columns) > 1 or columns.numel() < LARGE:
            return self.after(columns.mT).mT
        seen = self.rows.mT @ (self.matrix @ (self.rows @ columns))
        return (columns - seen).div_(self.shift)

    def after(self, vectors: Tensor) -> Tensor:
        """`vectors (G, k, d)` times the inverse."""
        if self.rows is None:
            return _product(vectors, self.matrix)
        seen = _product(_product(_product(vectors, self.rows.mT), self.matrix), self.rows)
        return (vectors - seen).div_(self.shift)


def _product(vectors: Tensor, matrices: Tensor) -> Tensor:
    """vectors[g] @ matrices[g]; one that all groups share takes their vectors in one product."""
    return torch.bmm(vectors, matrices) if len(vectors) == len(matrices) else vectors @ matrices[0]


def _shifts(parts: list[Factor], damping: float) -> list[Tensor]:
    means = [_mean_eigenvalue(part) for part in parts]
    if len(parts) == 1:
        return [torch.full_like(means[0], damping)]
    ratio = (means[0] / means[1]).sqrt()
    # Of a tensor that no gradient reaches, both are damped alike.
    pi = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, torch.ones_like(ratio))
    return [pi * sqrt(damping), sqrt(damping) / pi]


def _mean_eigenvalue(part: Factor) -> Tensor:
    total = part.total
    if total.matrix is not None:
        return total.matrix.diagonal(dim1=1, dim2=2).mean() * part.scale
    groups, _, width = total.rows[0].shape
    return total.rows[0].square().sum() * (part.scale / (groups * width))


def _invert(damped: list[_Damped]) -> None:
    """Replace each matrix by its inverse, those of one width together; by NaN, where it is not positive definite."""
    together: dict[int, list[_Damped]] = defaultdict(list)
    for one in damped:
        together[one.matrix.shape[-1]].append(one)
    for group in together.values():
        roots, failed = torch.linalg.cholesky_ex(torch.cat([one.matrix for one in group]))
        lost = failed[:, None, None] > 0
        # What a failed decomposition leaves may have zeros on its diagonal, which cholesky_inverse refuses.
        whole = torch.where(lost, torch.eye(roots.shape[-1], dtype=roots.dtype, device=roots.device), roots)
        inverses = torch.cholesky_inverse(whole).masked_fill(lost, torch.nan)
        # By rows, as products want it: LAPACK leaves it by columns, and it is symmetric.
        parts = inverses.mT.contiguous().split([len(one.matrix) for one in group])
        for one, inverse in zip(group, parts, strict=True):
            one.matrix = inverse
