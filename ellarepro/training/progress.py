"""How far a run is: a line that rewrites itself on a terminal, plain lines in a log."""

import sys
import time
from dataclasses import dataclass
from statistics import fmean
from typing import TextIO

from ellarepro.symmetry.labels import is_equivariant, path_title
from ellarepro.symmetry.shares import ByPath


@dataclass(frozen=True)
class Moment:
    """A run after an epoch.

    Attributes:
        epoch: from 1.
        epochs: how many there will be.
        loss: of the training, nats a datum.
        measured: of the training, the likelihood's measure: accuracy (0 to 1) or rmse.
        neg_log_marglik: of the last fit, nats a datum; None before the first.
        free: the paths that need not be equivariant, by their title, and what they have of the relative effective
            number of parameters, in percent, mean over layers; None before the first fit, and where nothing is shared.
        measure: what `measured` is.
    """

    epoch: int
    epochs: int
    loss: float
    measured: float
    neg_log_marglik: float | None = None
    free: tuple[str, float] | None = None
    measure: str = "accuracy"

    def parts(self) -> list[str]:
        """Return the moment as words: epoch, accuracy, evidence, share."""
        evidence = "-" if self.neg_log_marglik is None else f"{self.neg_log_marglik:.3f}"
        measured = f"{100 * self.measured:.1f}%" if self.measure == "accuracy" else f"{self.measured:.4g}"
        return [
            f"epoch {self.epoch}/{self.epochs}",
            f"{self.measure} {measured}",
            f"-marglik {evidence}",
            f"{self.free[0]} {self.free[1]:.0f}%" if self.free else "",
        ]

    def __str__(self) -> str:
        return "  ".join(filter(None, self.parts()))


def free_share(shares: ByPath) -> tuple[str, float] | None:
    """Return the free paths of a network and their percentage, mean over layers, as `Moment.free`.

    Args:
        shares: relative effective numbers of parameters, in percent of the layer.
    """
    paths = {path for own in shares.values() for path in own}
    free = sorted(path for path in paths if not is_equivariant(path))
    if not free or len(paths) < 2:
        return None
    mean = fmean(sum(own.get(path, 0.0) for path in free) for own in shares.values())
    return "+".join(map(path_title, free)), mean


class Progress:
    """Reports the epochs of one run.

    Args:
        done: how many an earlier process has done.
        stream: standard output if not given; a terminal gets one line that rewrites itself.
        every: in a log, seconds between lines; the first and the last epoch are always shown.
    """

    def __init__(self, done: int = 0, stream: TextIO | None = None, every: float = 10.0):
        self.first = done
        self.stream = stream or sys.stdout
        self.every = every
        self.started = self.shown = time.monotonic()
        self.on_terminal = self.stream.isatty()

    def update(self, moment: Moment) -> None:
        """Show `moment`, with the time that is left."""
        now, epoch, epochs = time.monotonic(), moment.epoch, moment.epochs
        ends = epoch in (self.first + 1, epochs)
        if not (self.on_terminal or ends or now - self.shown >= self.every):
            return
        self.shown = now
        left = (now - self.started) / (epoch - self.first) * (epochs - epoch)
        line = f"{moment}  loss {moment.loss:.3f}  {clock(left)} left"
        if self.on_terminal:
            self.stream.write(f"\r\x1b[2K{line}" + ("\n" if epoch == epochs else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """Return a duration as `1:05` or `2:01:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
