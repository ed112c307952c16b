"""Settings that say what they may be: the range of a field stands beside its type, its default and its meaning.

A settings class declares its fields by `setting` and calls `refuse_out_of_range` when it is made; a configuration takes
over a field, range and meaning included, by `same_as`. So every range is written once, and checked wherever it applies.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

from ellarepro.errors import nearest


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


def same_as(owner: type, name: str, default: Any = MISSING) -> Any:
    """A field with range and meaning of the field `name` of `owner`, and its default if none is given."""
    source = next(f for f in dataclasses.fields(owner) if f.name == name)
    return field(default=source.default if default is MISSING else default, metadata=source.metadata)


def problems(settings: Any, fields: Iterable[Field] | None = None) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with its value) for each value out of its range; None stands for not set, and passes.

    Args:
        settings: an instance with the attributes, or a mapping with the keys, that `fields` name.
        fields: those of `settings` if not given.
    """
    for f in fields or dataclasses.fields(settings):
        value = settings[f.name] if isinstance(settings, Mapping) else getattr(settings, f.name)
        possible = f.metadata.get("range")
        if possible is not None and value is not None and value not in possible:
            near = nearest(value, possible.choices) if isinstance(value, str) else ""
            yield f.name, f"must be {possible}; got {value!r}{near}"


def refuse_out_of_range(settings: Any) -> None:
    """Refuse a dataclass instance with a value out of its field's range.

    Raises:
        ValueError: names the field, what is possible and what was got.
    """
    for name, problem in problems(settings):
        raise ValueError(f"{name} {problem}")
