"""Eigenvalues of curvature blocks, and the log-determinants and effective numbers that need nothing more."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ellarepro.curvature.eigen import symmetric_eigenvalues
from ellarepro.curvature.structures import Block


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
        spectra: eigenvalues of each tensor's block in float64, in any shape; all at least zero.
        blocks: what they are the eigenvalues of, for a posterior.
    """

    def __init__(self, spectra: Sequence[Tensor], blocks: dict[str, Block] | None = None):
        self.blocks = blocks
        self.spectra = [spectrum.flatten() for spectrum in spectra]

    @classmethod
    def from_blocks(cls, blocks: dict[str, Block]) -> "SpectralCurvature":
        """Decompose blocks, eigenvalues only.

        Raises:
            CurvatureError: a factor is not finite.
        """
        factors = [block.factors for block in blocks.values()]
        values = each_factor(_double_eigenvalues, factors, list(blocks))
        return cls([eigenvalue_grid(v) for v in values], blocks)

    def log_det_ratio(self, precisions: Tensor) -> Tensor:
        """Sum over tensors and eigenvalues of log(1 + lambda / delta): exact for large and for small delta."""
        terms = [torch.log1p(s / d).sum() for s, d in zip(self.spectra, precisions.unbind(), strict=True)]
        return torch.stack([term.to(precisions.device) for term in terms]).sum()


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


def each_factor(function: Callable, kfacs: list[list[Tensor]], names: list[str]) -> list[list]:
    """`function(factor, name)` of every factor, computed once for a factor that two tensors share."""
    found = {}
    for factors, name in zip(kfacs, names, strict=True):
        for factor in factors:
            if id(factor) not in found:
                found[id(factor)] = function(factor, name)
    return [[found[id(factor)] for factor in factors] for factors in kfacs]


def _double_eigenvalues(factor: Tensor, name: str) -> Tensor:
    return symmetric_eigenvalues(factor, name).double()
