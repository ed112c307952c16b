"""Curves of a run in Weights & Biases: wanted or not, account or not. `result.json` stays the truth, this mirrors it.

Metrics are named `train/loss`, `train/nll`, `train/accuracy`, `marglik/neg_log_marglik_per_datum` (nats per datum),
`prior_precision/<tensor>`, `effective_parameters/<tensor>`, `relative_effective_parameters/<layer>/<path>` (percent).
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ellarepro.errors import UserError

TRACKERS = ("none", "wandb")
MODES = ("online", "offline", "disabled")
INIT_TIMEOUT_SECONDS = 20


class Tracker(Protocol):
    """What a run tells while it goes on and when it ends."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the run's final numbers and close it."""


class NoTracker:
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class WandbTracker:
    """Mirrors a run to Weights & Biases, or to files below the run's folder that can be uploaded later."""

    def __init__(self, run: Any) -> None:
        """Track with the W&B run `run`."""
        self._run = run
        # W&B's own step starts at zero again when a run is continued offline; the epoch does not.
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""
        self._run.log({**metrics, "epoch": epoch})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the run's final numbers, close it, and say where it can be seen."""
        self._run.summary.update(dict(summary))
        self._run.finish()
        if not self._run.offline:
            _say(self._run.url)
            return
        folder = Path(self._run.dir).parent
        _say(f"offline run in {folder}\n       to upload it: wandb sync {folder}")


def make_tracker(
    name: str,
    *,
    run_id: str,
    config: Mapping[str, Any],
    folder: Path,
    mode: str | None = None,
    project: str = "ellarepro",
    entity: str | None = None,
) -> Tracker:
    """Return the tracker called `name` ("none" or "wandb") for the run `run_id`, which writes below `folder`.

    `mode` None is what WANDB_MODE says, else "online" where an API key is known and "offline" where none is. It
    never asks for a key, and where the server does not answer within seconds it goes on offline.

    Raises:
        UserError: an unknown name or mode, or W&B is wanted and not installed.
    """
    if name not in TRACKERS:
        raise UserError(f"tracking: got {name!r}; possible: {', '.join(TRACKERS)}")
    if name == "none":
        return NoTracker()
    wandb = _import_wandb()
    mode = mode or os.environ.get("WANDB_MODE") or _default_mode(wandb)
    if mode not in MODES:
        raise UserError(f"tracking.mode: got {mode!r}; possible: null, {', '.join(MODES)}")
    if mode == "disabled":
        return NoTracker()
    options = {"id": run_id, "config": dict(config), "dir": str(folder), "project": project, "entity": entity}
    return WandbTracker(_start(wandb, mode, options))


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "tracking: got 'wandb', but the package wandb is not installed; "
            "possible: tracking=none, or install it (pip install wandb)"
        ) from error
    return wandb


def _default_mode(wandb: Any) -> str:
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _start(wandb: Any, mode: str, options: dict[str, Any]) -> Any:
    # `silent`: W&B's own twenty lines would tear the progress line; `console`: it would record that line's redraws.
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS)
    Path(options["dir"]).mkdir(parents=True, exist_ok=True)
    try:
        return wandb.init(**options, mode=mode, resume="allow", settings=settings)
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        _say(f"going on offline, the server does not take the run: {error}")
        # The failed start still holds the run's id.
        wandb.teardown()
        return _start(wandb, "offline", options)


def _say(message: str) -> None:
    print(f"wandb: {message}", file=sys.stderr)
