"""The Laplace posterior's precision matrix P = beta H + diag(delta) as predictions use it: its powers times vectors."""

from typing import Protocol

import torch
from torch import Tensor

from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.spectra import Curvature, FullCurvature


class PosteriorPrecision(Protocol):
    """What predictions ask of P, in the order of `model.parameters()`."""

    def bmm(self, W: Tensor, exponent: float) -> Tensor:
        """P to the power `exponent` times the last axis of `W (B, K, P)`, in its shape."""


class FullPosterior:
    """P as one dense matrix `(P, P)`, float64, taken apart once."""

    def __init__(self, matrix: Tensor):
        self.values, self.vectors = torch.linalg.eigh(matrix)

    def bmm(self, W: Tensor, exponent: float) -> Tensor:
        """P to the power `exponent` times the last axis of `W`."""
        rotated = W.to(self.vectors) @ self.vectors
        return (rotated * self.values**exponent @ self.vectors.T).to(W)


def posterior_precision(curvature: Curvature, deltas: Tensor, factor: float = 1.0) -> PosteriorPrecision:
    """P for `deltas (L,)`, one a tensor, and a `factor` on the curvature, the noise's precision of a regression.

    Raises:
        CurvatureError: a factor of the curvature is not finite.
    """
    if isinstance(curvature, FullCurvature):
        return FullPosterior(factor * curvature.matrix + curvature.each_entry(deltas).to(curvature.matrix).diag())
    if curvature.blocks is None:
        raise ValueError("a kernel has no blocks to take a posterior from: take kron, kron_blockwise, diag or full")
    decomposed = BlockKron.from_blocks(curvature.blocks).decompose()
    return decomposed * factor + deltas.to(decomposed.eigenvalues[0][0])
