"""Errors that end a run with one message and no traceback."""


class UserError(ValueError):
    """A mistake in the configuration, the data or the command; exit status 2.

    The message names the key, what was got and what is possible.
    """


class RunFailure(RuntimeError):
    """A run that cannot go on (a diverged loss, say); exit status 1. The message says where, and what to change."""
