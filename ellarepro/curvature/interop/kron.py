"""Kronecker algebra with block-diagonal factors, as subclasses of laplace-torch's `Kron` and `KronDecomposed`.

A tensor with P entries is seen as `(G, I, J)` and its block as the direct sum over g of `first[g] kron second[g]`,
where a factor with one group serves all g. Plain Kronecker blocks have G = 1, biases J = 1, diagonals I = J = 1. The
dense `(G*I, G*I)` factor of a factored layer is never formed.
"""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from laplace.utils.matrix import Kron, KronDecomposed
from torch import Tensor

from ellarepro.curvature.eigen import symmetric_eigenvalues, symmetric_eigenvectors
from ellarepro.curvature.spectra import each_factor, eigenvalue_grid
from ellarepro.curvature.structures import Block, Factor


class BlockKron(Kron):
    """Undecomposed factors, one block a tensor, in the order of `model.parameters()`.

    Args:
        kfacs: for each tensor one or two factors `(G, d, d)` or `(1, d, d)`.
        group_axes: for each tensor 0, 1 or None, as in `structures.Block`.
        names: for each tensor its name, for messages.
    """

    def __init__(self, kfacs: list[list[Tensor]], group_axes: list[int | None], names: list[str]):
        self.group_axes = group_axes
        self.names = names
        super().__init__(kfacs)

    @property
    def kfacs(self) -> list[list[Tensor]]:
        """The factors as laplace-torch saves and loads them: those of a tensor without groups are matrices."""
        pairs = zip(self.grouped, self.group_axes, strict=True)
        return [[f if axis is not None else f[0] for f in factors] for factors, axis in pairs]

    @kfacs.setter
    def kfacs(self, kfacs: list[list[Tensor]]) -> None:
        self.grouped = [[f if f.ndim == 3 else f[None] for f in factors] for factors in kfacs]

    @classmethod
    def from_blocks(cls, blocks: dict[str, Block]) -> "BlockKron":
        """From blocks by parameter name, as `GGN.blocks` gives them."""
        kept = [_scaled_last(block.parts) for block in blocks.values()]
        dense = {part: part.dense() for parts in kept for part in parts}
        kfacs = [[dense[part] for part in parts] for parts in kept]
        return cls(kfacs, [block.group_axis for block in blocks.values()], list(blocks))

    def _like(self, kfacs: list[list[Tensor]]) -> "BlockKron":
        return BlockKron(kfacs, self.group_axes, self.names)

    def __add__(self, other: Kron) -> "BlockKron":
        """Sum of the factors, tensor by tensor: what accumulating over batches means.

        laplace-torch loads a `BlockKron` as a `Kron`, to which a later fit is added.

        Raises:
            ValueError: `other` is not of the same tensors.
        """
        known = not isinstance(other, BlockKron) or (other.names, other.group_axes) == (self.names, self.group_axes)
        if not (isinstance(other, Kron) and known and _shapes(other) == _shapes(self)):
            raise ValueError("a BlockKron can be added only to factors of the same tensors")
        pairs = zip(self.grouped, self._like(other.kfacs).grouped, strict=True)
        return self._like([[a + b for a, b in zip(mine, others, strict=True)] for mine, others in pairs])

    def __radd__(self, other: Any) -> "BlockKron":
        """Allows `sum(...)` and laplace-torch's running totals, which start from nothing or from dense zeros."""
        return self if other is None or other == 0 or _is_start(other) else self.__add__(other)

    def __mul__(self, scalar: float | Tensor) -> "BlockKron":
        """The matrix times a scalar; of two factors each takes its square root."""
        return self._like([[factor * scalar ** (1 / len(fs)) for factor in fs] for fs in self.grouped])

    __rmul__ = __mul__

    def decompose(self, damping: bool = False) -> "BlockKronDecomposed":
        """Eigendecomposition of every block of every factor.

        Raises:
            NotImplementedError: `damping=True`, laplace-torch's approximate sum with the prior, is not offered.
            CurvatureError: a factor is not finite.
        """
        if damping:
            raise NotImplementedError("damping=True is not offered: the prior precision is added exactly")
        pairs = each_factor(symmetric_eigenvectors, self.grouped, self.names)
        eigenvalues = [[values for values, _ in blocks] for blocks in pairs]
        eigenvectors = [[basis for _, basis in blocks] for blocks in pairs]
        return BlockKronDecomposed(eigenvectors, eigenvalues, group_axes=self.group_axes)

    def _bmm(self, W: Tensor) -> Tensor:
        return _apply_blocks(
            W, [_shape(fs) for fs in self.grouped], self.group_axes, [_product(fs) for fs in self.grouped]
        )

    def logdet(self) -> Tensor:
        """Sum over tensors of the log-determinant, without any prior, in float64; minus infinity where singular."""
        values = each_factor(symmetric_eigenvalues, self.grouped, self.names)
        return sum((eigenvalue_grid([v.double() for v in block]).log().sum() for block in values), torch.zeros(()))

    def diag(self) -> Tensor:
        """Diagonal `(P,)`, in the order of `model.parameters()`."""
        grids = [eigenvalue_grid([factor.diagonal(dim1=1, dim2=2) for factor in fs]) for fs in self.grouped]
        return torch.cat([_from_groups(g, axis).flatten() for g, axis in zip(grids, self.group_axes, strict=True)])

    def to_matrix(self) -> Tensor:
        """Dense `(P, P)`, in the order of `model.parameters()`; for tests and small networks."""
        size = sum(torch.Size(_shape(fs)).numel() for fs in self.grouped)
        return self.bmm(torch.eye(size, dtype=self.grouped[0][0].dtype, device=self.grouped[0][0].device)).reshape(
            size, size
        )


