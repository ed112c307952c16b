"""What is tracked of a run: what it is called and grouped by, its curves, its summary. No W&B here.

Keys of layers and paths are `<measure>/<layer>/<path>`, with layers as in tables ("1" to "8", "head", or "all" at once)
and paths as in configurations. Measures are those that `python -m ellarepro.inspection` prints: `precision` (of the
factors of a path their product), `effective`, `relative` (percent), `share` (percent), `nll_change`, `accuracy_change`,
both with `_constant` as well, and `variance_ratio`. Lengthscales are `precision/<layer>/<path>.<tensor>`. The others
are `train/loss` (the objective: negative log joint a datum), `train/nll`, `train/accuracy`,
`marglik/neg_log_marglik_per_datum`, and of the summary `test/accuracy`, `test/nll`, `test/calibration_error`,
`parameters`, `wall_seconds`, `peak_memory/host` and `/gpu` (bytes).
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from ellarepro.inspection import path_rows
from ellarepro.layers.tensors import EVERYWHERE, LENGTHSCALE, WEIGHT, TensorInfo, by_path
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title
from ellarepro.symmetry.shares import effective_share, relative_effective_parameters
from ellarepro.tables import table_of

Numbers = dict[str, float]
_SUMMARY = {
    "test/accuracy": "test_accuracy",
    "test/nll": "test_nll",
    "test/rmse": "test_rmse",
    "test/calibration_error": "expected_calibration_error",
    "marglik/neg_log_marglik_per_datum": "neg_log_marglik_per_datum",
    "parameters": "n_params",
    "wall_seconds": "wall_seconds",
}
_USE = ("nll_change", "accuracy_change", "nll_change_constant", "accuracy_change_constant", "variance_ratio")
_BY_PATH = ("precision", "effective", "relative", "share", *_USE)
"""Fields of a `PathRow`."""


def identity(run_id: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what W&B shows a run under: `id`, `name`, `group`, `job_type`, `tags` and its resolved `config`.

    The group is the table that the run is a cell of and its budget; the id is the run's own, so that a run that is
    continued is the same run.
    """
    chosen = {group: config[group]["name"] for group in ("dataset", "layer", "prior", "objective", "budget")}
    table, layer = table_of(chosen) or "other", layer_title(chosen["layer"])
    prior = "" if chosen["prior"] == "theta" else f" prior {chosen['prior']}"
    return {
        "id": run_id,
        "name": f"{layer}{prior} {chosen['objective']} on {chosen['dataset']}, seed {config['seed']}",
        "group": f"{table} {chosen['budget']}",
        "job_type": chosen["objective"],
        "tags": [table, chosen["budget"], chosen["dataset"], layer, f"prior {chosen['prior']}"],
        "config": dict(config),
    }


def of_epoch(metrics: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Numbers:
    """Return the points of one epoch's curves; `metrics` as the trainer tells them, `tensors` what each tensor is."""
    found = {"train/loss": metrics["objective"], "train/nll": metrics["loss"]}
    found |= {f"train/{m}": metrics[f"train_{m}"] for m in ("accuracy", "rmse") if f"train_{m}" in metrics}
    if "neg_log_marglik_per_datum" not in metrics:
        return found
    effective = metrics["effective_parameters"]
    numbers = {key: sum(effective[name] for name in names) for key, names in by_path(tensors, WEIGHT).items() if names}
    found |= {f"effective/{layer}/{path}": number for (layer, path), number in numbers.items()}
    for measure, shares in (("relative", relative_effective_parameters), ("share", effective_share)):
        by_layer = shares(effective, tensors)
        found |= {f"{measure}/{layer}/{path}": own for layer, paths in by_layer.items() for path, own in paths.items()}
    found |= {f"hyperparameter/{name}": value for name, value in metrics.get("hyperparameters", {}).items()}
    return found | of_fit(metrics["neg_log_marglik_per_datum"], metrics["prior_precision"], tensors)


def of_fit(evidence: float, precision: Mapping[str, float], tensors: Mapping[str, TensorInfo]) -> Numbers:
    """Return the points of a fit that a run's record keeps: evidence (nats a datum) and precisions."""
    found = {"marglik/neg_log_marglik_per_datum": evidence}
    for (layer, path), names in by_path(tensors, WEIGHT).items():
        if names:
            found[f"precision/{layer}/{path}"] = prod(precision[name] for name in names)
    for (layer, path), names in by_path(tensors, LENGTHSCALE).items():
        found |= {f"precision/{layer}/{path}.{tensors[name].part}": precision[name] for name in names}
    return found


def ablation(result: RunResult) -> Numbers:
    """Return what paths are used for, which is known at the end of a run only."""
    return {key: value for key, value in summary(result).items() if key.startswith(_USE)}


def summary(result: RunResult) -> Numbers:
    """Return the numbers of `result` under the names that are tracked; what it does not know is left out."""
    found = {key: getattr(result, name) for key, name in _SUMMARY.items()}
    found |= {f"peak_memory/{where}": amount for where, amount in result.peak_memory.items()}
    for row in path_rows(result):
        found |= {f"{measure}/{row.layer}/{row.path}": getattr(row, measure) for measure in _BY_PATH}
        found |= {f"precision/{row.layer}/{row.path}.{part}": own for part, own in row.lengthscales.items()}
    for path, own in result.path_use.get(EVERYWHERE, {}).items():
        found |= {f"{measure}/{EVERYWHERE}/{path}": change for measure, change in own.items()}
    return {key: value for key, value in found.items() if value is not None}


def curves(result: RunResult) -> list[tuple[int, Numbers]]:
    """Return (epoch, points) of what a record keeps of a run's course."""
    history: Mapping[str, Any] = result.history
    fits = {}
    for index, epoch in enumerate(history.get("fit_epoch", [])):
        precision = {name: values[index] for name, values in history.get("prior_precision", {}).items()}
        others = {
            f"hyperparameter/{name}": values[index] for name, values in history.get("hyperparameters", {}).items()
        }
        fits[epoch] = of_fit(history["neg_log_marglik_per_datum"][index], precision, result.tensors) | others
    measure = "rmse" if "train_rmse" in history else "accuracy"
    columns = (history.get(name, []) for name in ("epoch", "loss", f"train_{measure}"))
    return [
        (epoch, {"train/nll": loss, f"train/{measure}": value} | fits.get(epoch, {}))
        for epoch, loss, value in zip(*columns, strict=True)
    ]
