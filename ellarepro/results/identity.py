"""What makes two runs the same: the part of a configuration that can change what is found, and a name made of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Where a run writes, where its data lie and what it shows on the way do not change what it finds; what budget and
# recipe say of a key is counted as that key.
NOT_IN_RUN_ID = (
    "checkpoint_seconds",
    "keep_weights",
    "output_dir",
    "force",
    "wait",
    "tracking",
    "device",
    "progress",
    "threads",
    "dataset.root",
    "dataset.download",
    "layer.width",
    "layer.fit",
    "dataset.relaxation",
    "budget.dense_fit_size",
    "budget.fit_batch_size",
    "budget.hyper_fit_size",
    "budget.passes",
    "recipe",
    "optimiser._target_",
    # No more keys: what a run took of them is counted where it is told.
    "dataset.start",
    "budget.tied",
    "budget.plateau",
    "budget.relaxation",
    "budget.toy_relaxation",
)
MOVED = {"prior.plateau": "optimiser.plateau"}
"""Keys that were called otherwise, as ids count them."""

ADDED_LATER = {
    "anchors": None,
    "dataset.held_out": None,
    "dataset.path": None,
    "dataset.strength": None,
    "group": None,
    "objective.bracket": None,
    "objective.bracket_batch_size": 50,
    "objective.bracket_batches": None,
    "objective.bracket_fresh": 500,
    "objective.engine": "native",
    "objective.hyper_fit_size": None,
    "objective.passes": "exact",
    "objective.tied": False,
    "optimiser.fused": True,
    "optimiser.kl_clip": None,
    "optimiser.plateau": None,
    "optimiser.warmup": 0.0,
    "prior.anchors": "fixed",
    "relaxation": 0.1,
    "replay": False,
    "smooth": False,
    "tf32": False,
}
"""Keys that were not always there, at the value that stands for what was done before: they leave an id as it was."""
RETIRED = {"adam": {"optimiser.momentum": 0.0}}
"""Keys of an optimiser that are gone, at the value they had: ids still count them."""


def leaves(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf of `config`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flatten(config: Mapping) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf that can change a result (see `NOT_IN_RUN_ID`)."""
    for key, value in leaves(config):
        name = MOVED.get(key, key)
        left_out = name in NOT_IN_RUN_ID or name.partition(".")[0] in NOT_IN_RUN_ID
        if not left_out and not (name in ADDED_LATER and value == ADDED_LATER[name]):
            yield name, value


def counted(config: Mapping) -> dict[str, Any]:
    """Return {dotted name: value} of all that an id counts: the same for runs of any version that do the same."""
    return RETIRED.get(_name(config.get("optimiser", "")), {}) | dict(flatten(config))


def run_id(config: Mapping) -> str:
    """Return the name of the run that the resolved `config` (plain containers) describes.

    Readable first, `{dataset}-{layer}-{objective}-s{seed}-`, then ten hexadecimal digits over all that can
    change the result. `dataset`, `layer` and `objective` are names or mappings with a `name`.

    Raises:
        KeyError: `config` lacks one of dataset, layer, objective and seed.
    """
    canonical = json.dumps(counted(config), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
    dataset, layer, objective = (_name(config[group]) for group in ("dataset", "layer", "objective"))
    return f"{dataset}-{layer}-{objective}-s{config['seed']}-{digest}"


def _name(group: Any) -> str:
    return group["name"] if isinstance(group, Mapping) else str(group)
