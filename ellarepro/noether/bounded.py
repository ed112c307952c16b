"""The published table: a network of three layers, all weights integrated out by matrix-normal posteriors."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ellarepro.evidence.matrix_normal import MatrixNormal, kl_divergence
from ellarepro.noether.flows import Conserved
from ellarepro.noether.measures import asymmetry, random_unitary, step_error, turned_bodies
from ellarepro.noether.systems import System, oscillators, three_bodies

NOISE = 1e-3
"""The variance of observed ends, known, as in the released scripts."""
SPREAD = 0.1
"""Standard deviation of weights at the start, over their root mean square."""
FEW = 32
"""Draws of weights for the final bound; flows of predictions are twice as many."""


@dataclass(frozen=True)
class BoundedRun:
    """One fit by variational inference.

    Attributes:
        system: oscillators or bodies, three of either.
        symmetry: plain, learned, or oracle.
        trajectories: of `length` steps each.
        width: of both hidden layers.
        flows: tau a step; the published number is 100.
        learned: conserved quantities that are learned.
    """

    system: str
    symmetry: str
    seed: int
    trajectories: int = 100
    length: int = 20
    width: int = 64
    steps: int = 5000
    batch: int = 100
    flows: int = 6
    learned: int = 15
    lr: float = 3e-3
    lr_conserved: float = 1e-2

    @property
    def name(self) -> str:
        """Of its record."""
        return f"vi-{self.system}{self.trajectories * self.length}-{self.symmetry}-s{self.seed}"


class BoundedModel(nn.Module):
    """H(x) = E_tau F(flow_tau(x)), F a network d -> width -> width -> 1 with ELU of 2, and its posterior."""

    def __init__(self, system: System, conserved: Conserved, width: int, generator: torch.Generator):
        super().__init__()
        self.system, self.conserved = system, conserved
        self.weights, self.posteriors = nn.ParameterList(), nn.ModuleList()
        for inputs, outputs in itertools.pairwise((system.d, width, width, 1)):
            weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
            shift = torch.randn(outputs, generator=generator, dtype=torch.float64)
            for tensor in (weight, shift)[: 1 if outputs == 1 else 2]:
                self._integrate(nn.Parameter(tensor))

    def _integrate(self, mean: nn.Parameter) -> None:
        basis = [torch.eye(size, dtype=mean.dtype)[None] for size in mean.shape]
        values = [unit.new_ones(1, len(unit[0])) for unit in basis]
        values[0] *= SPREAD**2 * mean.detach().square().mean()
        self.weights.append(mean)
        self.posteriors.append(MatrixNormal(mean, list(zip(values, basis, strict=True)), None))

    @property
    def pairs(self) -> list[tuple[Tensor, MatrixNormal]]:
        """The mean of each tensor and its q."""
        return list(zip(self.weights, map(partial(cast, MatrixNormal), self.posteriors), strict=True))

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        """One draw of all weights."""
        return [mean + q.deviation(generator) for mean, q in self.pairs]

    def hamiltonian(self, weights: list[Tensor], flows: Tensor, x: Tensor) -> Tensor:
        """H `(B,)` at x `(B, d)`; the last layer has no shift, which no step depends on."""
        z = x @ flows[..., :-1].mT + flows[:, None, :, -1]
        first, shift, second, other, last = weights
        z = nn.functional.elu(z @ first.mT + shift, 2.0)
        return (nn.functional.elu(z @ second.mT + other, 2.0) @ last.mT).mean(0)[:, 0]

    def kl(self) -> Tensor:
        """KL of the posterior from the prior in nats, each precision at its optimum d / (tr Sigma + |M|^2)."""
        moments = [q.trace() + mean.square().sum() for mean, q in self.pairs]
        logs = [(mean.numel() / moment).log() for (mean, _), moment in zip(self.pairs, moments, strict=True)]
        return torch.stack([kl_divergence(q, mean, eta) for (mean, q), eta in zip(self.pairs, logs, strict=True)]).sum()

    def misfit(self, starts: Tensor, ends: Tensor, flows: int, generator: torch.Generator) -> Tensor:
        """-log p(y | x) in nats a datum, of one draw of weights and flows."""
        moves = self.conserved.flows(self.conserved.times(flows, generator))
        weights, middles = self.drawn(generator), ((starts + ends) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(self.hamiltonian(weights, moves, middles).sum(), middles, create_graph=True)
        residual = ends - starts - self.system.stride * slope @ self.system.form.mT
        return residual.square().sum(1).mean() / (2 * NOISE) + self.system.d / 2 * math.log(2 * math.pi * NOISE)


def fit(model: BoundedModel, data: tuple[Tensor, Tensor], wanted: BoundedRun, generator: torch.Generator) -> None:
    """Ascend the bound; A and b with it where they are learned."""
    starts, ends = data
    groups = [{"params": [*model.weights.parameters(), *model.posteriors.parameters()], "lr": wanted.lr}]
    if wanted.symmetry == "learned":
        groups.append({"params": [model.conserved.rows], "lr": wanted.lr_conserved})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, wanted.steps)
    for batch in itertools.islice(_batches(len(starts), wanted.batch, generator), wanted.steps):
        optimiser.zero_grad()
        (model.misfit(starts[batch], ends[batch], wanted.flows, generator) + model.kl() / len(starts)).backward()
        optimiser.step()
        schedule.step()


def _batches(size: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(size, generator=generator).split(batch)


def run(wanted: BoundedRun) -> dict[str, Any]:
    """Fit and measure; the record without its provenance."""
    generator = torch.Generator().manual_seed(wanted.seed)
    system = oscillators(3) if wanted.system == "oscillators" else three_bodies()
    data = system.observed(wanted.trajectories, wanted.length, NOISE**0.5, generator)
    conserved = Conserved.of(wanted.symmetry, system, wanted.learned, generator)
    model = BoundedModel(system, conserved, wanted.width, generator)
    fit(model, data, wanted, generator)
    found = {"config": asdict(wanted), "n_train": len(data[0])} | _measures(model, wanted, data, generator)
    return found | (conserved.beside(system) if wanted.symmetry == "learned" else {})


def _measures(
    model: BoundedModel, wanted: BoundedRun, data: tuple[Tensor, Tensor], generator: torch.Generator
) -> dict[str, Any]:
    system, count = model.system, len(data[0])
    misfits = [model.misfit(*data, wanted.flows, generator).item() for _ in range(FEW)]
    divergence = model.kl().item() / count
    with torch.no_grad():
        flows = model.conserved.flows(model.conserved.times(2 * FEW, generator))
    means = [mean.detach() for mean in model.weights]
    fitted, tested = lambda x: model.hamiltonian(means, flows, x), system.starts(200, generator)
    bodies = wanted.system == "bodies"
    turned = turned_bodies(tested, 2.0, (0.5, -0.3)) if bodies else tested @ random_unitary(3, generator).mT
    return {
        "nll_per_datum": sum(misfits) / FEW,
        "kl_per_datum": divergence,
        "neg_elbo_per_datum": sum(misfits) / FEW + divergence,
        "test_mse": step_error(fitted, system, system.trajectories(20, 10, generator)),
        "asymmetry": asymmetry(fitted, tested, turned),
    }
