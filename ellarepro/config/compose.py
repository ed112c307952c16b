"""From what was typed to the settings of one run or of a sweep.

Hydra composes and expands choices, ranges and globs; OmegaConf checks types, and the settings their ranges. What Hydra
leaves out is done here: every experiment of a sweep over experiments brings its own sweep, and everything is composed
and checked before anything runs.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import hydra
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ellarepro.config.explain import CONFIGS, GROUPS, choices_of, kind_of, no_key, possible
from ellarepro.config.schema import COME_WITH_CHOICE, Config, register, settings_of
from ellarepro.errors import UserError, nearest

MOST_RUNS = 10_000
"""A sweep of more is taken for a mistake."""


def compose(overrides: Sequence[str] = ()) -> Config:
    """The settings of one run; `record` has them as plain values.

    Raises:
        UserError: an unknown key or choice, or a value of the wrong type or out of its range.
    """
    return compose_all([overrides])[0]


def compose_all(points: Sequence[Sequence[str]]) -> list[Config]:
    """The settings of many runs.

    Raises:
        UserError: as `compose`, for the first of them that is wrong.
    """
    configs = []
    with loader() as found:
        for point in points:
            parsed = parse(point, found)
            config = deepcopy(composed(tuple(text(o) for o in parsed if is_choice(o))))
            for override in parsed:
                # Hydra's own `compose` would read all files again for each.
                if not is_choice(override):
                    _set(config, override)
            with told():
                plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
            configs.append(settings_of(plain))
    return configs


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


@contextmanager
def loader() -> Iterator[ConfigLoader]:
    """Hydra's access to the files of configs/ and to the schema."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def parse(overrides: Sequence[str], found: ConfigLoader) -> list[Override]:
    """What `overrides` say, in Hydra's grammar.

    Raises:
        UserError: one does not parse, chooses no name of its group, or changes the schema.
    """
    parser = OverridesParser.create(config_loader=found)
    parsed: list[Override] = []
    for typed in overrides:
        try:
            parsed += parser.parse_overrides([typed])
        except HydraException as error:
            cause = " ".join(str(error).split()).partition(" See https")[0]
            raise UserError(f"{typed} is not written key=value in Hydra's grammar ({cause})") from error
    for override in parsed:
        if not override.key_or_group:
            raise UserError(f"{text(override)} is not written key=value: it has no key")
        _refuse_wrong_choice(override, found)
    return parsed


def text(override: Override) -> str:
    """`override` as it was typed."""
    return override.input_line or ""


def is_choice(override: Override) -> bool:
    """Whether it chooses a file of a group, as `layer=conv` does."""
    return override.key_or_group in GROUPS


@cache
def composed(overrides: tuple[str, ...], with_hydra: bool = False) -> DictConfig:
    """What Hydra composes within `loader()`, once a process for the same overrides; not to be changed.

    Raises:
        UserError: what Hydra refuses.
    """
    with told():
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)


@contextmanager
def told(key: str = "") -> Iterator[None]:
    """What Hydra or OmegaConf refuse that no check before them does, as one message.

    Raises:
        UserError: in place of theirs.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError) as error:
        where = getattr(error, "full_key", None) or key
        raise UserError((f"{where}: " if where else "") + str(error).strip().splitlines()[0]) from error


def _set(config: DictConfig, override: Override) -> None:
    """Set a key that there is, to a value of its type."""
    key = override.key_or_group
    parent, _, name = key.rpartition(".")
    with told(key):
        node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or name not in node or override.package is not None:
        raise UserError(no_key(key))
    if override.is_delete():
        raise UserError(f"{key} cannot be removed: {key} is needed")
    got = text(override).partition("=")[2]
    if isinstance(OmegaConf.select(config, key, throw_on_resolution_failure=False), DictConfig):
        raise UserError(f"{key} must be a choice of its group; got {got}")
    try:
        node[name] = override.value()
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{key} must be {kind_of(key)}; got {got}") from error


def _refuse_wrong_choice(override: Override, found: ConfigLoader) -> None:
    """Refuse a group set to no name of its, or what a choice brings set apart from it."""
    group, _, rest = override.key_or_group.partition(".")
    if group.startswith("schema"):
        raise UserError(no_key(group))
    if group in GROUPS and rest in COME_WITH_CHOICE:
        raise UserError(f"{override.key_or_group} comes with {group}=…: {possible(group)}")
    names = found.get_group_options(group) if group.startswith("hydra/") else []
    if not (is_choice(override) or names) or override.is_sweep_override():
        return
    optional = group == "experiment"
    if override.is_delete() and not optional:
        raise UserError(f"{group} is needed and was removed; {possible(group)}")
    if override.is_delete() or (optional and override.value() is None):
        return
    names, got = names or choices_of(group), text(override).partition("=")[2]
    if not isinstance(override.value(), str) or override.value() not in names:
        raise UserError(f"{group}={got} is not possible{nearest(got, names)}; {group} is one of: {', '.join(names)}")


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
