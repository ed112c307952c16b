"""The paper's tables, ours beside the published numbers.

    python -m ellarepro.tables table1|table2|table3 [--runs DIR]... [--format md|tex|csv] [--budget NAME]

Runs of different budgets, data sources or settings never share a table: each such edition is printed on its own.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ellarepro.editions import SETTINGS, Edition, augmentation, editions, source
from ellarepro.errors import UserError
from ellarepro.rendering import RENDERERS, Cell, Grid, Row
from ellarepro.results import RunResult, flatten, read_results

RUNS = Path("results/runs")

SHARE_KEYS = {"fc": ("fc", "f_fc"), "conv": ("conv",), "gconv": ("gconv",)}


@dataclass(frozen=True)
class Measure:
    """A number of a run: `read` gives it (a value a layer for kind "layers"; none where the run has none)."""

    read: Callable[[RunResult], Sequence[float | None]]
    digits: int
    kind: str = "seeds"


@dataclass(frozen=True)
class Line:
    """A row or a column: which runs it takes ({field: possible values}), what it shows and is called."""

    labels: tuple[str, ...]
    match: Mapping[str, tuple[str, ...]]
    measure: str | None = None

    def takes(self, run: RunResult) -> bool:
        """Return whether `run` belongs here."""
        return all(getattr(run, name) in values for name, values in self.match.items())


@dataclass(frozen=True)
class Spec:
    """A table: its caption, its lines by key, and the settings whose runs are kept apart.

    With `by_dataset`, a row stands for several data sets and is repeated for each that was run.
    """

    caption: str
    headers: tuple[str, ...]
    columns: Mapping[str, Line]
    rows: Mapping[str, Line]
    apart: tuple[str, ...]
    by_dataset: bool = False


def _shares(path: str) -> Measure:
    def read(run: RunResult) -> list[float]:
        layers = run.relative_effective_parameters.values()
        return [share for layer in layers for key, share in layer.items() if key in SHARE_KEYS[path]]

    return Measure(read, 0, "layers")


MEASURES = {
    "accuracy": Measure(lambda r: [100 * r.test_accuracy], 2),
    "nll": Measure(lambda r: [r.test_nll], 3),
    "marglik": Measure(lambda r: [r.neg_log_marglik_per_datum], 3),
    "n_params": Measure(lambda r: [r.n_params / 1e6], 2, "count"),
    **{path: _shares(path) for path in SHARE_KEYS},
}

_SCORES = {
    f"{objective}/{measure}": Line((f"{title} {label}",), {"objective": (objective,)}, measure)
    for objective, title in (("map", "MAP"), ("laplace", "Laplace"))
    for measure, label in (("nll", "NLL ↓"), ("accuracy", "acc. % ↑"), ("marglik", "-marglik ↓"))
    if (objective, measure) != ("map", "marglik")
}

_SPARSE_LAYERS = (("s_fc", "S-FC"), ("s_conv", "S-CONV"), ("s_fc_s_conv", "S-FC+S-CONV"))
_PRIOR_LAYERS = (
    (
        "theta",
        (("fc", "FC"), ("conv", "CONV"), ("fc_conv", "FC+CONV"), ("f_fc", "F-FC"), ("f_fc_conv", "F-FC+CONV")),
    ),
    ("u", _SPARSE_LAYERS),
    ("omega", _SPARSE_LAYERS),
)

TOY = ("quadrant_digit", "quadrant_digit_and_position")

SPECS = {
    "table1": Spec(
        "Table 1: toy problem, test accuracy in %",
        ("task",),
        {
            f"{objective}/{layer}": Line((label,), {"objective": (objective,), "layer": (layer,), "prior": ("theta",)})
            for objective, layer, label in (
                ("map", "fc", "MAP FC"),
                ("map", "conv", "MAP CONV"),
                ("laplace", "fc", "Laplace FC"),
                ("laplace", "conv", "Laplace CONV"),
                ("laplace", "f_fc_conv", "Laplace F-FC+CONV"),
            )
        },
        {
            **{dataset: Line((dataset,), {"dataset": (dataset,)}, "accuracy") for dataset in TOY},
            "n_params": Line(("parameters (M)",), {"dataset": TOY}, "n_params"),
        },
        apart=("budget", "source", "scale"),
    ),
    "table2": Spec(
        "Table 2: CIFAR-10",
        ("layer", "learnable", "prior"),
        {"n_params": Line(("params (M)",), {}, "n_params"), **_SCORES},
        {
            f"{layer}/{prior}": Line(
                (label, "yes" if "+" in label else "no", prior),
                {"dataset": ("cifar10", "cifar10_jpeg"), "layer": (layer,), "prior": (prior,)},
            )
            for prior, layers in _PRIOR_LAYERS
            for layer, label in layers
        },
        apart=("budget", "dataset", "source", "augmentation", "scale"),
    ),
    "table3": Spec(
        "Table 3: F-FC+CONV+GCONV; FC, CONV, GCONV are relative effective parameters in %, mean (min–max) of layers",
        ("dataset",),
        {
            "n_params": Line(("params (M)",), {}, "n_params"),
            **_SCORES,
            **{f"laplace/{path}": Line((path.upper(),), {"objective": ("laplace",)}, path) for path in SHARE_KEYS},
        },
        {
            dataset: Line((dataset,), {"dataset": (dataset, f"{dataset}_jpeg"), "layer": ("f_fc_conv_gconv",)})
            for dataset in ("mnist", "translated_mnist", "rotated_mnist", "cifar10", "rotated_cifar10")
        },
        apart=("budget", "data"),
        by_dataset=True,
    ),
}


@cache
def published() -> dict[str, Any]:
    """Return the published numbers: {table: {protocol, rows: {row: {column: number or [mean, min, max]}}}}."""
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("published.yaml")))


def build_grids(table: str, runs: Iterable[RunResult], budget: str | None = None) -> list[Grid]:
    """Return the editions of `table` that `runs` make up (of one budget if given); one empty grid if there are none."""
    spec = SPECS[table]
    wanted = [run for run in runs if any(row.takes(run) for row in spec.rows.values())]
    chosen = [run for run in wanted if budget in (None, run.budget)]
    found = editions(chosen, spec.apart)
    if not found:
        others = sorted({run.budget for run in wanted})
        note = f"nothing has been run{f' with budget {budget}' if budget else ''}"
        note += f"; there are runs with budget {', '.join(others)}" if others else ""
        return [_grid(table, Edition({"budget": budget or "none"}, []), "nothing run", note)]
    return [_grid(table, edition, _heading(edition, found), _protocol(edition.runs)) for edition in found]


def _heading(edition: Edition, among: Sequence[Edition]) -> str:
    """Return what tells `edition` from the others; its scale, which a note gives in any case, only where it must."""
    same_budget = [other.settings for other in among if other.settings["budget"] == edition.settings["budget"]]
    several_scales = len({settings.get("scale") for settings in same_budget}) > 1
    return _describe({k: v for k, v in edition.settings.items() if k != "scale" or several_scales})


def _describe(settings: Mapping[str, str]) -> str:
    return ", ".join(
        value if name in SETTINGS and name != "budget" else f"{name} {value}" for name, value in settings.items()
    )


def _grid(table: str, edition: Edition, heading: str, note: str) -> Grid:
    spec = SPECS[table]
    return Grid(
        table=table,
        title=f"{spec.caption} ({heading})",
        headers=[*spec.headers, *(line.labels[0] for line in spec.columns.values())],
        rows=[
            Row(line.labels, [_cell(table, row, column, line, edition.runs) for column in spec.columns])
            for row, line in _row_lines(spec, edition.runs)
        ],
        notes=[
            "a cell is ours [published]; ± is the sample standard deviation over n seeds; – has not been run",
            note,
            f"published: {published()[table]['protocol']}",
        ],
        budget=edition.settings["budget"],
        source=", ".join(sorted({source(run) for run in edition.runs})),
        edition=_describe(edition.settings),
    )


def _row_lines(spec: Spec, runs: Sequence[RunResult]) -> list[tuple[str, Line]]:
    """Return (key, line) of each row; a row of several data sets becomes one for each data set that was run."""
    if not spec.by_dataset:
        return list(spec.rows.items())
    lines = []
    for key, line in spec.rows.items():
        datasets = sorted({run.dataset for run in runs if line.takes(run)})
        lines += [(key, Line((name,), {**line.match, "dataset": (name,)})) for name in datasets or [key]]
    return lines


def _cell(table: str, row: str, column: str, line: Line, runs: Sequence[RunResult]) -> Cell:
    across = SPECS[table].columns[column]
    measure = MEASURES[line.measure or across.measure]
    readings = [measure.read(run) for run in runs if line.takes(run) and across.takes(run)]
    number = published()[table]["rows"][row].get(column, [])
    return Cell(
        row=line.labels[0] if SPECS[table].by_dataset else row,
        column=column,
        runs=[values for values in readings if values and None not in values],
        published=number if isinstance(number, list) else [number],
        digits=measure.digits,
        kind=measure.kind,
    )


def _protocol(runs: Sequence[RunResult]) -> str:
    """Return in one line what `runs` have in common and how they spread: size, data, epochs, seeds, code."""

    def several(values: Iterable[Any], form: Callable[[Any], str] = str) -> str:
        return " or ".join(form(value) for value in sorted(set(values)))

    configs = [dict(flatten(run.config)) for run in runs]
    seeds = sorted({run.seed for run in runs})
    fit_sizes = {config.get("objective.fit_size") for config in configs} - {None}
    parts = [
        f"alpha {several(config.get('alpha', 'unknown') for config in configs)}",
        f"{several((run.train_size for run in runs), '{:,}'.format)} training images "
        f"({several(map(source, runs))}, {several(map(augmentation, runs))})",
        f"{several((run.epochs for run in runs), '{:,}'.format)} epochs",
        f"optimiser {several(config.get('optimiser.name', 'unknown') for config in configs)}",
        f"curvature from {several(fit_sizes)} images" if fit_sizes else "",
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})",
        f"code {several((run.git_commit for run in runs), _short_commit)}",
    ]
    return f"ours, budget {several(run.budget for run in runs)}: {'; '.join(filter(None, parts))}"


def _short_commit(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return f"{name[:8]}{dash}{dirty}"


def load_runs(table: str, folders: Sequence[Path]) -> list[RunResult]:
    """Return the runs below `folders`, each once; without folders, below `results/runs` and `results/<table>`.

    Raises:
        UserError: a named folder is missing or a result in it is damaged.
    """
    if not folders:
        folders = [folder for folder in (RUNS, RUNS.with_name(table)) if folder.is_dir()]
    found: dict[tuple[str, str], RunResult] = {}
    for run in (run for folder in folders for run in read_results(folder)):
        found.setdefault((run.run_id, run.data_fingerprint), run)
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=SPECS)
    parser.add_argument("--runs", type=Path, action="append", default=[], metavar="DIR", help="may be repeated")
    parser.add_argument("--format", choices=RENDERERS, default="md")
    parser.add_argument("--budget", metavar="NAME", help="show the runs of this budget only")
    options = parser.parse_args(arguments)
    try:
        grids = build_grids(options.table, load_runs(options.table, options.runs), options.budget)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(RENDERERS[options.format](grids), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
