"""The record of one finished run, and how it is written to and read from disk."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args, get_origin

from ellarepro.errors import UserError
from ellarepro.layers.tensors import TensorInfo
from ellarepro.results.outcomes import accuracy_error, known_test_size
from ellarepro.resume.files import write_atomically

RESULT_FILE = "result.json"
UNTRAINED = "untrained_effective_parameters"
"""Key of `history`: effective number of parameters by tensor before any training, a list of one number."""


@dataclass(frozen=True)
class RunResult:
    """What one run found and everything needed to run it again.

    Units: `test_accuracy` is a fraction of 1, None for a regression; `test_rmse`, of a regression alone, is in the
    targets' unit. `test_nll` and `neg_log_marglik_per_datum` are nats per datum, the latter None for MAP.
    `relative_effective_parameters` (the paper's measure) and `effective_share` (of the layer's effective number of
    weights) are {layer: {path: percent}}, see `shares.py`. `wall_seconds` is seconds. `neg_log_marglik_bounds` are
    bounds of `neg_log_marglik_per_datum` with the exact curvature in place of the structure's, and
    `neg_log_marglik_bounds_errors` their standard errors, where they were asked for (`objective.bracket`).
    `linearised` holds `nll`, `accuracy` and `calibration_error` of the linearised predictive where it was asked for
    (`objective.predictive_samples`), and `sampled` those of the mean prediction of networks drawn from a variational
    posterior, whose bound is `neg_log_marglik_per_datum`, with the standard error `neg_log_marglik_error` of the draws.
    `path_use` is {layer: {path: {measure: number}}}, see `ablation.py`; empty in
    earlier results. `history` holds lists by name: one entry an epoch under `epoch`, `loss` and
    `train_accuracy`, one entry a curvature fit under `fit_epoch`, `neg_log_marglik_per_datum` and, by tensor,
    `prior_precision`; and `UNTRAINED` where a layer has several paths. `tensors` tells what each tensor is.
    `fallbacks` counts what happened to eigendecompositions: taken again in `float64`, or on the `cpu`, and eigenvalues
    below zero that were `clipped`; what did not happen is left out; and how often a fit's batches were made smaller for
    want of memory, `fit_batch_halved`. `source_fingerprint` is of the raw images and labels, `data_fingerprint` of what
    was made of them. `peak_memory` is in bytes, `host` and `gpu`, of the process that ended the run; `code_changes` the
    states of the code (commit and a digest) in their order, where there was more than one. `weights_digest` is the
    SHA-256 of `weights.safetensors` beside it, empty where the weights were not kept. `test_size` is the number of test
    samples, and `test_correct` says which of them a classifier had right, as `outcomes.packed` has it; empty in earlier
    results.
    """

    run_id: str
    dataset: str
    layer: str
    prior: str
    objective: str
    budget: str
    seed: int
    n_params: int
    epochs: int
    train_size: int
    test_accuracy: float | None
    test_nll: float | None
    neg_log_marglik_per_datum: float | None
    prior_precision: dict[str, float]
    effective_parameters: dict[str, float]
    relative_effective_parameters: dict[str, dict[str, float]]
    effective_share: dict[str, dict[str, float]]
    tensors: dict[str, TensorInfo]
    wall_seconds: float
    device: str
    versions: dict[str, str]
    git_commit: str
    data_fingerprint: str
    config: dict[str, Any]
    hardware: str = ""
    test_rmse: float | None = None
    neg_log_marglik_bounds: list[float] | None = None
    neg_log_marglik_bounds_errors: list[float] | None = None
    expected_calibration_error: float | None = None
    linearised: dict[str, float] | None = None
    neg_log_marglik_error: float | None = None
    sampled: dict[str, float] | None = None
    path_use: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    history: dict[str, list[float] | dict[str, list[float]]] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    source_fingerprint: str = ""
    peak_memory: dict[str, int] = field(default_factory=dict)
    code_changes: list[str] = field(default_factory=list)
    weights_digest: str = ""
    test_size: int | None = None
    test_correct: str = ""

    def accuracy_text(self) -> str:
        """Return the test accuracy in percent with the sampling error of the test set in brackets, `98.15 (0.14)`."""
        if self.test_accuracy is None:
            return "–"
        error = f" ({100 * accuracy_error(self.test_accuracy, self.test_size):.2f})" if self.test_size else ""
        return f"{100 * self.test_accuracy:.2f}{error}"

    @property
    def tested_on(self) -> str:
        """What the scores are of: `test`, or `held-out` for a part of the training set (`dataset.held_out`)."""
        return "held-out" if self.config.get("dataset", {}).get("held_out") else "test"

    def measured(self, digits: int = 1) -> str:
        """Return how well the network does on the test set: `accuracy 91.2%`, or `RMSE 0.1234`."""
        if self.test_accuracy is None:
            return f"RMSE {self.test_rmse:.4g}"
        return f"accuracy {100 * self.test_accuracy:.{digits}f}%"

    def series(self, name: str) -> list[float]:
        """Return the list `name` of `history`, empty where there is none."""
        return cast(list[float], self.history.get(name) or [])

    def bounds_text(self, digits: int = 3) -> str:
        """Return " (exact: … to …)" for after the evidence, "" where its bounds were not asked for."""
        if self.neg_log_marglik_bounds is None:
            return ""
        lower, upper = (f"{bound:.{digits}f}" for bound in self.neg_log_marglik_bounds)
        return f" (exact: {lower} to {upper})"

    def to_json(self) -> str:
        """Return the record as indented JSON; a number that is not finite becomes null, as JSON has none."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunResult":
        """Return the record in `text`; keys this version does not know are ignored.

        Raises:
            UserError: not JSON, not an object, keys are missing, or one holds the wrong kind of value; named.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"a result is a JSON object, got {type(record).__name__}")
        fields = dataclasses.fields(cls)
        required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [name for name in required if name not in record]:
            raise UserError(f"missing keys: {', '.join(missing)}")
        for f in fields:
            if f.name in record and not _fits(record[f.name], f.type):
                kind, got = getattr(f.type, "__name__", f.type), type(record[f.name]).__name__
                if kind == got:
                    raise UserError(f"{f.name} must be {f.type}, got entries of another kind")
                raise UserError(f"{f.name} must be {kind}, got {got}")
        known = {f.name: record[f.name] for f in fields if f.name in record}
        known.setdefault("test_size", known_test_size(record["config"]))
        return cls(**known | {"tensors": _tensors_from(record["tensors"])})


def write_result(result: RunResult, folder: Path) -> Path:
    """Write `result` as `folder/result.json`, atomically; `folder` is made when missing. Return the file's path."""
    path = Path(folder) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, result.to_json().encode())
    return path


