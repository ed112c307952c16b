"""How far a run is: a line that rewrites itself on a terminal, plain lines in a log."""

import sys
import time
from typing import TextIO


class Progress:
    """Reports epochs.

    Args:
        epochs: how many there will be.
        done: how many an earlier process has done.
        label: put before each line.
        stream: standard output if not given; a terminal gets one line that rewrites itself.
        every: in a log, seconds between lines; the first and the last epoch are always shown.
    """

    def __init__(self, epochs: int, done: int = 0, label: str = "", stream: TextIO | None = None, every: float = 10.0):
        self.epochs = epochs
        self.first = done
        self.label = label
        self.stream = stream or sys.stdout
        self.every = every
        self.started = self.shown = time.monotonic()
        self.on_terminal = self.stream.isatty()

    def update(self, epoch: int, loss: float, accuracy: float, neg_log_marglik: float | None) -> None:
        """Show `epoch` (from 1): training loss (nats a datum), training accuracy (0 to 1), evidence (nats a datum)."""
        now = time.monotonic()
        ends = epoch in (self.first + 1, self.epochs)
        if not (self.on_terminal or ends or now - self.shown >= self.every):
            return
        self.shown = now
        left = (now - self.started) / (epoch - self.first) * (self.epochs - epoch)
        evidence = "-" if neg_log_marglik is None else f"{neg_log_marglik:.3f}"
        line = (
            f"{self.label}epoch {epoch}/{self.epochs}  loss {loss:.3f}  -marglik {evidence}  "
            f"accuracy {100 * accuracy:.1f}%  {_clock(left)} left"
        )
        if self.on_terminal:
            self.stream.write(f"\r\x1b[2K{line}" + ("\n" if epoch == self.epochs else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End a line that is still being rewritten."""
        if self.on_terminal:
            self.stream.write("\n")
            self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
