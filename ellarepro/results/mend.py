"""Bring results of earlier versions up to date without running anything again.

    python -m ellarepro.results.mend [FOLDER ...]

What such a result lacks follows from what it holds: each tensor's place in the network (`tensors`) from its
configuration, the shares (`relative_effective_parameters` as the paper defines it, `effective_share`) from the places
and the effective numbers. All else stays as it is, to the letter. Reading such a result does the same in memory.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ellarepro.data.tasks import RECIPES
from ellarepro.errors import UserError, command
from ellarepro.layers.tensors import Place
from ellarepro.network import build_network
from ellarepro.results.record import as_json, places_from, read_result, result_files
from ellarepro.resume.files import write_atomically
from ellarepro.settings.parts import AnchorSettings
from ellarepro.symmetry.shares import effective_share, relative_effective_parameters


def mended(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object `record` of a result with its places and shares as this version computes them.

    Raises:
        UserError: it has no places, and no network with its tensors can be built from its configuration.
    """
    places = places_from(record["tensors"]) if "tensors" in record else _rebuilt(record)
    effective = record["effective_parameters"]
    computed = {
        "relative_effective_parameters": relative_effective_parameters(effective, places),
        "effective_share": effective_share(effective, places),
        "tensors": {name: asdict(place) for name, place in places.items()},
    }
    whole: dict[str, Any] = {}
    for key, value in record.items():
        if key == "relative_effective_parameters":
            whole |= computed
        elif key not in computed:
            whole[key] = value
    return whole


def _rebuilt(record: Mapping[str, Any]) -> dict[str, Place]:
    config = record["config"]
    try:
        recipe = RECIPES[config["dataset"]["name"]]
        learned = config["prior"]["name"] == "omega"
        anchors = AnchorSettings(**config["anchors"], learn_omega=learned) if config.get("anchors") else None
        # No memory, and no draw of the caller's random numbers.
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            network = build_network(
                config["layer"]["name"],
                in_channels=len(recipe.family.mean),
                num_classes=len(recipe.class_names),
                alpha=config["alpha"],
                image_size=recipe.image_size,
                anchors=anchors,
                group=config.get("group") or "c1",
            )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"it has no tensors, and no network can be built from its config: {error!r}") from error
    places = network.places()
    if places.keys() != record["prior_precision"].keys() or sum(p.size for p in places.values()) != record["n_params"]:
        raise UserError("it has no tensors, and the network built from its config has other parameters")
    return places


@command("mend")
def main(arguments: Sequence[str] | None = None) -> int:
    """Mend results in place and say what was done, a line a file; return the exit status (2 for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.results.mend", description=__doc__.partition("\n")[0])
    help_text = "all results below it; default: results"
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("results")], metavar="FOLDER", help=help_text)
    options = parser.parse_args(arguments)
    for file in [file for folder in options.folders for file in result_files(folder)]:
        print(f"{file}: {_mend(file)}")
    return 0


def _mend(file: Path) -> str:
    """Mend one file; return what was done."""
    read_result(file)  # whatever is wrong with it is said
    record = json.loads(file.read_text(encoding="utf-8"))
    after = mended(record)
    added = [key for key in after if key not in record]
    changed = [key for key in after if key in record and after[key] != record[key]]
    if not added and not changed:
        return "up to date"
    write_atomically(file, as_json(after).encode())
    parts = {"added": added, "recomputed": changed}
    return "; ".join(f"{done} {', '.join(keys)}" for done, keys in parts.items() if keys)


if __name__ == "__main__":
    sys.exit(main())
