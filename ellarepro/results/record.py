"""The record of one finished run, and how it is written to and read from disk."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from ellarepro.errors import UserError
from ellarepro.files import write_atomically

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class RunResult:
    """What one run found and everything needed to run it again.

    Units: `test_accuracy` is a fraction of 1; `test_nll` and `neg_log_marglik_per_datum` are nats per datum (the
    latter None for MAP); `relative_effective_parameters` is percent, {layer: {path: percent}}; `wall_seconds` is
    seconds. `linearised` holds `nll`, `accuracy` and `calibration_error` of the linearised predictive where it was
    asked for (`objective.predictive_samples`). `history` holds lists by name: one entry an epoch under `epoch`, `loss`
    and `train_accuracy`, one entry a curvature fit under `fit_epoch`, `neg_log_marglik_per_datum` and, by tensor,
    `prior_precision`.

    `source_fingerprint` is of the raw images and labels, `data_fingerprint` of what was made of them. `peak_memory` is
    in bytes, `host` and `gpu`, of the process that ended the run; `fallbacks` what did not go as asked for, a line
    each; `code_changes` the states of the code (commit and a digest) in their order, where there was more than one.
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
    test_accuracy: float
    test_nll: float | None
    neg_log_marglik_per_datum: float | None
    prior_precision: dict[str, float]
    effective_parameters: dict[str, float]
    relative_effective_parameters: dict[str, dict[str, float]]
    wall_seconds: float
    device: str
    versions: dict[str, str]
    git_commit: str
    data_fingerprint: str
    config: dict[str, Any]
    hardware: str = ""
    expected_calibration_error: float | None = None
    linearised: dict[str, float] | None = None
    history: dict[str, list[float] | dict[str, list[float]]] = field(default_factory=dict)
    source_fingerprint: str = ""
    peak_memory: dict[str, int] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    code_changes: list[str] = field(default_factory=list)

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
        missing = [name for name in required if name not in record]
        if missing:
            raise UserError(f"missing keys: {', '.join(missing)}")
        for f in fields:
            if f.name in record and not _fits(record[f.name], f.type):
                kind, got = getattr(f.type, "__name__", f.type), type(record[f.name]).__name__
                if kind == got:
                    raise UserError(f"{f.name} must be {f.type}, got entries of another kind")
                raise UserError(f"{f.name} must be {kind}, got {got}")
        return cls(**{f.name: record[f.name] for f in fields if f.name in record})


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
    found = (read_result(path) for path in sorted(folder.rglob(RESULT_FILE)))
    return sorted(found, key=lambda r: (r.dataset, r.layer, r.prior, r.objective, r.budget, r.seed, r.run_id))


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated kind; whole numbers are floats, too."""
    if annotation is Any:
        return True
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
