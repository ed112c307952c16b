"""Curves of a run in Weights & Biases: wanted or not, account or not. `result.json` stays the truth, this mirrors it.

    python -m ellarepro.tracking RUN [RUN ...] [--mode online|offline] [--project NAME] [--entity NAME]

mirrors finished runs (folders, their result.json, or folders of runs) anew, whatever was tracked while they went on.
Whatever W&B does to a run that goes on, the run goes on: its failure is one line.

Metrics are named `train/loss`, `train/nll`, `train/accuracy`, `marglik/neg_log_marglik_per_datum` (nats per datum),
`prior_precision/<tensor>`, `effective_parameters/<tensor>`, `relative_effective_parameters/<layer>/<path>` (percent).
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ellarepro.errors import UserError
from ellarepro.results import RunResult, read_result, read_results, result_file

TRACKERS = ("none", "wandb")
MODES = ("online", "offline", "disabled")
INIT_TIMEOUT_SECONDS = 20


class Tracker(Protocol):
    """What a run tells while it goes on and when it ends."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the run's final numbers and close it."""

    def close(self) -> None:
        """Close a run that goes on another time."""


class NoTracker:
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
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

    def close(self) -> None:
        """Close a run that goes on another time."""
        self._run.finish()


class Unfailing:
    """A tracker whose failures end tracking, not the run.

    Args:
        tracker: what to track with until it fails.
    """

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""
        self._try(lambda tracker: tracker.log(metrics, epoch))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the run's final numbers and close it."""
        self._try(lambda tracker: tracker.finish(summary))

    def close(self) -> None:
        """Close a run that goes on another time."""
        self._try(lambda tracker: tracker.close())

    def _try(self, tell: Callable[[Tracker], None]) -> None:
        try:
            tell(self._tracker)
        except Exception as error:  # W&B raises whatever its service, its files and the network do.
            self._tracker = NoTracker()
            _say_untracked(error)


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
    try:
        return Unfailing(WandbTracker(_start(wandb, mode, options)))
    except Exception as error:  # As in `Unfailing`.
        _say_untracked(error)
        return NoTracker()


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
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception as error:  # A damaged netrc, an unreadable home.
        _say(f"going on offline, no key can be read: {_one_line(error)}")
        return "offline"


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


def _say_untracked(error: Exception) -> None:
    _say(f"the run goes on untracked ({_one_line(error)}); python -m ellarepro.tracking RUN mirrors it once finished")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _say(message: str) -> None:
    print(f"wandb: {message}", file=sys.stderr)


def mirror(result: RunResult, folder: Path, **options: Any) -> None:
    """Track the finished `result`, whole and under an id of its own, so that nothing of another tracking is in its way.

    Args:
        folder: where an offline run lies.
        options: `mode`, `project` and `entity`, as of `make_tracker`.

    Raises:
        UserError: as of `make_tracker`.
    """
    tracker = make_tracker("wandb", run_id=f"{result.run_id}-mirror", config=result.config, folder=folder, **options)
    history: dict[str, Any] = result.history
    fits: dict[int, dict[str, float]] = {}
    for index, epoch in enumerate(history.get("fit_epoch", [])):
        precisions = {name: values[index] for name, values in history.get("prior_precision", {}).items()}
        fits[epoch] = {"marglik/neg_log_marglik_per_datum": history["neg_log_marglik_per_datum"][index]} | {
            f"prior_precision/{name}": value for name, value in precisions.items()
        }
    curves = zip(*(history.get(name, []) for name in ("epoch", "loss", "train_accuracy")), strict=True)
    for epoch, loss, accuracy in curves:
        tracker.log({"train/nll": loss, "train/accuracy": accuracy} | fits.get(epoch, {}), epoch)
    summary = {"test/accuracy": result.test_accuracy, "test/nll": result.test_nll}
    summary |= {f"effective_parameters/{name}": value for name, value in result.effective_parameters.items()}
    tracker.finish(summary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror the finished runs that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.tracking", description="Mirror finished runs in W&B.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, its result.json, or many")
    parser.add_argument("--mode", choices=MODES, help="by default as tracking=wandb chooses")
    parser.add_argument("--project", default="ellarepro")
    parser.add_argument("--entity")
    asked = parser.parse_args(arguments)
    options = {"mode": asked.mode, "project": asked.project, "entity": asked.entity}
    try:
        for run in asked.runs:
            file = result_file(run)
            for result in [read_result(file)] if file.is_file() else read_results(run):
                mirror(result, run if run.is_dir() else run.parent, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
