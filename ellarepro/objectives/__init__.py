"""What a run can ascend, by the name that `objective=` takes; docs/extending.md adds one."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ellarepro.objectives.objective import Objective

OBJECTIVES = {
    "map": "map.Map",
    "laplace": "laplace.Laplace",
    "lila": "lila.Lila",
    "vi": "vi.Variational",
}
"""Module and class of each, imported on first use."""


def objective_named(name: str) -> "type[Objective]":
    """The class of `objective=name`; KeyError for a name that is not registered."""
    module, _, kind = OBJECTIVES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), kind)
