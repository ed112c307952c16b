"""Signals that stop a run at its next step, with its place kept, instead of at once with nothing.

SIGINT is a user's Ctrl-C, SIGTERM a cluster that wants its node back, SIGUSR2 a launcher's word that time is nearly
over (submitit's, whose own handler puts the job back into the queue).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ellarepro.errors import Interrupted

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
WAIT_FOR_KILL_SECONDS = 3600
"""How long a job of SLURM waits to be killed: one that ends by itself in its grace time counts as failed."""


class Stop:
    """Whether to stop.

    Attributes:
        signal: the number of the signal that came, None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; a second Ctrl-C does not wait for the next step.

        Raises:
            KeyboardInterrupt: at the second SIGINT.
        """
        if number == signal.SIGINT and self.signal == number:
            raise KeyboardInterrupt
        self.signal = self.signal or number


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within the context signals are noted, not obeyed; `Interrupted` leaves it once previous handlers are back.

    A SIGUSR2 then goes to the handler that was there before, and a SIGTERM under SLURM waits for the kill, so that the
    launcher can put the job back into the queue. Elsewhere than in a main thread signals stay as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    except Interrupted as interrupted:
        _restore(before)
        previous = before.get(signal.Signals(interrupted.signal))
        _hand_over(interrupted, previous)
        raise
    finally:
        _restore(before)


def _restore(before: dict) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _hand_over(interrupted: Interrupted, previous: object) -> None:
    if interrupted.signal == signal.SIGUSR2 and callable(previous):
        previous(interrupted.signal, None)
    if interrupted.signal == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
        print(f"{interrupted}; waits for SLURM to end the job", file=sys.stderr, flush=True)
        time.sleep(WAIT_FOR_KILL_SECONDS)
