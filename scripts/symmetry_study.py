"""Does it find the symmetry that is there? Four labels of the same moved digits, each with a known symmetry.

    python -m scripts.symmetry_study [key=value ...] [--report]

The data are those of `ellarepro/data/moves.py`, the runs those of configs/experiment/study/, the same as
`python -m ellarepro -m experiment=study/laplace,study/map` makes: what is finished is not run again, what was
interrupted goes on. Keys are for all runs, as there; by default three seeds, one at a time, on one thread. Then
study.md and study.png are written beside the runs' folder, from the result files of these runs alone, as many as there
are: measures of the paths of F-FC+CONV+GCONV beside the truth. What a person reads in it goes into reading.md, which
study.md ends with.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ellarepro.config.explain import choices_of
from ellarepro.config.resolve import check_combination
from ellarepro.config.sweep import Sweep, expand
from ellarepro.errors import UserError, command
from ellarepro.figures import save
from ellarepro.files import write_atomically
from ellarepro.launching.launch import failures, launch
from ellarepro.results import RESULT_FILE, RunResult, read_result, run_id
from scripts.symmetry_report import draw, page

EXPERIMENTS = [name for name in choices_of("experiment") if name.startswith("study/")]
DEFAULTS = (
    f"experiment={','.join(EXPERIMENTS)}",
    "seed=711,712,713",
    "threads=1",
    "output_dir=results/symmetry_study/runs",
)


@command("symmetry_study")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the study's files; return the exit status, 1 where a run failed, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m scripts.symmetry_study", description=__doc__.partition("\n")[0])
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for all runs, as for python -m ellarepro")
    parser.add_argument("--report", action="store_true", help="run nothing, write the files from what there is")
    options = parser.parse_intermixed_args(arguments)
    sweep = study(options.keys)
    configs = sweep.configs
    left = [config for config in configs if not result_file(config).exists()]
    print(f"{len(configs)} runs, {len(configs) - len(left)} finished before", flush=True)
    lines, status = failures(launch(left, sweep.hydra)) if left and not options.report else ([], 0)
    write(finished(configs), len(configs), Path(configs[0]["output_dir"]).parent)
    for line in lines:
        print(f"symmetry_study: {line}", file=sys.stderr)
    return status


def study(keys: Sequence[str] = ()) -> Sweep:
    """The runs of the study, with `keys` for all of them, checked.

    Raises:
        UserError: a mistake in the keys.
    """
    sweep = expand([*DEFAULTS, *keys], multirun=True)
    for config in sweep.configs:
        check_combination(config)
    # What says most comes first: each seed is complete before the next one begins.
    return replace(sweep, configs=sorted(sweep.configs, key=lambda c: (-(c["dataset"]["strength"] or 0), c["seed"])))


def result_file(config: Mapping[str, Any]) -> Path:
    """Where the run of `config` has its result."""
    return Path(config["output_dir"]) / run_id(config) / RESULT_FILE


def finished(configs: Sequence[Mapping[str, Any]]) -> list[RunResult]:
    """The results that there are of the runs of `configs`."""
    return [read_result(result_file(config)) for config in configs if result_file(config).exists()]


def write(results: Sequence[RunResult], asked: int, folder: Path) -> None:
    """Write study.md and study.png of `results`, of `asked` runs, to `folder`.

    Raises:
        UserError: there are no results.
        OSError: a file cannot be written.
    """
    if not results:
        raise UserError(f"output_dir: no run of the study is finished there; {asked} were asked for")
    reading = folder / "reading.md"
    text = page(results, asked, reading.read_text(encoding="utf-8") if reading.exists() else "")
    write_atomically(folder / "study.md", text.encode())
    save(draw(results), folder / "study.png")
    print(folder / "study.md")


if __name__ == "__main__":
    sys.exit(main())
