"""What a learned Hamiltonian is measured by: its steps, and its invariance under rotations that no flow computed."""

from collections.abc import Callable

import torch
from torch import Tensor

from ellarepro.noether.systems import System, single_steps, symplectic_form

Hamiltonian = Callable[[Tensor], Tensor]


def midpoint_step(hamiltonian: Hamiltonian, x: Tensor, stride: float, iterations: int = 12) -> Tensor:
    """y `(B, d)` with y - x = stride J grad H((x + y) / 2), by fixed-point iteration; short strides need few."""
    form, end = symplectic_form(x.shape[1]).to(x), x
    for _ in range(iterations):
        middle = ((x + end) / 2).detach().requires_grad_()
        (slope,) = torch.autograd.grad(hamiltonian(middle).sum(), middle)
        end = x + stride * slope @ form.mT
    return end.detach()


def step_error(hamiltonian: Hamiltonian, system: System, trajectories: Tensor) -> float:
    """Mean squared error of one step, over states, steps and trajectories `(B, S + 1, d)`."""
    starts, ends = single_steps(trajectories)
    return (midpoint_step(hamiltonian, starts, system.stride) - ends).square().mean().item()


def asymmetry(hamiltonian: Hamiltonian, x: Tensor, moved: Tensor) -> float:
    """Root mean square of H(moved x) - H(x) over the standard deviation of H(x)."""
    with torch.no_grad():
        before, after = hamiltonian(x), hamiltonian(moved)
    return ((after - before).square().mean().sqrt() / before.std()).item()


def random_unitary(n: int, generator: torch.Generator) -> Tensor:
    """A Haar unitary U = R + i I as [[R, -I], [I, R]] `(2n, 2n)`, by QR (Mezzadri, 2007)."""
    parts = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
    unitary, upper = torch.linalg.qr(torch.complex(parts[0], parts[1]))
    unitary = unitary * (upper.diagonal() / upper.diagonal().abs())
    return torch.cat([torch.cat([unitary.real, -unitary.imag], 1), torch.cat([unitary.imag, unitary.real], 1)])


def turned_bodies(x: Tensor, angle: float, shift: tuple[float, float]) -> Tensor:
    """States of bodies in the plane `(B, 2 * bodies * 2)`, all turned by `angle` and all positions moved by `shift`."""
    cosine, sine = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])]).to(x)
    parts = x.reshape(len(x), 2, -1, 2) @ turn.mT
    parts[:, 0] += torch.tensor(shift).to(x)
    return parts.reshape(x.shape)
