"""The evidence of a Hamiltonian that is linear in its weights, in closed form, and its bound by draws of the flow.

F(x) = sum_j w_j phi_j(x), phi_j a random feature, and H(x) = E_tau F(flow_tau(x)). One step of the implicit midpoint
rule is linear in w, too:

    y - x = stride J grad H((x + y) / 2) + noise = R w + noise,   w ~ N(0, 1/delta),   noise ~ N(0, 1/beta).

Training takes fresh tau in each step, and an E over few of them leaves H a part that is not symmetric. Were w free to
follow these tau, a fit would be as good with any A. In the bound each likelihood has `draws` tau of its own:

    log p(D) >= log of the integral of p(w) exp(E log p(D | w, tau_1 ... tau_draws)) dw,

by Jensen's inequality. It needs E R and E R^T R only, is Gaussian in w, and its limit is the evidence of the E over all
tau.
"""

import math

import torch
from torch import Tensor, nn

from ellarepro.noether.systems import System


class RandomFeatures(nn.Module):
    """phi_j(x) = sqrt(2 / P) cos(omega_j^T x / length + phase_j): a network with a fixed first layer.

    Args:
        d: phase-space dimension.
        count: P.
        length: at the start; learned.
    """

    def __init__(self, d: int, count: int, length: float, generator: torch.Generator):
        super().__init__()
        self.omega: Tensor
        self.phase: Tensor
        self.register_buffer("omega", torch.randn(count, d, generator=generator, dtype=torch.float64))
        self.register_buffer("phase", 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64))
        self.log_length = nn.Parameter(torch.tensor(length, dtype=torch.float64).log())

    def _angles(self, x: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
        """omega^T g / length `(T, P, d)` for each flow g, and the cosine's angles at x `(T, B, P)`."""
        moved = self.omega / self.log_length.exp() @ flows
        slopes, shifts = moved[..., :-1], moved[..., -1]
        return slopes, x @ slopes.mT + (shifts + self.phase)[:, None]

    def values(self, x: Tensor, flows: Tensor) -> Tensor:
        """phi(g x) for each flow g, `(T, B, P)`."""
        return self._angles(x, flows)[1].cos() * math.sqrt(2 / len(self.phase))

    def gradients(self, x: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient in x of phi_p(g x) for each flow g: directions `(T, P, d)`, and factors on them `(T, B, P)`."""
        slopes, angles = self._angles(x, flows)
        return slopes, angles.sin() * -math.sqrt(2 / len(self.phase))


def moments(features: RandomFeatures, system: System, middles: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
    """The means over flows of R `(N d, P)` and of R^T R `(P, P)`, at the middles `(N, d)` of steps.

    As the gradient of a feature is a number times a direction, and J is orthogonal, R^T R is an elementwise product.
    """
    slopes, slants = features.gradients(middles, flows)
    slopes = system.stride * slopes
    mean = system.form @ torch.einsum("tbp,tpj->bjp", slants, slopes) / len(flows)
    second = torch.einsum("tpq,tpq->pq", slants.mT @ slants, slopes @ slopes.mT) / len(flows)
    return mean.flatten(0, 1), second


def log_evidence(
    mean: Tensor, second: Tensor, target: Tensor, precision: Tensor, noise: Tensor, draws: float
) -> tuple[Tensor, Tensor]:
    """The bound by `draws` tau a likelihood, in nats and summed over data, and the posterior mean of w `(P,)`.

    Args:
        mean: E R, `(N d, P)`.
        second: E R^T R, `(P, P)`.
        target: y - x, `(N d,)`.
        precision: delta.
        noise: beta.
        draws: infinity is the evidence of the mean over flows.
    """
    spread = (second - mean.mT @ mean) / draws
    gram = mean.mT @ mean + spread
    ratio = noise / precision
    root = torch.linalg.cholesky(torch.eye(len(gram), dtype=gram.dtype) + ratio * gram)
    weights = ratio * torch.cholesky_solve((target @ mean)[:, None], root)[:, 0]
    misfit = noise * ((target - mean @ weights).square().sum() + weights @ spread @ weights)
    log_det = 2 * root.diagonal().log().sum() - len(target) * (noise / (2 * math.pi)).log()
    return -(misfit + precision * weights.square().sum() + log_det) / 2, weights
