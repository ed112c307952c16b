"""Sums of outer products: the arithmetic that every Kronecker factor is made of."""

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
