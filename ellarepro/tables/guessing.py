"""Runs whose network never learned anything, which say nothing of their layers or their objective."""

import math

from ellarepro.data.tasks import RECIPES
from ellarepro.results import RunResult

GUESSING_SHARE = 0.95
"""Of log K, nats a datum: a training loss above it is a network's that only guesses, as `prior.plateau` has it."""


def only_guesses(run: RunResult) -> bool:
    """Whether no epoch of `run` had a training loss below `GUESSING_SHARE` of that of guessing among its K classes."""
    losses = run.series("loss")
    if not losses or run.dataset not in RECIPES:
        return False
    return min(losses) > GUESSING_SHARE * math.log(len(RECIPES[run.dataset].class_names))
