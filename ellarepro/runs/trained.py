"""The trained network of a finished run: kept beside its result as `weights.safetensors`, and given back."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ellarepro.config.compose import compose
from ellarepro.config.schema import Config, settings_of
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.data import Task
from ellarepro.errors import UserError
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import Network
from ellarepro.objectives.objective import Objective
from ellarepro.results.identity import ADDED_LATER, MOVED, RETIRED, flatten, leaves, run_id
from ellarepro.results.record import RunResult, read_result, result_file
from ellarepro.runs.preparing import prepare

WEIGHTS_FILE = "weights.safetensors"
TODAY = {before: now for now, before in MOVED.items()}
_GROUPS = ("dataset", "layer", "prior", "optimiser", "objective", "budget")


@dataclass(frozen=True)
class LoadedRun:
    """A finished run.

    Attributes:
        network: trained.
        prior: with the precisions that were learned.
        likelihood: of the targets, with the noise that was learned.
        task: what it was trained and tested on.
        result: as read.
    """

    network: Network
    prior: LayerwisePrior
    likelihood: Likelihood
    task: Task
    result: RunResult


def packed(objective: Objective) -> bytes:
    """What training has learned, in the format of safetensors: the network's state, log precisions, a log noise."""
    return save({name: tensor.cpu().contiguous() for name, tensor in _tensors(objective).items()})


def _tensors(objective: Objective) -> dict[str, torch.Tensor]:
    """The tensors themselves, by name."""
    learned = enumerate(objective.likelihood.hyperparameters())
    return {
        **objective.model.state_dict(),
        "prior.log_precision": objective.prior.log_precision.detach(),
        **{f"likelihood.{index}": tensor.detach() for index, tensor in learned},
    }


def digest(weights: bytes) -> str:
    """The SHA-256 by which a result knows its weights."""
    return hashlib.sha256(weights).hexdigest()


def load_run(run: Path | str, *, root: str | None = None, device: str | None = None) -> LoadedRun:
    """Return the finished run in the folder `run`, with the weights and precisions that its training ended with.

    Seeds, threads and arithmetic are set as the run had them, so that its test scores come out the same to the digit on
    the same instruction set.

    Args:
        run: the run's folder, or its `result.json`.
        root: where the data lie here, if elsewhere than for the run (`dataset.root`, or the file of `dataset.path`).
        device: where the network and the data are put, if elsewhere than for the run.

    Raises:
        UserError: a file is missing, damaged or of another run; the data are not there, or not those of the run.
    """
    file = result_file(Path(run))
    result = read_result(file)
    weights = _weights_of(result, file.with_name(WEIGHTS_FILE))
    config = asked_again(result, root)
    trainer, task = prepare(config if device is None else config.changed(device=device))
    if task.fingerprint != result.data_fingerprint:
        raise UserError(
            f"{file}: was made with other data (fingerprint {result.data_fingerprint}, here it is {task.fingerprint})"
        )
    tensors = _tensors(objective := trainer.objective)
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in weights.items()}:
        raise UserError(f"{file.with_name(WEIGHTS_FILE)}: does not fit the network of its run")
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])
    return LoadedRun(cast(Network, objective.model), objective.prior, objective.likelihood, task, result)


def _weights_of(result: RunResult, file: Path) -> dict[str, torch.Tensor]:
    if not result.weights_digest:
        raise UserError(
            f"{file}: no weights were kept of {result.run_id}, by keep_weights=false or by an earlier version; "
            "force=true runs it anew"
        )
    try:
        content = file.read_bytes()
        if digest(content) != result.weights_digest:
            raise UserError(f"{file}: damaged, or of another run: its SHA-256 is not the one that its result holds")
        return load(content)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error}); force=true runs it anew") from error


def asked_again(result: RunResult, root: str | None = None) -> Config:
    """The settings of `result` by today's keys: those added since at the value that stands for what was done.

    Args:
        root: where the data lie here, if elsewhere than for the run.

    Raises:
        UserError: it cannot be asked for today.
    """
    recorded = result.config
    today = dict(compose([f"{group}={recorded[group]['name']}" for group in _GROUPS]).record)
    before = {key: value for key, value in ADDED_LATER.items() if key not in recorded}
    for key, value in [*before.items(), *leaves(recorded)]:
        _set(today, TODAY.get(key, key), value)
    today["dataset"]["relaxation"] = today["relaxation"]
    if (got := run_id(recorded)) != result.run_id:
        raise UserError(f"{result.run_id}: its configuration belongs to another run, {got}")
    retired = RETIRED.get(recorded["optimiser"]["name"], {})
    if gone := dict(flatten(recorded)).keys() - dict(flatten(today)).keys() - retired.keys():
        raise UserError(f"{result.run_id}: there is no key {', '.join(sorted(gone))} any more")
    if root is not None:
        today["dataset"]["root" if today["dataset"]["path"] is None else "path"] = root
    return settings_of(today | {"force": True, "wait": False, "tracking": {"name": "none"}})


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`, if there is one today."""
    group, _, name = key.rpartition(".")
    node = config.get(group) if group else config
    if isinstance(node, dict) and name in node:
        node[name] = value
