"""From what was typed to a checked configuration: Hydra composes, OmegaConf checks types, the schema ranges."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any, cast

import hydra
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ellarepro.errors import UserError
from ellarepro.settings.explain import CONFIGS, GROUPS, explained, no_key, possible
from ellarepro.settings.ranges import problems
from ellarepro.settings.schema import Config, classes_below, register


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of one run, resolved to plain values, by keys and types of the schema.

    Raises:
        UserError: an unknown key or choice, or a value of the wrong type or out of its range.
    """
    return compose_all([overrides])[0]


def compose_all(points: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The configurations of many runs.

    Raises:
        UserError: as `compose`, for the first of them that is wrong.
    """
    configs = []
    with loader() as found:
        for point in points:
            parsed = parse(point, found)
            config = deepcopy(composed(tuple(text(o) for o in parsed if is_choice(o))))
            for override in parsed:
                with explained(override):
                    # What Hydra does after it has merged the chosen groups; its `compose` would read all files again.
                    if not is_choice(override):
                        ConfigLoaderImpl._apply_overrides_to_config([override], config)
            configs.append(_checked(config))
    return configs


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
            cause = re.sub(r"\s+", " ", str(error)).partition(" See https")[0]
            raise UserError(f"{typed} is not written key=value in Hydra's grammar ({cause})") from error
    for override in parsed:
        if not override.key_or_group:
            raise UserError(f"{text(override)} is not written key=value: it has no key")
        _refuse_wrong_choice(override)
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
    with explained():
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)


def _checked(config: DictConfig) -> dict[str, Any]:
    """`config` resolved, its keys those of the schema and its values in their ranges; Hydra has checked types."""
    with explained():
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key, problem in _problems(values, Config):
        raise UserError(f"{key} {problem}")
    return values


def _problems(values: dict[str, Any], schema: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for name in values.keys() - fields.keys():
        if "arguments" in fields:  # the others are what its class takes
            continue
        raise UserError(no_key(f"{prefix}{name}"))
    for name in fields.keys() - values.keys() - {"arguments"}:
        yield f"{prefix}{name}", "is needed and was removed"
        return
    for name, value in values.items():
        if isinstance(value, dict):
            classes = classes_below(fields[name])
            yield from _problems(value, classes.get(value.get("name", ""), classes.get("", Config)), f"{name}.")
    for name, problem in problems(values, [f for f in fields.values() if f.name in values]):
        yield f"{prefix}{name}", problem


def _refuse_wrong_choice(override: Override) -> None:
    """Refuse what Hydra would take: a group set to no name, or the name that a choice brings set apart from it."""
    group, _, rest = override.key_or_group.partition(".")
    if group.startswith("schema"):
        raise UserError(no_key(group))
    if group in GROUPS and rest in ("name", "_target_"):
        raise UserError(f"{override.key_or_group} comes with {group}=…: {possible(group)}")
    if not is_choice(override) or override.is_sweep_override():
        return
    optional = group == "experiment"
    if override.is_delete() and not optional:
        raise UserError(f"{group} is needed and was removed; {possible(group)}")
    if (
        not override.is_delete()
        and not isinstance(override.value(), str)
        and not (optional and override.value() is None)
    ):
        raise UserError(f"{group}={override.get_value_element_as_str()} is not possible; {possible(group)}")
