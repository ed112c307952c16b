"""`make bench`: every benchmark, or those named, as text; `--out FILE` keeps a copy."""

import argparse
import sys
from pathlib import Path

import torch

from ellarepro.results import git_commit, versions
from scripts.bench import curvature, factored, layers, tolerance

BENCHMARKS = {
    "factored": factored.main,
    "curvature": curvature.main,
    "layers": layers.main,
    "tolerance": tolerance.main,
}


def main() -> int:
    """Run the benchmarks that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all if none is given")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender")
    parser.add_argument("--out", type=Path, help="write the output to this file, too")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; possible: {', '.join(BENCHMARKS)}")
    torch.manual_seed(0)
    lines = [_machine()]
    print(lines[0])
    for name in options.names or BENCHMARKS:
        for line in BENCHMARKS[name](options.rounds):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def _machine() -> str:
    found = versions()
    return (
        f"commit {git_commit()[:12]}, torch {found['torch']}, {torch.get_num_threads()} CPU threads; "
        "medians of alternating runs in one process"
    )


if __name__ == "__main__":
    sys.exit(main())
