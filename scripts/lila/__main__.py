"""Does the evidence find how far digits are turned? Learned invariance beside its controls, on a small network.

    python -m scripts.lila [--report]

Digits are turned by a known range, and networks average over copies turned by a range that they learn. What is finished
is not run again; results/lila/ has a record a run, study.md and study.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import command
from ellarepro.figures import save
from ellarepro.resume.files import write_atomically, write_json
from scripts.lila.page import draw, page
from scripts.lila.runs import BESIDE, CONTROLS, MAIN, OTHERS, SEEDS, SIDES, SIZES, run, speed

RESULTS = Path(__file__).parents[2] / "results" / "lila"


def records_in(folder: Path) -> list[dict[str, Any]]:
    """What is finished."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


@command("lila")
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.lila", description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="run nothing, write the files from what there is")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = RESULTS / "records"
    records.mkdir(parents=True, exist_ok=True)
    first = [case for case in (*MAIN, *CONTROLS) if case.seed == SEEDS[0]]
    # What says most comes first.
    cases = list(dict.fromkeys((*first, *MAIN, *SIDES, *OTHERS, *CONTROLS, *SIZES, *BESIDE)))
    for case in () if options.report else cases:
        if not (records / f"{case.name}.json").exists():
            write_json(records / f"{case.name}.json", run(case), indent=1)
    cost = RESULTS / "cost.json"
    if not cost.exists():
        write_json(cost, speed())
    found = records_in(records)
    write_atomically(RESULTS / "study.md", page(found, json.loads(cost.read_text())).encode())
    save(draw(found), RESULTS / "study.png")
    print(RESULTS / "study.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
