"""Noether's razor, run and drawn: `python -m ellarepro.noether cpu` (or `paper`, `smoke`); finished runs are kept.

Records go to `results/noether/<budget>/`, one JSON a run, with `generators.png` and `study.md` beside them.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import UserError, command
from ellarepro.figures import draw_generators, save
from ellarepro.noether import bounded, closed
from ellarepro.noether.bounded import BoundedRun
from ellarepro.noether.closed import AlgebraRun
from ellarepro.noether.study import SYMMETRIES, main_records, read_records, study
from ellarepro.results import git_commit, hardware, versions
from ellarepro.resume.files import write_atomically, write_json

Run = AlgebraRun | BoundedRun


def cpu() -> list[Run]:
    """Half an hour of one core: U(1) to U(5), controls, and the tables at small sizes, of oscillators at two."""
    algebras = [AlgebraRun(n, seed) for n in range(1, 6) for seed in range(10)]
    beside = [AlgebraRun(3, seed, symmetry) for symmetry in ("plain", "oracle") for seed in range(3)]
    stretched = [AlgebraRun(2, seed, stretch=1.5) for seed in range(3)]
    published_noise = [AlgebraRun(1, seed, noise=1e-3**0.5) for seed in range(3)]
    unbounded = [AlgebraRun(2, seed, draws=float("inf")) for seed in range(3)]
    few: dict[str, Any] = {"trajectories": 40, "length": 10, "width": 32, "steps": 600}
    few |= {"lr": 6e-3, "lr_conserved": 3e-2}
    tables = [*table(**few), *table(), *table("bodies", learned=10)]
    return [*algebras, *beside, *stretched, *published_noise, *unbounded, *tables]


def table(system: str = "oscillators", **size: Any) -> list[Run]:
    """The published table of a system."""
    return [BoundedRun(system, symmetry, seed, **size) for seed in range(3) for symmetry in SYMMETRIES]


def paper() -> list[Run]:
    """The published size of the table of oscillators; never run here, a GPU's work."""
    return table(
        trajectories=200,
        length=50,
        width=200,
        steps=40_000,
        batch=500,
        flows=100,
        learned=30,
        lr=1e-3,
        lr_conserved=1e-2,
    )


def smoke() -> list[Run]:
    """Seconds: one oscillator once, and the table's fits cut to 20 steps."""
    return [AlgebraRun(1, 0), *table(trajectories=2, width=8, steps=20)[:3]]


BUDGETS = {"cpu": cpu, "paper": paper, "smoke": smoke}


def record_of(wanted: Run) -> dict[str, Any]:
    """Run it; its record with where it comes from."""
    begun, used = time.perf_counter(), time.process_time()
    found = closed.run(wanted) if isinstance(wanted, AlgebraRun) else bounded.run(wanted)
    return found | {
        "cpu_seconds": time.process_time() - used,
        "wall_seconds": time.perf_counter() - begun,
        "git_commit": git_commit(),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }


@command("ellarepro.noether")
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs of a budget that are not there yet, then the figure and the study; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget", help=" or ".join(BUDGETS))
    parser.add_argument("--out", type=Path, default=Path("results/noether"))
    parser.add_argument("--draw", action="store_true", help="only the figure and the study, of the runs that are there")
    asked = parser.parse_args(arguments)
    if asked.budget not in BUDGETS:
        raise UserError(f"budget: got {asked.budget!r}; possible are {', '.join(BUDGETS)}")
    torch.set_num_threads(1)
    folder = asked.out / asked.budget
    for wanted in [] if asked.draw else BUDGETS[asked.budget]():
        path = folder / f"{wanted.name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record_of(wanted))
            print(path, flush=True)
    records = read_records(folder)
    save(draw_generators({n: main_records(records, n) for n in range(1, 6)}), folder / "generators.png")
    write_atomically(folder / "study.md", study(records).encode())
    print(folder / "study.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
