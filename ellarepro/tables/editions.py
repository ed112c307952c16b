"""Which runs may stand side by side in one table: those that differ in the seed and what the table spans, and no more.

A table spans data sets, layers, priors and objectives. Runs that share it must agree in every other key of their
configurations. Keys that a choice brings with it must agree among the runs that made this choice: `objective.steps`
among Laplace runs, `group` among layers that have a group, `dataset.augment` among data sets that can be augmented.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ellarepro.data.tasks import RECIPES
from ellarepro.network import LAYERS, PATHS
from ellarepro.results import ADDED_LATER, RunResult, counted

UNSET = "unset"
AXES = ("dataset", "layer", "prior", "objective")
FIRST = ("budget.name", "dataset.name", "dataset.source", "dataset.augment")
"""What tells editions apart before anything else."""

Key = tuple[str, str]
"""A key and among whom it must agree: "" for all runs."""


@dataclass(frozen=True)
class Edition:
    """Runs that may share a table, and the values of the keys that tell them from the other editions of it."""

    runs: Sequence[RunResult]
    differences: dict[str, str] = field(default_factory=dict)


def editions(runs: Iterable[RunResult], spans_datasets: bool, spans: frozenset[str] = frozenset()) -> list[Edition]:
    """Part `runs` by one key after another until those that are left together agree in all that they must.

    Runs to which a key does not apply join every part; a part of none but such runs is left out where another has them.
    Every table spans layers, priors, objectives and seeds, and the keys `spans`.
    """
    runs = list(runs)
    spanned = {"seed", *spans, *(f"{axis}.name" for axis in AXES if axis != "dataset" or spans_datasets)}
    brought: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for key in counted(run.config):
            # What a budget says, keys outside of it have taken over.
            if key not in spanned and (key == "budget.name" or not key.startswith("budget.")):
                brought.setdefault(_choice(key, run), set()).add(key)
    found = _parted([(run, _recipe(run, brought)) for run in runs], {})
    members = [{id(run) for run in edition.runs} for edition in found]
    return [edition for edition, own in zip(found, members, strict=True) if not any(own < others for others in members)]


def setting(run: RunResult, key: str) -> str:
    """Return the value of `key` in the configuration of `run`, as text."""
    return str(counted(run.config).get(key, ADDED_LATER.get(key, UNSET)))


def _parted(recipes: list[tuple[RunResult, dict[Key, str]]], differences: dict[str, str]) -> list[Edition]:
    values: dict[Key, set[str]] = {}
    for _, recipe in recipes:
        for key, value in recipe.items():
            values.setdefault(key, set()).add(value)
    torn = [key for key, found in values.items() if len(found) > 1]
    if not torn:
        return [Edition([run for run, _ in recipes], differences)] if recipes else []
    key = min(torn, key=lambda key: (FIRST.index(key[0]) if key[0] in FIRST else len(FIRST), key))
    return [
        edition
        for value in sorted(values[key])
        for edition in _parted(
            [entry for entry in recipes if entry[1].get(key, value) == value], {**differences, key[0]: value}
        )
    ]


def _recipe(run: RunResult, brought: Mapping[tuple[str, str], set[str]]) -> dict[Key, str]:
    """What must agree with other runs: the keys that come with a choice of `run` and, of its data, the fingerprint."""
    choices = [("", ""), *((axis, getattr(run, axis)) for axis in AXES)]
    keys = [key for choice in choices for key in brought.get(choice, ())]
    recipe = {(key, _among(key, run)): _value(key, run) for key in keys}
    return recipe | {(f"fingerprint of {run.dataset}", ""): run.data_fingerprint[:10]}


def _choice(key: str, run: RunResult) -> tuple[str, str]:
    """The choice that `key` comes with: (axis, what `run` has chosen there), nothing where every run has the key."""
    group = key.partition(".")[0]
    options = {option for path in PATHS.values() for option in path.options}
    axis = "layer" if group in options else group if group in AXES else ""
    return axis, getattr(run, axis) if axis else ""


def _among(key: str, run: RunResult) -> str:
    """Among whom `key` must agree with `run`: all that have it, or those of whom it says the same."""
    group, _, name = key.partition(".")
    if key == "objective.fit_size":
        # Dense layers are fitted on a size of their own.
        return "dense" if "fc" in LAYERS.get(run.layer, ()) else ""
    if key == "optimiser.kl_clip":
        # A limit of the steps: some networks need one, and others train as well without (results/optimisers/study.md).
        return run.layer
    if key == "alpha":
        # With group features, a channel is |G| maps, and a width is another quantity.
        return "grouped" if any("group" in PATHS[path].options for path in LAYERS.get(run.layer, ())) else ""
    if group != "dataset" or name == "name":
        return ""
    family = RECIPES[run.dataset].family if run.dataset in RECIPES else None
    if family and name == "source":
        return ", ".join(family.readers)
    if family and name == "augment":
        return "" if family.may_flip else "never augmented"
    return run.dataset


def _value(key: str, run: RunResult) -> str:
    """What must agree: the value of `key`, or that it is what the data set's published runs have."""
    value = setting(run, key)
    return "as published" if key == "epochs" and value == setting(run, "dataset.paper_epochs") else value
