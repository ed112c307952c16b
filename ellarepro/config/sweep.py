"""Sweeps: what was typed, with what its experiments add, as one list of overrides a run.

Hydra expands choices, ranges and globs; what it leaves out is done here: every experiment of a sweep over experiments
brings its own sweep, and everything is composed and checked before anything runs.
"""

import itertools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from ellarepro.config.compose import compose_all, composed, loader, parse, text
from ellarepro.config.schema import Config
from ellarepro.errors import UserError

MOST_RUNS = 10_000
"""A sweep of more is taken for a mistake."""


@dataclass(frozen=True)
class Sweep:
    """The runs that a command asks for.

    Attributes:
        points: the overrides of each run.
        configs: the settings of each run, in the order of the sweep.
        hydra: Hydra's own configuration, with the launcher.
        is_multirun: whether they go through the launcher; if not, there is one.
    """

    points: list[list[str]]
    configs: list[Config]
    hydra: DictConfig
    is_multirun: bool


def expand(overrides: Sequence[str], multirun: bool = False) -> Sweep:
    """Compose and check all runs that `overrides` ask for.

    Args:
        overrides: as on the command line; `experiment=a,b` takes the runs of both.
        multirun: whether sweeps are meant, as `-m` says; an experiment can say so, too.

    Raises:
        UserError: whatever one of the runs would be refused for that its configuration alone tells.
    """
    with loader() as found:
        parsed = parse(overrides, found)
        # Hydra keeps the files of its launchers below the runs' folder.
        own = [text(o) for o in parsed if o.is_hydra_override() or o.key_or_group == "output_dir"]
        rest = [o for o in parsed if not o.is_hydra_override()]
        points: list[list[str]] = []
        for experiment in _experiments(rest):
            whole = composed((*experiment, *own), with_hydra=True)
            multirun = multirun or whole.hydra.mode == RunMode.MULTIRUN
            params = whole.hydra.sweeper.get("params") or {}
            added = parse([f"{key}={value}" for key, value in params.items()], found)
            points += [[*experiment, *point] for point in _product([*added, *rest])]
            _check_size(len(points))
    if len(points) > 1 and not multirun:
        swept = " ".join(text(o) for o in rest if o.is_sweep_override())
        raise UserError(f"{swept} asks for {len(points)} runs: add -m, before the keys, to run them all")
    return Sweep(points, compose_all(points), deepcopy(whole), multirun)


def _experiments(overrides: Sequence[Override]) -> list[list[str]]:
    """One list with the choice of the experiment for each that is asked for; one empty list if none is."""
    chosen = [o for o in overrides if o.key_or_group == "experiment"]
    return [[choice] for choice in _values(chosen[-1])] if chosen else [[]]


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    """The points of the sweep over `overrides`; of two for one key, the later counts."""
    choices = {o.get_key_element(): _values(o) for o in overrides if o.key_or_group != "experiment"}
    count = 1
    for texts in choices.values():
        count *= len(texts)
        _check_size(count)
    return [list(point) for point in itertools.product(*choices.values())]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [text(override)]
    if not override.is_discrete_sweep():
        raise UserError(f"{text(override)}: a sweep takes choices, a range or a glob; an interval has no end")
    key = override.get_key_element()
    texts = [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)]
    _check_size(len(texts))
    if not texts:
        raise UserError(f"{text(override)} matches nothing")
    return texts


def _check_size(count: int) -> None:
    if count > MOST_RUNS:
        raise UserError(f"the sweep has more than {MOST_RUNS:,} runs: split it")
