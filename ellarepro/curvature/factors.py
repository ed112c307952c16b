"""Sums of outer products: the arithmetic that every Kronecker factor is made of, and how a running sum is kept."""

from typing import Any

import torch
from torch import Tensor

_SPLIT = 512
"""From this width on, the product is taken by halves and its lower left part mirrored: about half the arithmetic."""


def second_moment(rows: Tensor) -> Tensor:
    """Sum of a a^T over all but the first and last axes of `rows (G, ..., d)`: `(G, d, d)`."""
    groups, width = rows.shape[0], rows.shape[-1]
    return add_second_moment_(rows.new_zeros(groups, width, width), rows)


def add_second_moment_(total: Tensor, rows: Tensor) -> Tensor:
    """Add, in place, the second moments of `rows (G, ..., d)` to `total`.

    Args:
        total: `(G, d, d)`, group by group, or `(1, d, d)`, in which the sum also goes over groups.
        rows: `(G, ..., d)`.
    """
    if total.shape[0] == 1:
        _add_gram_(total[0], rows)
    elif total.device.type != "cpu":
        flat = rows.flatten(1, -2)
        total.baddbmm_(flat.mT, flat)
    else:
        for block, group_rows in zip(total, rows, strict=True):
            _add_gram_(block, group_rows)
    return total


def _add_gram_(total: Tensor, rows: Tensor) -> None:
    """total `(d, d)` += sum of a a^T over all leading axes of `rows (..., d)`."""
    if _positions_last(rows):
        by_sample = rows.flatten(0, -3)
        total.add_(torch.bmm(by_sample.transpose(1, 2), by_sample).sum(0))
        return
    flat = rows.flatten(0, -2)
    width = flat.shape[1]
    if width < _SPLIT:
        total.addmm_(flat.T, flat)
        return
    half = width // 2
    left, right = flat[:, :half], flat[:, half:]
    _add_gram_(total[:half, :half], left)
    _add_gram_(total[half:, half:], right)
    cross = left.T @ right
    total[:half, half:] += cross
    total[half:, :half] += cross.T


def _positions_last(rows: Tensor) -> bool:
    """Whether rows are a transposed view `(N, d, S)`, S long: flattening would copy, products a sample do not."""
    return rows.ndim >= 3 and rows.stride(-1) != 1 and rows.stride(-2) == 1 and rows.shape[-2] >= rows.shape[-1]


class MomentSum:
    """Running sum of a a^T over rows a, group by group: kept by its rows while they are fewer than they are wide.

    Few rows take less memory than the matrix, and their inner products have all of its eigenvalues but zeros.

    Args:
        matrix: the sum so far, if there is one, which later ones are added to in place.

    Attributes:
        rows: those kept, each `(G, R, d)`; none once there is a matrix.
        matrix: `(G, d, d)`, once there were d rows or more.
    """

    def __init__(self, matrix: Tensor | None = None):
        self.rows: list[Tensor] = []
        self.matrix = matrix

    def add_rows_(self, rows: Tensor, across_groups: bool = False) -> None:
        """Add the second moments of `rows (G, ..., d)`, or with `across_groups` their sum over groups, as one group."""
        groups, width = 1 if across_groups else rows.shape[0], rows.shape[-1]
        count = rows.numel() // (groups * width)
        if self.matrix is None and self._rows_kept() + count < width:
            # A copy: an activation in place may still change what the rows are a view of.
            self.rows.append(rows.clone(memory_format=torch.contiguous_format).view(groups, count, width))
        else:
            add_second_moment_(self._to_matrix(rows, groups), rows)

    def add_matrix_(self, matrix: Tensor) -> None:
        """Add what is a sum already, `(G, d, d)`."""
        self._to_matrix(matrix, len(matrix)).add_(matrix)

    def _rows_kept(self) -> int:
        return sum(rows.shape[1] for rows in self.rows)

    def _kept(self) -> list[Tensor]:
        return self.rows if self.matrix is None else [self.matrix]

    def _to_matrix(self, like: Tensor, groups: int) -> Tensor:
        """The matrix from now on, of `groups` and of the width and kind of `like (..., d)`."""
        if self.matrix is None:
            self.matrix = like.new_zeros(groups, like.shape[-1], like.shape[-1])
            if self.rows:
                add_second_moment_(self.matrix, torch.cat(self.rows, 1))
                self.rows = []
        return self.matrix

    def dense(self) -> Tensor:
        """The sum as a matrix, `(G, d, d)`."""
        return second_moment(torch.cat(self.rows, 1)) if self.matrix is None else self.matrix

    def smallest(self) -> Tensor:
        """`(G, r, r)`: the smallest matrix at hand that has the nonzero eigenvalues of the sum."""
        if self.matrix is not None:
            # Of a unit that no datum reaches, or that is never active, there is nothing but zeros.
            used = self.matrix.diagonal(dim1=1, dim2=2).any(0)
            return self.matrix if used.all() else self.matrix[:, used][:, :, used]
        rows = torch.cat(self.rows, 1)
        # A sample that needed no more class passes has left rows of zeros.
        rows = rows[:, rows.any(2).any(0)]
        rows = rows[:, :, rows.any(1).any(0)]
        return rows @ rows.mT if rows.shape[1] <= rows.shape[2] else second_moment(rows)

    @property
    def shape(self) -> tuple[int, int]:
        """How many matrices there are to decompose, and their width at most: `(G, R)` or `(G, d)`."""
        if self.matrix is not None:
            return self.matrix.shape[0], self.matrix.shape[1]
        return self.rows[0].shape[0], self._rows_kept()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(t.nbytes for t in self._kept())

    @property
    def decomposition_nbytes(self) -> int:
        """Bytes that its decomposition takes beside them: the matrix, symmetrised, and what LAPACK overwrites."""
        groups, width = self.shape
        copies = 3 if self.matrix is None else 2
        return copies * groups * width**2 * self._kept()[0].element_size()

    def state_dict(self) -> dict[str, Any]:
        """The sum so far, as tensors."""
        return {"rows": list(self.rows), "matrix": self.matrix}

    @classmethod
    def of_state(cls, state: dict[str, Any], device: torch.device) -> "MomentSum":
        """The sum of which `state` was, on `device`; a copy, as it is added to in place."""
        total = cls(None if state["matrix"] is None else state["matrix"].to(device, copy=True))
        total.rows = [rows.to(device) for rows in state["rows"]]
        return total
