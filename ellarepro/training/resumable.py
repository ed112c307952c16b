"""Training outside of a run: with a line of progress, and a checkpoint from which the same call continues."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ellarepro.errors import Interrupted
from ellarepro.resume.checkpoint import Checkpoints
from ellarepro.resume.signals import Stop, stopping
from ellarepro.training.loop import Trainer
from ellarepro.training.progress import Moment, Progress


def train(trainer: Trainer, *, progress: bool = False, checkpoint: str | Path | None = None) -> None:
    """Run `trainer` to its end.

    Args:
        progress: whether a line tells how far it is.
        checkpoint: folder, made if need be; what is kept there is removed at the end. A signal, Ctrl-C say, stops at
            the next step with everything kept.

    Raises:
        KeyboardInterrupt: Ctrl-C; with a checkpoint the same call continues.
        Interrupted: another signal, likewise.
        RunFailure: a loss or a curvature that is not finite; a checkpoint that cannot be written.
        UserError: a checkpoint that cannot be read, or of another training.
    """
    if checkpoint is None:
        _run(trainer, progress)
        return
    folder = Path(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: tuple(p.shape) for name, p in trainer.model.named_parameters()}
    kept = Checkpoints(folder, {"training": f"{trainer.epochs} epochs of {trainer.data.size} samples, {shapes}"})
    if (state := kept.load()) is not None:
        trainer.load_state_dict(state)
    try:
        with stopping() as stop:
            trainer.pause = _checkpointer(trainer, kept, stop)
            _run(trainer, progress)
    except Interrupted as stopped:
        if stopped.signal == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from stopped
        raise
    kept.discard()


def _checkpointer(trainer: Trainer, kept: Checkpoints, stop: Stop) -> Callable[[Callable[[], dict[str, Any]]], None]:
    def pause(state: Callable[[], dict[str, Any]]) -> None:
        if stop.signal is None and not kept.due:
            return
        kept.save(state())
        if stop.signal is not None:
            raise Interrupted(
                f"stopped after epoch {trainer.epoch} of {trainer.epochs}; the same call continues from {kept.path}",
                stop.signal,
            )

    return pause


def _run(trainer: Trainer, progress: bool) -> None:
    if progress:
        line, measure = Progress(trainer.epoch), trainer.objective.likelihood.measure

        def on_epoch(epoch: int, metrics: dict[str, Any]) -> None:
            evidence = [None, *trainer.history["neg_log_marglik_per_datum"]][-1]
            value = metrics[trainer.measure]
            line.update(Moment(epoch, trainer.epochs, metrics["loss"], value, evidence, measure=measure))

        trainer.on_epoch = on_epoch
    trainer.run()
