"""What the paper's tables consist of: which runs a row and a column take, what they show, and the published numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ellarepro.results import RunResult

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
