"""Settings that say what they may be: the range of a field stands beside its type, its default and its meaning.

A settings class is a dataclass of `Settings` that declares its fields by `setting`; one that another class has, too, is
taken over from there by `same_as`. So every range is written once, and checked when an object is made.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from typing import Any, Self, TypeGuard

from ellarepro.errors import UserError, nearest


@dataclass(frozen=True)
class Range:
    """Numbers between bounds, or a few choices; None is no number and lies in no range."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, str) or not self._bounded():
            return value in self.choices
        return not math.isnan(value) and all(
            [
                self.least is None or value >= self.least,
                self.above is None or value > self.above,
                self.most is None or value <= self.most,
                self.below is None or value < self.below,
            ]
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = [
            f"{word} {bound:,}" if isinstance(bound, int) else f"{word} {bound:g}"
            for word, bound in words.items()
            if bound is not None
        ]
        several = f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else "".join(self.choices)
        return " or ".join(filter(None, [several, " and ".join(bounds)]))

    def _bounded(self) -> bool:
        return any(bound is not None for bound in (self.least, self.above, self.most, self.below))


def setting(meaning: str, default: Any = MISSING, **bounds: Any) -> Any:
    """A dataclass field with its meaning in one line and its range: `least`, `above`, `most`, `below`, or `choices`."""
    metadata = {"meaning": meaning, "range": Range(**bounds) if bounds else None}
    return field(default=default, metadata=metadata)


def same_as(owner: type, name: str) -> Any:
    """A field with range, meaning and default of the field `name` of `owner`."""
    source = next(f for f in dataclasses.fields(owner) if f.name == name)
    return field(default=source.default, metadata=source.metadata)


def problems(settings: Any) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with its value) for each value out of its range; None stands for not set, and passes."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        possible = f.metadata.get("range")
        if possible is not None and value is not None and value not in possible:
            near = nearest(value, possible.choices) if isinstance(value, str) else ""
            yield f.name, f"must be {possible}; got {value!r}{near}"


@dataclass(frozen=True)
class Settings:
    """A dataclass whose values lie in the ranges of their fields.

    Raises:
        ValueError: names the field, what is possible and what was got.
    """

    def __post_init__(self) -> None:
        for name, problem in problems(self):
            raise ValueError(f"{name} {problem}")
        self.check()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Those that `values` say, with the settings within them; what is no key goes into `arguments`, if there are.

        Raises:
            ValueError: as above.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        given = {name: values[name] for name in names & values.keys()}
        inner: dict[str, Any] = {f.name: f.type.of(values) for f in dataclasses.fields(cls) if _is_settings(f.type)}
        if "arguments" in names:
            inner["arguments"] = {key: value for key, value in values.items() if key not in names}
        return cls(**given, **inner)

    def check(self) -> None:
        """Refuse values that are in their ranges and have no meaning beside each other.

        Raises:
            ValueError: as above.
        """


@contextmanager
def keyed(group: str) -> Iterator[None]:
    """A constructor's refusal with the keys of `group` in place of its own arguments.

    Raises:
        UserError: in place of its ValueError.
    """
    try:
        yield
    except ValueError as error:
        is_key = group and re.match(r"[a-z_]+ must ", str(error))
        raise UserError(f"{group}.{error}" if is_key else str(error)) from error


def _is_settings(kind: Any) -> TypeGuard[type[Settings]]:
    return isinstance(kind, type) and issubclass(kind, Settings)
