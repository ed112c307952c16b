"""Runs whose network never learned anything, which say nothing of their layers or their objective."""

import math

from ellarepro.data.tasks import RECIPES
from ellarepro.results import RunResult

CHANCE_SHARE = 0.95
"""Of log K, nats a datum: a training loss above it is a network's that only guesses, as `prior.plateau` has it."""


def stayed_at_chance(run: RunResult) -> bool:
    """Whether no epoch of `run` had a training loss below `CHANCE_SHARE` of that of guessing among its K classes."""
    losses = run.series("loss")
    if not losses or run.dataset not in RECIPES:
        return False
    return min(losses) > CHANCE_SHARE * math.log(len(RECIPES[run.dataset].class_names))