class BlockKronDecomposed(KronDecomposed):
    """Eigendecomposed factors plus a precision for each tensor; laplace-torch's posterior precision.

    Args:
        eigenvectors: for each tensor one or two `(G, d, d)` or `(1, d, d)`.
        eigenvalues: the matching `(G, d)` or `(1, d)`.
        deltas: precision for each tensor, or one for all.
        group_axes: as in `BlockKron`.
    """

    def __init__(self, eigenvectors, eigenvalues, deltas: Tensor | None = None, *, group_axes: list[int | None]):
        super().__init__(eigenvectors, eigenvalues, deltas)
        self.group_axes = group_axes

    def clone(self) -> "BlockKronDecomposed":
        """A copy that shares nothing with this one."""
        vectors, values = (
            [[part.clone() for part in block] for block in blocks] for blocks in (self.eigenvectors, self.eigenvalues)
        )
        return BlockKronDecomposed(vectors, values, self.deltas.clone(), group_axes=list(self.group_axes))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """`torch.allclose` compares the matrices, as one would those of `to_matrix`."""
        if function is not torch.allclose:
            return NotImplemented
        return function(*(a.to_matrix() if isinstance(a, KronDecomposed) else a for a in args), **(kwargs or {}))

    def _with(self, eigenvalues: list[list[Tensor]], deltas: Tensor) -> "BlockKronDecomposed":
        return BlockKronDecomposed(self.eigenvectors, eigenvalues, deltas, group_axes=self.group_axes)

    def __add__(self, deltas: Tensor) -> "BlockKronDecomposed":
        """Adds a precision for each tensor (or one for all)."""
        self._check_deltas(deltas)
        return self._with(self.eigenvalues, self.deltas + deltas)

    __radd__ = __add__

    def __mul__(self, scalar: float | Tensor) -> "BlockKronDecomposed":
        """The curvature, not the added precisions, times a scalar, as in laplace-torch."""
        return self._with(
            [[ls * scalar ** (1 / len(block)) for ls in block] for block in self.eigenvalues], self.deltas
        )

    __rmul__ = __mul__

    def _grids(self) -> list[Tensor]:
        deltas = self.deltas.expand(len(self))
        return [eigenvalue_grid(ls) + delta for ls, delta in zip(self.eigenvalues, deltas, strict=True)]

    def logdet(self) -> Tensor:
        """Log-determinant of curvature plus precisions, summed in float64."""
        return sum((grid.double().log().sum() for grid in self._grids()), torch.zeros(())).to(self.deltas.dtype)

    def _bmm(self, W: Tensor, exponent: float = -1) -> Tensor:
        grids = [grid**exponent for grid in self._grids()]
        maps = [_spectral_map(basis, grid) for basis, grid in zip(self.eigenvectors, grids, strict=True)]
        return _apply_blocks(W, [grid.shape for grid in grids], self.group_axes, maps)

    def diag(self, exponent: float = 1) -> Tensor:
        """Diagonal `(P,)` of the given power."""
        parts = []
        for basis, grid, axis in zip(self.eigenvectors, self._grids(), self.group_axes, strict=True):
            part = grid**exponent
            if len(basis) == 2:
                part = part @ basis[1].square().mT
            parts.append(_from_groups(basis[0].square() @ part, axis).flatten())
        return torch.cat(parts)

    def to_matrix(self, exponent: float = 1) -> Tensor:
        """Dense `(P, P)` of the given power, for tests and small networks."""
        size = sum(grid.numel() for grid in self._grids())
        identity = torch.eye(size, dtype=self.deltas.dtype, device=self.deltas.device)
        return self._bmm(identity[None], exponent)[0]


