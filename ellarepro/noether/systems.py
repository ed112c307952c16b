"""Hamiltonian systems, their conserved quantities, and trajectories of them.

A state x is `(d,)` = (q, p), d = 2n. A quadratic C(x) = x^T A x / 2 + b^T x is written as one row (A, b), `(d^2 + d,)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor


def symplectic_form(d: int) -> Tensor:
    """J `(d, d)` of Hamilton's equations, dx/dt = J grad H(x)."""
    n = d // 2
    form = torch.zeros(d, d, dtype=torch.float64)
    form[:n, n:], form[n:, :n] = torch.eye(n), -torch.eye(n)
    return form


@dataclass(frozen=True)
class System:
    """A Hamiltonian with the algebra of its known quadratic conserved quantities.

    Attributes:
        d: phase-space dimension.
        hamiltonian: `(B, d)` to `(B,)`.
        conserved: a basis of all quadratic conserved quantities, `(m, d^2 + d)`.
        oracle: those that the published oracle symmetrises over, `(k, d^2 + d)`.
        spread: standard deviation of initial positions and momenta.
        stride: time between observations.
    """

    d: int
    hamiltonian: Callable[[Tensor], Tensor]
    conserved: Tensor
    oracle: Tensor
    spread: tuple[float, float]
    stride: float

    @cached_property
    def form(self) -> Tensor:
        """J."""
        return symplectic_form(self.d)

    def starts(self, count: int, generator: torch.Generator) -> Tensor:
        """Initial states `(count, d)`."""
        scale = torch.tensor(self.spread).repeat_interleave(self.d // 2)
        return torch.randn(count, self.d, generator=generator, dtype=torch.float64) * scale

    def trajectories(self, count: int, steps: int, generator: torch.Generator) -> Tensor:
        """True states `(count, steps + 1, d)`, by DOP853 at tolerance 1e-10."""
        starts, times = self.starts(count, generator), np.arange(steps + 1) * self.stride

        def velocity(_: float, state: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(state).reshape(count, self.d).requires_grad_()
            (slope,) = torch.autograd.grad(self.hamiltonian(x).sum(), x)
            return (slope @ self.form.mT).flatten().numpy()

        solution = solve_ivp(
            velocity, (0, times[-1]), starts.flatten().numpy(), "DOP853", times, rtol=1e-10, atol=1e-10
        )
        return torch.from_numpy(solution.y.T.reshape(steps + 1, count, self.d)).transpose(0, 1).contiguous()

    def observed(self, count: int, steps: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and ends `(count * steps, d)` of single steps, the ends with noise of standard deviation `noise`."""
        starts, ends = single_steps(self.trajectories(count, steps, generator))
        return starts, ends + noise * torch.randn(ends.shape, generator=generator, dtype=ends.dtype)


def single_steps(trajectories: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and ends `(B * S, d)` of the steps in `trajectories (B, S + 1, d)`."""
    return trajectories[:, :-1].flatten(0, 1), trajectories[:, 1:].flatten(0, 1)


def oscillators(n: int, stretch: float = 1.0) -> System:
    """n harmonic oscillators of one frequency, H = |stretch q|^2 / 2 + |p / stretch|^2 / 2.

    Their symmetry is U(n), conjugated by the stretch; without one, A is a complex Hermitian matrix R + i I as
    [[R, I], [-I, R]], and n^2 of them are independent.
    """
    scale = torch.tensor([stretch, 1 / stretch], dtype=torch.float64).repeat_interleave(n)
    matrices = []
    for i in range(n):
        for j in range(i, n):
            unit = torch.zeros(n, n, dtype=torch.float64)
            unit[i, j] = 1
            real, imaginary = (unit + unit.mT).clamp(max=1), unit - unit.mT
            matrices.append(torch.block_diag(real, real))
            if i < j:
                zero = torch.zeros_like(unit)
                matrices.append(torch.cat([torch.cat([zero, imaginary], 1), torch.cat([-imaginary, zero], 1)]))
    rows = torch.stack([_row(scale[:, None] * matrix * scale) for matrix in matrices])
    return System(2 * n, lambda x: (x * scale).square().sum(-1) / 2, rows, rows, (1.0, 1.0), 0.2)


def three_bodies() -> System:
    """Three equal masses in the plane, V = -sum 1 / sqrt(r^2 + 1), as in the released code.

    Conserved: total momentum, its three products, the centre's angular momentum, and all bodies'. The published oracle
    is SE(2): total momentum and angular momentum.
    """

    def hamiltonian(x: Tensor) -> Tensor:
        q, p = x.reshape(-1, 2, 3, 2).unbind(1)
        pairs = [(q[:, i] - q[:, j]).square().sum(1) for i in range(3) for j in range(i)]
        return p.square().sum((1, 2)) / 2 - sum((r + 1).rsqrt() for r in pairs)

    total = torch.zeros(2, 2, 12, dtype=torch.float64)  # of q and p, by axis
    for kind in range(2):
        for axis in range(2):
            total[kind, axis].reshape(2, 3, 2)[kind, :, axis] = 1
    (qx, qy), (px, py) = total
    zero = torch.zeros(12, 12, dtype=torch.float64)
    spins = [_product(qx * e, py * e) - _product(qy * e, px * e) for e in _bodies()]
    spin = _row(torch.stack(spins).sum(0))
    momentum = [_row(zero, px), _row(zero, py)]
    central = [_row(_product(*pair)) for pair in ((px, px), (px, py), (py, py))]
    conserved = [*momentum, *central, _row(_product(qx, py) - _product(qy, px)), spin]
    oracle = [*momentum, spin]
    return System(12, hamiltonian, torch.stack(conserved), torch.stack(oracle), (1.0, 0.5), 0.5)


def _bodies() -> list[Tensor]:
    """For each body, which entries of a state are its own."""
    return [torch.eye(3, dtype=torch.float64)[i].repeat_interleave(2).repeat(2) for i in range(3)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A of C(x) = (a^T x)(b^T x)."""
    return torch.outer(a, b) + torch.outer(b, a)


def _row(matrix: Tensor, vector: Tensor | None = None) -> Tensor:
    vector = torch.zeros(len(matrix), dtype=matrix.dtype) if vector is None else vector
    return torch.cat([matrix.flatten(), vector])
