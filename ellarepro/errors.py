"""Errors that end a run with one message and no traceback, and the commands that say it."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec


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


Arguments = ParamSpec("Arguments")


def command(name: str) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Let a command end with one line on stderr, `name` before it, and an exit status where it would end with a trace.

    The decorated function returns the exit status; 2 stands for UserError and for files that cannot be read or
    written, 1 for RunFailure, 128 + its number for a signal.
    """

    def decorate(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @functools.wraps(main)
        def told(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
            try:
                return main(*arguments, **options)
            except (UserError, OSError) as error:
                message, status = str(error), 2
            except RunFailure as error:
                message, status = str(error), 1
            except Interrupted as stop:
                message, status = str(stop), stop.status
            except KeyboardInterrupt:
                message, status = "interrupted; the same command goes on", 130
            print(f"{name}: {message}", file=sys.stderr)
            return status

        return told

    return decorate