def result_file(run: Path) -> Path:
    """Return the result file of `run`, a run's folder or the file itself."""
    return run / RESULT_FILE if run.is_dir() else run


def read_result(path: Path) -> RunResult:
    """Return the record in the file `path`.

    Raises:
        UserError: the file cannot be read or is damaged; the message names it.
    """
    try:
        return RunResult.from_json(Path(path).read_text(encoding="utf-8"))
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"result file {path}: {error}") from error


def read_results(folder: Path) -> list[RunResult]:
    """Return the records of every `result.json` below `folder`, sorted by what was run, then by seed.

    Raises:
        UserError: `folder` is missing or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"results folder: got {folder}, which is not a folder; give one that holds <run_id>/result.json"
        )
    found = map(read_result, sorted(folder.rglob(RESULT_FILE)))
    return sorted(found, key=lambda r: (r.dataset, r.layer, r.prior, r.objective, r.budget, r.seed, r.run_id))


def _tensors_from(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorInfo]:
    """Return what `tensors` of a JSON record holds.

    Raises:
        UserError: an entry is not that of a tensor.
    """
    names = [f.name for f in dataclasses.fields(TensorInfo)]
    try:
        return {tensor: TensorInfo(**{name: entry[name] for name in names}) for tensor, entry in entries.items()}
    except (KeyError, TypeError) as error:
        raise UserError(f"tensors must give {', '.join(names)} of each tensor: {error!r}") from error


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated kind; whole numbers are floats, too."""
    if annotation is Any:
        return True
    if dataclasses.is_dataclass(annotation):
        return type(value) is dict  # what is in it, `_tensors_from` looks at
    if isinstance(annotation, UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if type(value) is not kind:
        return type(value) is int and kind is float
    # Within containers a number that was not finite is null, see `to_json`.
    entries = value.values() if kind is dict else value if kind is list else ()
    return all((entry is None and inner[-1] is float) or _fits(entry, inner[-1]) for entry in entries)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
