"""What a run keeps while it goes on: its place, so that a stop loses nothing, in a folder where it alone writes."""

import hashlib
import signal
import time
from collections.abc import Callable
from typing import Any

from ellarepro.data import Task
from ellarepro.errors import Interrupted, RunFailure
from ellarepro.results import RESULT_FILE
from ellarepro.resume.checkpoint import Checkpoints
from ellarepro.resume.files import write_atomically
from ellarepro.resume.lock import Lock
from ellarepro.resume.signals import Stop
from ellarepro.training.loop import Trainer

QUIET_SECONDS = 60.0


class RunFolder:
    """Writes checkpoints when they are due, and one when the run is told to stop.

    Args:
        lock: of the run's folder, which is named by the run's id.
        stop: whether a signal has come.
        code: the state of the code that this process runs.
        seconds: at most so long between checkpoints, see `checkpoint_seconds`.
        say: told what goes on, a line at a time.

    Attributes:
        code: states of the code that the run went through, those of earlier processes first, each once.
    """

    def __init__(
        self,
        trainer: Trainer,
        task: Task,
        lock: Lock,
        stop: Stop,
        code: str,
        seconds: float,
        say: Callable[[str], None] = print,
    ):
        self.folder, self.trainer, self.lock, self.stop, self.say = lock.folder, trainer, lock, stop, say
        self.code = [code]
        self._epoch, self._told = trainer.epoch, time.monotonic()
        result = self.folder / RESULT_FILE
        replaces = hashlib.sha256(result.read_bytes()).hexdigest() if result.exists() else ""
        identity = {
            "configuration (run_id)": self.folder.name,
            "dataset.root (fingerprint)": task.source_fingerprint,
            "device": trainer.generator.device.type,
        }
        self.checkpoints = Checkpoints(self.folder, identity, replaces, seconds, say)

    def restore(self) -> None:
        """Let the trainer go on from the last checkpoint, if there is one.

        Raises:
            UserError: it cannot be read, or is of another run.
        """
        trainer = self.trainer
        if (kept := self.checkpoints.load()) is None:
            return
        trainer.load_state_dict(kept)
        place = f", step {trainer.steps_done} of the next" if trainer.steps_done else ""
        self.say(
            f"{self.folder.name}: continues after epoch {trainer.epoch} of {trainer.epochs}{place} "
            "(to start afresh, delete its folder)"
        )
        self.code = list(dict.fromkeys([*kept.get("code", []), *self.code]))

    def pause(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep the run's place if it is time to, or if the run is to stop.

        Raises:
            Interrupted: a signal has come; the place is kept.
            RunFailure: the run's folder is gone or full, or the run has diverged.
        """
        self._tell()
        if self.stop.signal is None and not self.checkpoints.due:
            return
        self.save(state)
        if self.stop.signal is not None:
            name, trainer = signal.Signals(self.stop.signal).name, self.trainer
            raise Interrupted(
                f"{self.folder.name}: stopped by {name} after epoch {trainer.epoch} of {trainer.epochs}, "
                f"step {trainer.steps_done} of the next; the same command continues from there",
                self.stop.signal,
            )

    def _tell(self) -> None:
        """Say where the run is once an epoch takes long: nothing else would be heard of it until its end."""
        now, trainer = time.monotonic(), self.trainer
        if trainer.epoch != self._epoch:
            self._epoch, self._told = trainer.epoch, now
        elif now - self._told >= QUIET_SECONDS:
            self._told = now
            self.say(f"{self.folder.name}: epoch {trainer.epoch + 1}, {trainer.doing}")

    def save(self, state: Callable[[], dict[str, Any]] | None = None) -> None:
        """Write a checkpoint now.

        Raises:
            RunFailure: it cannot be written; the last good one stays.
        """
        self.lock.check()
        self.checkpoints.save((state or self.trainer.state_dict)() | {"code": self.code})

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run's folder.

        Raises:
            RunFailure: it cannot be written; what was kept of the run stays.
        """
        self.lock.check()
        try:
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise RunFailure(
                f"{self.folder / name} cannot be written ({error.strerror or error}); what was kept of the run stays: "
                "free some space or repair the folder, and the same command continues from there"
            ) from error