def _scaled_last(parts: list[Factor]) -> list[Factor]:
    """The same product with its scale on the last factor: there laplace-torch mends 1/N when a fit is added to."""
    scale = prod(part.scale for part in parts)
    return [replace(part, scale=1.0) for part in parts[:-1]] + [replace(parts[-1], scale=scale)]


def _shapes(kron: Kron) -> list[list[torch.Size]]:
    return [[factor.shape for factor in factors] for factors in kron.kfacs]


def _is_start(other: Any) -> bool:
    return type(other) is Kron and not any(factor.any() for factors in other.kfacs for factor in factors)


def _shape(factors: list[Tensor]) -> tuple[int, int, int]:
    """`(G, I, J)` of the tensor that the factors belong to; J is 1 for a single factor."""
    groups = max(factor.shape[0] for factor in factors)
    return groups, factors[0].shape[1], factors[1].shape[1] if len(factors) == 2 else 1


def _from_groups(grouped: Tensor, axis: int | None) -> Tensor:
    """`(..., G, I, J)` to the tensor's own order of axes."""
    return grouped.transpose(-3, -2) if axis == 1 else grouped


def _product(factors: list[Tensor]):
    def apply(grouped: Tensor) -> Tensor:
        left = factors[0] @ grouped
        return left @ factors[1].mT if len(factors) == 2 else left

    return apply


def _spectral_map(basis: list[Tensor], grid: Tensor):
    def apply(grouped: Tensor) -> Tensor:
        rotated = basis[0].mT @ grouped
        if len(basis) == 1:
            return basis[0] @ (rotated * grid)
        return basis[0] @ (rotated @ basis[1] * grid) @ basis[1].mT

    return apply


def _apply_blocks(W: Tensor, shapes, group_axes, maps) -> Tensor:
    """Apply one linear map a tensor to the rows of `W (B, K, P)`, each seen as `(G, I, J)`."""
    rows = W.reshape(-1, W.shape[-1])
    pieces = rows.split([torch.Size(shape).numel() for shape in shapes], dim=1)
    results = []
    for piece, (groups, first, second), axis, apply in zip(pieces, shapes, group_axes, maps, strict=True):
        stored = (first, groups, second) if axis == 1 else (groups, first, second)
        grouped = _from_groups(piece.unflatten(1, stored), axis)
        results.append(_from_groups(apply(grouped), axis).flatten(1))
    return torch.cat(results, dim=1).view_as(W)
