"""What the paper's tables consist of: which runs a row and a column take, what they show, and the published numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ellarepro.network import LAYERS
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title, path_title
from ellarepro.tables.cells import NOT_RUN

TOY = ("quadrant_digit", "quadrant_digit_and_position")
CIFAR = ("cifar10", "cifar10_jpeg")
ROTATED = ("rotated_mnist", "rotated_cifar10", "rotated_cifar10_jpeg")
THREE_PATHS = "f_fc_conv_gconv"
SEPARABLE = (
    *("conv", "pgconv", "gconv", "sgconv", "dgconv"),
    *(THREE_PATHS, "f_fc_conv_sgconv", "f_fc_conv_dgconv"),
)
"""The layers of the appendix, in the order of its rows."""
SHARES = {"fc": "f_fc", "conv": "conv", "gconv": "gconv"}
"""Published column of Table 3 to the path whose share it shows."""
ARROWS = {1: "↑", -1: "↓"}


@dataclass(frozen=True)
class Measure:
    """A number of a run: `read` gives it (a value a layer for kind "layers"; none where the run has none).

    `better` is 1 where more is better, -1 where less is, and 0 where neither. `sampled` says whether it is a share of
    test samples, in percent, that is right by `RunResult.test_correct`.
    """

    read: Callable[[RunResult], Sequence[float]]
    digits: int
    kind: str = "seeds"
    better: int = 0
    sampled: bool = False


@dataclass(frozen=True)
class Line:
    """A row or a column: which runs it takes ({field: possible values}), what it shows and is called.

    `published` names the row of the published table whose numbers stand beside, if that is not the row's own name.
    """

    labels: tuple[str, ...]
    match: Mapping[str, tuple[str | int, ...]]
    measure: str = ""
    published: str | None = None

    def takes(self, run: RunResult) -> bool:
        """Return whether `run` belongs here."""
        return all(getattr(run, name) in values for name, values in self.match.items())


Rows = Mapping[str, Line]


@dataclass(frozen=True)
class Spec:
    """A table: its caption, its published lines by key, whether its rows are data sets, and what its heading tells.

    `heading` names keys in which all runs of an edition agree, `spans` further keys in which they need not; `expand`
    makes of the published rows those that are shown, given what was run.
    """

    caption: str
    headers: tuple[str, ...]
    columns: Mapping[str, Line]
    rows: Rows
    heading: tuple[str, ...]
    spans_datasets: bool
    spans: frozenset[str] = frozenset()
    expand: Callable[[Rows, Sequence[RunResult]], Rows] = lambda rows, runs: rows


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _shares(path: str) -> Measure:
    def read(run: RunResult) -> list[float]:
        return [shares[path] for shares in run.relative_effective_parameters.values() if path in shares]

    return Measure(read, 0, "layers")


MEASURES = {
    "accuracy": Measure(lambda r: [100 * value for value in _known(r.test_accuracy)], 2, better=1, sampled=True),
    "rmse": Measure(lambda r: _known(r.test_rmse), 4, better=-1),
    "nll": Measure(lambda r: _known(r.test_nll), 3, better=-1),
    "marglik": Measure(lambda r: _known(r.neg_log_marglik_per_datum), 3, better=-1),
    "train_accuracy": Measure(lambda r: [100 * value for value in r.series("train_accuracy")[-1:]], 2, better=1),
    "calibration": Measure(lambda r: _known(r.expected_calibration_error), 3, better=-1),
    "linearised_nll": Measure(lambda r: _known((r.linearised or {}).get("nll")), 3, better=-1),
    "bounds": Measure(lambda r: r.neg_log_marglik_bounds or [], 3, "bounds"),
    "n_params": Measure(lambda r: [r.n_params / 1e6], 2, "count"),
    "thousands": Measure(lambda r: [r.n_params / 1e3], 1, "count"),
    "seconds": Measure(lambda r: [r.wall_seconds], 0),
    **{column: _shares(path) for column, path in SHARES.items()},
}

LABELS = {
    "nll": "NLL",
    "accuracy": "acc. %",
    "marglik": "-marglik",
    "train_accuracy": "train acc. %",
    "calibration": "calibration error",
    "linearised_nll": "linearised NLL",
    "bounds": "-marglik bounds",
}
SHOWN, MORE = ("nll", "accuracy", "marglik"), ("train_accuracy", "calibration", "linearised_nll", "bounds")
"""What tables of both objectives show, and what they show instead where more is asked for."""
OF_LAPLACE = ("marglik", "linearised_nll", "bounds")


def _scores(measures: Sequence[str]) -> dict[str, Line]:
    """A column for each objective and measure that it has."""
    return {
        f"{objective}/{measure}": Line((f"{title} {_label(measure)}",), {"objective": (objective,)}, measure)
        for objective, title in (("map", "MAP"), ("laplace", "Laplace"))
        for measure in measures
        if objective == "laplace" or measure not in OF_LAPLACE
    }


def _label(measure: str) -> str:
    return f"{LABELS[measure]} {ARROWS.get(MEASURES[measure].better, '')}".strip()


_SCORES = _scores(SHOWN)


def _table1_column(objective: str, title: str, layer: str) -> Line:
    match = {"objective": (objective,), "layer": (layer,), "prior": ("theta",)}
    return Line((f"{title} {layer_title(layer)}",), match)


def _table2_row(layer: str, prior: str) -> Line:
    learnable = "yes" if len(LAYERS.get(layer, ())) > 1 else "no"
    match = {"dataset": CIFAR, "layer": (layer,), "prior": (prior,)}
    return Line((layer_title(layer), learnable, prior), match)


def _share_column(name: str, path: str) -> Line:
    return Line((path_title(path),), {"objective": ("laplace",)}, name)


def _with_other_layers(rows: Rows, runs: Sequence[RunResult]) -> Rows:
    """Table 2's rows and one for each other layer and prior that was run; three paths are Table 3's."""
    ran = sorted({(run.layer, run.prior) for run in runs if run.dataset in CIFAR and run.layer != THREE_PATHS})
    return {**rows, **{f"{key[0]}/{key[1]}": _table2_row(*key) for key in ran if f"{key[0]}/{key[1]}" not in rows}}


def _by_dataset(rows: Rows, runs: Sequence[RunResult]) -> Rows:
    """A row for each data set that was run of those that a published row stands for; the row itself if none was."""
    shown = {}
    for key, line in rows.items():
        for dataset in sorted({run.dataset for run in runs if line.takes(run)}) or [key]:
            shown[dataset] = Line((dataset,), {**line.match, "dataset": (dataset,)}, published=key)
    return shown


def _by_width(rows: Rows, runs: Sequence[RunResult]) -> Rows:
    """Of every data set that was run, a row for each width of a layer; the layer alone where it was not run."""
    shown = {}
    for dataset in sorted({run.dataset for run in runs if any(line.takes(run) for line in rows.values())}) or [NOT_RUN]:
        for key, line in rows.items():
            own = {(run.n_params, run.config["alpha"]) for run in runs if line.takes(run) and run.dataset == dataset}
            for size, alpha in sorted(own) or [(0, NOT_RUN)]:
                match = {**line.match, "dataset": (dataset,), "n_params": (size,)}
                shown[f"{dataset}/{key}/{alpha}"] = Line((dataset, *line.labels, str(alpha)), match)
    return shown


SPECS = {
    "table1": Spec(
        "Table 1: toy problem, test accuracy in %",
        ("task",),
        {
            f"{objective}/{layer}": _table1_column(objective, title, layer)
            for objective, title, layers in (
                ("map", "MAP", ("fc", "conv")),
                ("laplace", "Laplace", ("fc", "conv", "f_fc_conv")),
            )
            for layer in layers
        },
        {
            **{dataset: Line((dataset,), {"dataset": (dataset,)}, "accuracy") for dataset in TOY},
            "n_params": Line(("parameters (M)",), {"dataset": TOY}, "n_params"),
        },
        heading=("budget.name", "dataset.source"),
        spans_datasets=True,
    ),
    "table2": Spec(
        "Table 2: CIFAR-10",
        ("layer", "learnable", "prior"),
        {"n_params": Line(("params (M)",), {}, "n_params"), **_SCORES},
        {
            f"{layer}/{prior}": _table2_row(layer, prior)
            for prior, layers in (
                ("theta", ("fc", "conv", "fc_conv", "f_fc", "f_fc_conv")),
                ("u", ("s_fc", "s_conv", "s_fc_s_conv")),
                ("omega", ("s_fc", "s_conv", "s_fc_s_conv")),
            )
            for layer in layers
        },
        heading=("budget.name", "dataset.name", "dataset.source", "dataset.augment"),
        spans_datasets=False,
        expand=_with_other_layers,
    ),
    "table3": Spec(
        f"Table 3: {layer_title(THREE_PATHS)}; {', '.join(map(path_title, SHARES.values()))} are relative effective "
        "numbers of parameters in %, mean (min–max) of layers",
        ("dataset",),
        {
            "n_params": Line(("params (M)",), {}, "n_params"),
            **_SCORES,
            **{f"laplace/{name}": _share_column(name, path) for name, path in SHARES.items()},
        },
        {
            dataset: Line((dataset,), {"dataset": copies, "layer": (THREE_PATHS,)})
            for dataset, copies in (
                *((name, (name,)) for name in ("mnist", "translated_mnist", "rotated_mnist")),
                ("cifar10", CIFAR),
                ("rotated_cifar10", ("rotated_cifar10", "rotated_cifar10_jpeg")),
            )
        },
        heading=("budget.name",),
        spans_datasets=True,
        expand=_by_dataset,
    ),
    "appendix": Spec(
        "Appendix: separable group convolutions on rotated images",
        ("dataset", "layer", "alpha"),
        {
            "n_params": Line(("params (k)",), {}, "thousands"),
            **_SCORES,
            **{
                f"{objective}/seconds": Line((f"{title} s",), {"objective": (objective,)}, "seconds")
                for objective, title in (("map", "MAP"), ("laplace", "Laplace"))
            },
        },
        {layer: Line((layer_title(layer),), {"dataset": ROTATED, "layer": (layer,)}) for layer in SEPARABLE},
        heading=("budget.name",),
        spans_datasets=True,
        spans=frozenset({"alpha"}),
        expand=_by_width,
    ),
}

WITH_MORE = {
    "table1": replace(
        SPECS["table1"],
        headers=("task", "measure"),
        rows={
            f"{dataset}/{measure}": Line((dataset, _label(measure)), {"dataset": (dataset,)}, measure)
            for dataset in TOY
            for measure in ("nll", *MORE)
        },
    ),
    **{name: replace(SPECS[name], columns=_scores(MORE)) for name in ("table2", "table3", "appendix")},
}
"""The tables with what the paper does not print."""
MEASURED = {"published": SPECS, "more": WITH_MORE}
"""What the tables can show."""


@cache
def published() -> dict[str, Any]:
    """Return the published numbers: {table: {protocol, rows: {row: {column: number or [mean, min, max]}}}}."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("published.yaml"))))


def table_of(choices: Mapping[str, str]) -> str | None:
    """Return the table that a run of these `choices`, {field of its record: value}, is a cell of; None if of none."""

    def takes(line: Line) -> bool:
        return all(choices.get(name) in values for name, values in line.match.items())

    for name, spec in SPECS.items():
        if any(map(takes, spec.rows.values())) and any(map(takes, spec.columns.values())):
            return name
    return None
