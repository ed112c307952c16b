"""Eigendecomposition of symmetric factors that fails loudly or not at all.

Policy: symmetrise; the own precision of the matrix, then float64, then float64 on the CPU; a matrix with a non-finite
entry is refused by name; eigenvalues below zero are rounding (factors are sums of squares), clipped and counted.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

log = logging.getLogger(__name__)

counts: Counter[str] = Counter()
"""What happened so far in this process: `float64`, `cpu` (fallbacks taken), `clipped` (eigenvalues below zero)."""


@contextmanager
def counted(total: Counter[str]) -> Iterator[None]:
    """What happens to decompositions within the context is added to `total`, too."""
    before = counts.copy()
    try:
        yield
    finally:
        total.update(counts - before)


class CurvatureError(ArithmeticError):
    """A factor that cannot be decomposed; the message names the tensor and what to change."""


def symmetric_eigenvalues(matrices: Tensor, name: str = "factor") -> Tensor:
    """Eigenvalues `(..., d)`, ascending and at least zero, of symmetric positive semi-definite `(..., d, d)`.

    Raises:
        CurvatureError: a non-finite entry, or no attempt converged.
    """
    return _decompose(matrices, name, vectors=False)[0]


def symmetric_eigenvectors(matrices: Tensor, name: str = "factor") -> tuple[Tensor, Tensor]:
    """As `symmetric_eigenvalues`, with the eigenvectors `(..., d, d)` in columns.

    Raises:
        CurvatureError: a non-finite entry, or no attempt converged.
    """
    values, basis = _decompose(matrices, name, vectors=True)
    assert basis is not None
    return values, basis


def _decompose(matrices: Tensor, name: str, vectors: bool) -> tuple[Tensor, Tensor | None]:
    if not torch.isfinite(matrices).all():
        raise CurvatureError(
            f"the curvature factor of {name} has non-finite entries: the network's outputs or gradients have "
            "overflowed; lower the learning rate or start from an earlier checkpoint"
        )
    symmetric = (matrices + matrices.mT).div_(2)
    for attempt, device in (("", symmetric.device), ("float64", symmetric.device), ("cpu", torch.device("cpu"))):
        converged = _attempt(symmetric.to(device, torch.float64 if attempt else symmetric.dtype), vectors)
        if converged is None:
            continue
        if attempt:
            counts[attempt] += 1
            log.info("eigendecomposition of %s %s: fell back to %s", name, tuple(matrices.shape), attempt)
        values, basis = converged[0].to(symmetric), None if converged[1] is None else converged[1].to(symmetric)
        counts["clipped"] += int((values < 0).sum())
        return values.clamp_min(0), basis
    raise CurvatureError(f"no eigendecomposition of {name} {tuple(matrices.shape)} converged, in float64 on the CPU")


def _attempt(matrices: Tensor, vectors: bool) -> tuple[Tensor, Tensor | None] | None:
    try:
        values, basis = torch.linalg.eigh(matrices) if vectors else (torch.linalg.eigvalsh(matrices), None)
    except torch.linalg.LinAlgError:
        return None
    finite = torch.isfinite(values).all() and (basis is None or torch.isfinite(basis).all())
    return (values, basis) if finite else None
