"""`make bench`: every benchmark, or those of `--only`, as text, as JSON and beside the committed JSON."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ellarepro.figures.canvas import save
from ellarepro.results import git_commit, hardware, versions
from ellarepro.resume.files import write_atomically, write_json
from scripts.bench import bound, curvature, device, epoch, factored, growth, layers, optimisers, plain, tolerance
from scripts.bench.tables import as_json, became_worse, of_json

BENCHMARKS = {
    "plain": plain.main,
    "epoch": epoch.main,
    "factored": factored.main,
    "curvature": curvature.main,
    "layers": layers.main,
    "bound": bound.main,
    "optimisers": optimisers.main,
    "tolerance": tolerance.main,
    "growth": growth.main,
    "device": device.main,
}
RESULTS = Path(__file__).parents[2] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that the command line names; returns the exit status, which says nothing of speed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    names = list(BENCHMARKS)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, default=names, help=f"of {', '.join(names)}"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of bench.json, bench.txt, bench_growth.png")
    parser.add_argument("--against", type=Path, default=RESULTS / "bench.json", help="earlier results to compare with")
    options = parser.parse_args(arguments)
    before = _read(options.against)
    kept, found = _read(options.out / "bench.json"), {}
    for name in options.only:
        torch.manual_seed(0)
        tables = []
        for table in BENCHMARKS[name](options.rounds):
            print("\n" + "\n".join(table.lines()), flush=True)
            tables.append(table)
        if tables:
            found[name] = _machine(name) | {"tables": as_json(tables)}
            # After each: what was measured stays when the next one is stopped.
            _write(options.out, {name: (kept | found)[name] for name in BENCHMARKS if name in kept | found})
    print("\n" + "\n".join(compared(before, found)))
    return 0


def compared(before: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is worse than before beyond noise, a line each."""
    lines = []
    for name in found.keys() & before.keys():
        old, new = before[name], found[name]
        same = all(old[key] == new[key] for key in ("hardware", "torch"))
        lines += [f"worse: {line}" for line in became_worse(of_json(old["tables"]), of_json(new["tables"]), same)]
    beside = "" if found.keys() & before.keys() else " (nothing to compare with)"
    return sorted(lines) or [f"nothing is worse than before beyond noise{beside}"]


def _machine(benchmark: str) -> dict[str, Any]:
    """What a benchmark ran on: all are of the CPU but one."""
    where = torch.device("cuda" if benchmark == "device" else "cpu")
    return {"commit": git_commit()[:12], "torch": versions()["torch"], "hardware": hardware(where)}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(folder: Path, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", found, indent=1)
    write_atomically(folder / "bench.txt", ("\n".join(_text(found)) + "\n").encode())
    if "growth" in found:
        save(growth.draw(of_json(found["growth"]["tables"])), folder / "bench_growth.png")


def _text(found: dict[str, Any]) -> list[str]:
    lines = ["Medians of alternating runs in one process; `make bench` writes this file and bench.json."]
    for name, part in found.items():
        lines += ["", f"{name}: commit {part['commit']}, torch {part['torch']}, {part['hardware']}"]
        for table in of_json(part["tables"]):
            lines += ["", *table.lines()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
