"""The runs of a budget as tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ellarepro.tables.markdown import markdown_table, mean_cell, sections

PUBLISHED = {
    ("oscillators", "plain"): ("-6.77", "2.14e-05"),
    ("oscillators", "learned"): ("-9.63", "9.9e-06"),
    ("oscillators", "oracle"): ("-9.94", "9.0e-06"),
    ("bodies", "plain"): ("-9.52", "0.0016"),
    ("bodies", "learned"): ("-12.81", "0.0006"),
    ("bodies", "oracle"): ("-11.32", "0.0006"),
}
"""-ELBO/N in nats and test MSE, at the published size."""
SYSTEMS = {"oscillators": "Three oscillators", "bodies": "Three bodies"}
SYMMETRIES = ("plain", "learned", "oracle")
CONTROLS = {
    "-stretch1.5-": "two oscillators, q and p stretched by 1.5 and 1 / 1.5",
    "-noise0.0316228-": "one oscillator, noise of variance 0.001 as published",
    "-drawsinf-": "two oscillators, the evidence of each step's flows in place of the bound",
}
"""By a part of the records' names."""
ANGLES = "system | seeds | largest angle, degrees: median | worst | within 1 | gap of singular values"
Records = Mapping[str, Any]
Table = tuple[str, Sequence[Sequence[str]]]
"""Title and lines, the first of which holds the headers."""


def read_records(folder: Path) -> Records:
    """The records of a budget by name."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def main_records(records: Records, n: int) -> list[Any]:
    """Those of n oscillators in the main experiment, by seed."""
    names = (f"u{n}-learned-noise0.001-stretch1-draws8-s{seed}" for seed in range(10))
    return [records[name] for name in names if name in records]


def study(records: Records) -> str:
    """The page of all runs of a budget."""
    parts = (part for title, lines in tables(records) for part in (f"## {title}", markdown_table(lines, labels=1)))
    return sections("# Noether's razor: the runs", *parts)


def tables(records: Records) -> list[Table]:
    """Those that have runs."""
    sizes = sorted({record["n_train"] for name, record in records.items() if name.startswith("vi-")})
    bounded = (_bounded(records, system, size) for system in SYSTEMS for size in sizes)
    found = (_algebras(records), _controls(records), _closed(records), *bounded)
    return [(title, lines) for title, lines in found if len(lines) > 1]


def _table(title: str, header: str, lines: Sequence[Sequence[str]]) -> Table:
    """The header's cells are separated by bars."""
    return title, [header.split(" | "), *lines]


def _algebras(records: Records) -> Table:
    own = {f"U({n})": main_records(records, n) for n in range(1, 6)}
    lines = [
        (name, *_angle_cells(runs), _mean(runs, "asymmetry"), f"{sum(run['cpu_seconds'] for run in runs):.0f}")
        for name, runs in own.items()
        if runs
    ]
    return _table("The algebra of n oscillators", f"{ANGLES} | asymmetry | CPU seconds, all", lines)


def _angle_cells(own: Sequence[Any]) -> tuple[str, ...]:
    """Seeds, median and worst largest angle, how many are within a degree, the smallest ratio of singular values."""
    largest = [max(record["angles"]) for record in own]
    gaps = [record["singular_values"][len(record["angles"]) - 1 :] for record in own]
    within = f"{sum(angle <= 1 for angle in largest)} of {len(own)}"
    return (
        str(len(own)),
        f"{median(largest):.2f}",
        f"{max(largest):.2f}",
        within,
        f"{min(a / b for a, b, *_ in gaps):.0f}",
    )


def _controls(records: Records) -> Table:
    own = {label: [r for name, r in records.items() if part in name] for part, label in CONTROLS.items()}
    return _table("Controls", ANGLES, [(label, *_angle_cells(runs)) for label, runs in own.items() if runs])


def _closed(records: Records) -> Table:
    own = {s: [r for name, r in records.items() if name.startswith(f"u3-{s}-")] for s in SYMMETRIES}
    keys = ("neg_bound_per_datum", "neg_log_evidence_per_datum", "test_mse", "asymmetry")
    header = "symmetry | seeds | minus the bound, nats a datum | minus the log evidence | test MSE | asymmetry"
    return _table("Three oscillators, in closed form", header, _mean_lines(own, keys))


def _bounded(records: Records, system: str, size: int) -> Table:
    own = {s: [r for name, r in records.items() if name.startswith(f"vi-{system}{size}-{s}-")] for s in SYMMETRIES}
    keys = ("neg_elbo_per_datum", "nll_per_datum", "kl_per_datum", "test_mse", "asymmetry")
    header = "symmetry | seeds | -ELBO/N | NLL/N | KL/N | test MSE | asymmetry | published -ELBO/N | published test MSE"
    lines = [(*line, *PUBLISHED[system, line[0]]) for line in _mean_lines(own, keys)]
    return _table(f"{SYSTEMS[system]}, variational inference, {size:,} observed steps", header, lines)


def _mean_lines(own: Mapping[str, Sequence[Any]], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """A line for each symmetry that has runs: seeds, and the mean of each of `keys`."""
    return [(name, str(len(runs)), *(_mean(runs, key) for key in keys)) for name, runs in own.items() if runs]


def _mean(records: Sequence[Any], key: str) -> str:
    return mean_cell([record[key] for record in records], ".3g")
