"""Errors that end a run with one message and no traceback."""

import difflib
from collections.abc import Iterable


def nearest(got: str, possible: Iterable[str]) -> str:
    """What `got` may have been meant to be, as part of a message; empty where nothing is near."""
    near = difflib.get_close_matches(got, list(possible), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class UserError(ValueError):
    """A mistake in the configuration, the data or the command; exit status 2.

    The message names the key, what was got and what is possible.
    """


class RunFailure(RuntimeError):
    """A run that cannot go on (a diverged loss, say); exit status 1. The message says where, and what to change."""


class Interrupted(Exception):
    """A run that was told to stop and has kept its place; exit status 128 + `signal`, as of a process it ends.

    Args:
        message: what was kept and how to go on.
        signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.signal
