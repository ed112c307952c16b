"""Conserved quantities that are learned, their flows, and how near they come to a known algebra.

C_k(x) = x^T A_k x / 2 + b_k^T x generates the affine flow exp(tau [[J A, J b], [0, 0]]) of (x, 1).
"""

import math

import torch
from torch import Tensor, nn

from ellarepro.noether.systems import System, symplectic_form


class Conserved(nn.Module):
    """K quadratic conserved quantities.

    Args:
        rows: (A, b) of each, `(K, d^2 + d)`; only the symmetric part of A counts.
        d: phase-space dimension.
    """

    def __init__(self, rows: Tensor, d: int):
        super().__init__()
        self.d, self.rows = d, nn.Parameter(rows.clone())
        self.form: Tensor
        self.register_buffer("form", symplectic_form(d).to(rows))

    @classmethod
    def random(cls, count: int, d: int, spread: float, generator: torch.Generator) -> "Conserved":
        """Normal entries of standard deviation `spread`: off A = 0, where the evidence has no slope."""
        return cls(spread * torch.randn(count, d * d + d, generator=generator, dtype=torch.float64), d)

    @classmethod
    def of(cls, symmetry: str, system: System, count: int, generator: torch.Generator) -> "Conserved":
        """What a run starts from: `count` random ones if `learned`, the known ones as `oracle`, none if `plain`."""
        if symmetry == "learned":
            return cls.random(count, system.d, 0.35 * system.d**-0.5, generator)
        return cls(system.oracle if symmetry == "oracle" else system.oracle[:0], system.d)

    def beside(self, system: System) -> dict[str, list[float]]:
        """How many are independent, as singular values, descending, and `principal_angles` to the known ones."""
        rows = self.symmetric.detach()
        angles = principal_angles(rows, system.conserved, len(system.conserved))
        return {"singular_values": torch.linalg.svdvals(rows).tolist(), "angles": angles.tolist()}

    @property
    def symmetric(self) -> Tensor:
        """(A, b) `(K, d^2 + d)`, with A symmetric."""
        matrix = self.rows[:, : self.d**2].reshape(-1, self.d, self.d)
        return torch.cat([((matrix + matrix.mT) / 2).flatten(1), self.rows[:, self.d**2 :]], 1)

    def generators(self) -> Tensor:
        """[[J A, J b], [0, 0]] of each, `(K, d + 1, d + 1)`."""
        matrix, vector = self.symmetric.split([self.d**2, self.d], 1)
        affine = torch.cat([matrix.reshape(-1, self.d, self.d), vector[:, :, None]], 2)
        return nn.functional.pad(self.form @ affine, (0, 0, 0, 1))

    def flows(self, times: Tensor) -> Tensor:
        """exp(pi sum_k tau_k G_k) without its last row, `(T, d, d + 1)`, for times tau `(T, K)`."""
        return torch.matrix_exp(math.pi * torch.einsum("tk,kij->tij", times, self.generators()))[:, : self.d]

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """tau uniform in the unit ball, in pairs of opposite signs, `(count, K)`; a single row where K = 0."""
        width = len(self.rows)
        if not width:
            return self.rows.new_zeros(1, 0)
        direction = torch.randn(count // 2, width, generator=generator, dtype=torch.float64)
        radius = torch.rand(count // 2, 1, generator=generator, dtype=torch.float64) ** (1 / width)
        half = (nn.functional.normalize(direction) * radius).to(self.rows)
        return torch.cat([half, -half])


def principal_angles(rows: Tensor, algebra: Tensor, count: int) -> Tensor:
    """Degrees between the leading `count` right singular vectors of `rows` and the span of `algebra`, ascending.

    By their sines, which tell small angles where cosines do not (Bjorck and Golub, 1973).
    """
    leading = torch.linalg.svd(rows, full_matrices=False).Vh[:count]
    basis = torch.linalg.qr(algebra.mT).Q
    rest = leading - leading @ basis @ basis.mT
    return torch.rad2deg(torch.asin(torch.linalg.svdvals(rest).clamp(max=1))).flip(0)
