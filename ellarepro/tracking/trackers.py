"""Trackers: what a run tells W&B, and what becomes of the run when W&B fails (nothing).

Whatever W&B does to a run that goes on, the run goes on: its failure is one line.
"""

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ellarepro.config.schema import Config
from ellarepro.errors import UserError
from ellarepro.results import RunResult
from ellarepro.tracking import contents

TRACKERS = ("none", "wandb")
MODES = ("online", "offline", "disabled")
INIT_TIMEOUT_SECONDS = 20


class Tracker(Protocol):
    """What a run tells while it goes on and when it ends."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""

    def finish(self, result: RunResult, picture: bytes | None = None) -> None:
        """Record what the run found, with its figure as PNG, and close it."""

    def close(self) -> None:
        """Close a run that goes on another time."""


class NoTracker:
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Do nothing."""

    def finish(self, result: RunResult, picture: bytes | None = None) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class WandbTracker:
    """Mirrors a run to Weights & Biases, or to files below the run's folder that can be uploaded later."""

    def __init__(self, wandb: Any, run: Any) -> None:
        """Track with the run `run` of the package `wandb`."""
        self._wandb, self._run = wandb, run
        # W&B's own step starts at zero again when a run is continued offline; the epoch does not.
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""
        self._run.log({**metrics, "epoch": epoch})

    def finish(self, result: RunResult, picture: bytes | None = None) -> None:
        """Record what the run found, close it, and say where it can be seen."""
        last: dict[str, Any] = dict(contents.ablation(result))
        if picture is not None:
            last["effective_parameters"] = self._wandb.Image(Image.open(io.BytesIO(picture)))
        if last:
            self._run.log({**last, "epoch": result.epochs})
        self._run.summary.update(contents.summary(result))
        self._run.finish()
        if not self._run.offline:
            _say(self._run.url)
            return
        folder = Path(self._run.dir).parent
        _say(f"offline run in {folder}\n       to upload it: wandb sync {folder}, or make sync for all")

    def close(self) -> None:
        """Close a run that goes on another time."""
        self._run.finish()


class Unfailing:
    """A tracker whose failures end tracking, not the run.

    Args:
        tracker: what to track with until it fails.
        give_up: called once it has, so that nothing of it is left for the end of the process.
    """

    def __init__(self, tracker: Tracker, give_up: Callable[[], None] = lambda: None):
        self._tracker, self._give_up = tracker, give_up

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record `metrics` as of the end of `epoch`."""
        self._try(lambda tracker: tracker.log(metrics, epoch))

    def finish(self, result: RunResult, picture: bytes | None = None) -> None:
        """Record what the run found and close it."""
        self._try(lambda tracker: tracker.finish(result, picture))

    def close(self) -> None:
        """Close a run that goes on another time."""
        self._try(lambda tracker: tracker.close())

    def _try(self, tell: Callable[[Tracker], None]) -> None:
        try:
            tell(self._tracker)
        except Exception as error:  # W&B raises whatever its service, its files and the network do.
            self._tracker = NoTracker()
            _say_untracked(error, self._give_up)


@contextmanager
def tracked(config: Config) -> Iterator[Tracker]:
    """Yield the tracker that `config` asks for; it is closed when the run stops before its end, to go on later.

    Raises:
        UserError: as of `make_tracker`.
    """
    identity = contents.identity(config.run_id, config.record)
    tracker = make_tracker(identity=identity, folder=config.folder, **asdict(config.tracking))
    try:
        yield tracker
    except BaseException:
        tracker.close()
        raise


def make_tracker(
    name: str,
    *,
    identity: Mapping[str, Any],
    folder: Path,
    mode: str | None = None,
    project: str = "ellarepro",
    entity: str | None = None,
) -> Tracker:
    """Return the tracker called `name` ("none" or "wandb") of a run that writes below `folder`.

    `mode` None is what WANDB_MODE says, else "online" where an API key is known and "offline" where none is. It
    never asks for a key, and where the server does not answer within seconds it goes on offline. `identity` is what
    the run is called, see `contents.identity`.

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
    options = {**identity, "dir": str(folder), "project": project, "entity": entity}
    try:
        return Unfailing(WandbTracker(wandb, _start(wandb, mode, options)), give_up=wandb.teardown)
    except Exception as error:  # As in `Unfailing`.
        _say_untracked(error, lambda: wandb.teardown())
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


def _say_untracked(error: Exception, give_up: Callable[[], None]) -> None:
    """Say it, and give up beside the run: a service that is alive may take its time, one that is gone raises."""

    def quietly() -> None:
        with suppress(BaseException):
            give_up()

    threading.Thread(target=quietly, daemon=True).start()
    _say(f"the run goes on untracked ({_one_line(error)}); python -m ellarepro.tracking RUN mirrors it once finished")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _say(message: str) -> None:
    print(f"wandb: {message}", file=sys.stderr)
