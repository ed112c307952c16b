"""U(n): are the symmetries of n oscillators found from 28 observed steps? By the evidence in closed form."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ellarepro.noether.exact import ExactModel, ExactSettings
from ellarepro.noether.flows import Conserved
from ellarepro.noether.measures import asymmetry, random_unitary, step_error
from ellarepro.noether.systems import oscillators

TRAJECTORIES, STEPS = 7, 4
"""The released budget of one oscillator."""
FLOWS = 128
"""Of the final evidence and predictions; more than those of a training step."""


@dataclass(frozen=True)
class AlgebraRun:
    """One fit to n oscillators.

    Attributes:
        n: of oscillators.
        seed: of data, features, start and flows.
        symmetry: plain, learned, or oracle (the known algebra, fixed).
        noise: standard deviation of the observed ends of steps.
        stretch: of the system, see `oscillators`; where it is not 1 the algebra is not that of the features' metric.
        draws: of the bound; infinity is the evidence by a step's flows.
    """

    n: int
    seed: int
    symmetry: str = "learned"
    noise: float = 1e-3
    stretch: float = 1.0
    draws: float = 8.0

    @property
    def name(self) -> str:
        """Of its record."""
        draws = f"{self.draws:g}"
        return f"u{self.n}-{self.symmetry}-noise{self.noise:g}-stretch{self.stretch:g}-draws{draws}-s{self.seed}"

    @property
    def settings(self) -> ExactSettings:
        """By n: features to span all quadratics, and steps."""
        features, steps = {1: (48, 600), 2: (48, 800), 3: (64, 1000), 4: (80, 1500), 5: (96, 3000)}[self.n]
        return ExactSettings(features, steps, draws=self.draws)


def run(wanted: AlgebraRun) -> dict[str, Any]:
    """Fit and measure; the record without its provenance."""
    generator = torch.Generator().manual_seed(wanted.seed)
    system = oscillators(wanted.n, wanted.stretch)
    data = system.observed(TRAJECTORIES, STEPS, wanted.noise, generator)
    conserved = Conserved.of(wanted.symmetry, system, 2 * wanted.n**2 + 10, generator)
    model = ExactModel(system, conserved, data, wanted.settings, generator)
    model.fit(learned=wanted.symmetry == "learned")
    found = {"config": asdict(wanted), "settings": asdict(wanted.settings), "n_train": len(data[0])}
    found |= _measures(model, wanted, generator)
    if wanted.symmetry == "learned":
        found |= conserved.beside(system)
        if not wanted.seed:
            leading = torch.linalg.svd(conserved.symmetric.detach(), full_matrices=False).Vh[: len(system.conserved)]
            found["leading"] = leading.mul(1e4).round().div(1e4).tolist()
    return found


def _measures(model: ExactModel, wanted: AlgebraRun, generator: torch.Generator) -> dict[str, Any]:
    system = model.system
    with torch.no_grad():
        bound = model.evidence(FLOWS, wanted.draws, generator)[0].item()
        evidence = model.evidence(FLOWS, float("inf"), generator)[0].item()
    fitted, tested = model.hamiltonian(FLOWS, generator), system.starts(200, generator)
    scale = torch.tensor([wanted.stretch, 1 / wanted.stretch]).repeat_interleave(wanted.n)
    turned = (tested * scale) @ random_unitary(wanted.n, generator).mT / scale
    return {
        "neg_bound_per_datum": -bound,
        "neg_log_evidence_per_datum": -evidence,
        "test_mse": step_error(fitted, system, system.trajectories(20, 10, generator)),
        "asymmetry": asymmetry(fitted, tested, turned),
        "noise_learned": (-model.log_noise / 2).exp().item(),
        "length": model.features.log_length.exp().item(),
    }
