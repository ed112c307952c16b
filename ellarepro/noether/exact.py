"""Conserved quantities learned by ascending the evidence in closed form, beside the weights' prior and the noise."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ellarepro.noether.evidence import RandomFeatures, log_evidence, moments
from ellarepro.noether.flows import Conserved
from ellarepro.noether.systems import System


@dataclass(frozen=True)
class ExactSettings:
    """How the evidence is ascended.

    Attributes:
        features: P.
        flows: tau a step.
        draws: of the bound; see `evidence`.
        steps: of Adam.
        lr: of A and b; all rates fall to zero as (1 - step / steps)^2.
        lr_hyper: of the precision, noise and length, which are logarithms.
        shrinkage: precision of a Gaussian prior on A and b. A symmetry that no datum can tell goes to zero by it.
        length, precision, noise: at the start.
    """

    features: int
    steps: int
    flows: int = 16
    draws: float = 64
    lr: float = 0.01
    lr_hyper: float = 0.1
    shrinkage: float = 0.01
    length: float = 7.4
    precision: float = 2.5e-3
    noise: float = 1e4


class ExactModel(nn.Module):
    """The system's Hamiltonian with its conserved quantities, weights integrated out.

    Args:
        data: starts and ends of steps, `(N, d)` each.
    """

    def __init__(
        self,
        system: System,
        conserved: Conserved,
        data: tuple[Tensor, Tensor],
        settings: ExactSettings,
        generator: torch.Generator,
    ):
        super().__init__()
        self.system, self.data, self.settings, self.generator = system, data, settings, generator
        self.conserved = conserved
        self.features = RandomFeatures(system.d, settings.features, settings.length, generator)
        self.log_precision = nn.Parameter(torch.tensor(settings.precision, dtype=torch.float64).log())
        self.log_noise = nn.Parameter(torch.tensor(settings.noise, dtype=torch.float64).log())

    def evidence(self, flows: int, draws: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The bound in nats a datum by so many fresh flows; the posterior mean of w, and the flows."""
        moves = self.conserved.flows(self.conserved.times(flows, generator))
        starts, ends = self.data
        mean, second = moments(self.features, self.system, (starts + ends) / 2, moves)
        target, precision, noise = (ends - starts).flatten(), self.log_precision.exp(), self.log_noise.exp()
        value, weights = log_evidence(mean, second, target, precision, noise, draws)
        return value / len(starts), weights, moves

    def fit(self, learned: bool) -> None:
        """Ascend the bound; the conserved quantities stay as they are where they are not `learned`."""
        settings = self.settings
        hyper = [self.log_precision, self.log_noise, self.features.log_length]
        groups = [{"params": hyper, "lr": settings.lr_hyper}]
        groups += [{"params": [self.conserved.rows], "lr": settings.lr}] if learned else []
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, settings.steps, 2.0)
        for _ in range(settings.steps):
            optimiser.zero_grad()
            value, _, _ = self.evidence(settings.flows, settings.draws, self.generator)
            prior = settings.shrinkage / 2 * self.conserved.symmetric.square().sum()
            (prior / len(self.data[0]) - value).backward()
            optimiser.step()
            schedule.step()

    @torch.no_grad()
    def hamiltonian(self, flows: int, generator: torch.Generator) -> "FittedHamiltonian":
        """The posterior mean of H, by so many flows."""
        _, weights, moves = self.evidence(flows, self.settings.draws, generator)
        return FittedHamiltonian(self.features, weights, moves)


@dataclass(frozen=True)
class FittedHamiltonian:
    """H at fixed weights and flows."""

    features: RandomFeatures
    weights: Tensor
    flows: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """`(B, d)` to `(B,)`."""
        return self.features.values(x, self.flows).mean(0) @ self.weights
