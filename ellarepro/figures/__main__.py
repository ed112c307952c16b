"""One run as a picture, or several side by side.

    python -m ellarepro.figures RUN [RUN ...] [--out FILE.png]

RUN is a run's folder, its result.json, or a folder of runs, which stands for all its Laplace runs. The picture of one
run is effective_parameters.png beside its result if --out names no other place.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ellarepro.errors import UserError, command
from ellarepro.figures import draw_run, draw_side_by_side, save
from ellarepro.inspection import has_curvature
from ellarepro.results import RESULT_FILE, RunResult, read_result, result_file

FIGURE_FILE = "effective_parameters.png"


def load(runs: Sequence[Path]) -> dict[Path, RunResult]:
    """Return {result file: run} of what `runs` name, each run once.

    Raises:
        UserError: something is missing or damaged; a folder without a run that fitted a curvature.
    """
    found: dict[Path, RunResult] = {}
    for run in runs:
        named = not run.is_dir() or (run / RESULT_FILE).exists()
        files = [result_file(run)] if named else sorted(run.rglob(RESULT_FILE))
        results = {file: read_result(file) for file in files}
        kept = results if named else {file: result for file, result in results.items() if has_curvature(result)}
        if not kept:
            raise UserError(f"runs: got the folder {run}, which holds no run with objective=laplace")
        found |= {file: result for file, result in kept.items() if result not in found.values()}
    return found


@command("figures")
def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the runs that the command line names; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.figures", description=__doc__.partition("\n")[0])
    help_text = "a run's folder, its result.json, or a folder of runs (then all its Laplace runs)"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=help_text)
    parser.add_argument("--out", type=Path, metavar="FILE.png", help=f"for one run by default {FIGURE_FILE} beside it")
    options = parser.parse_args(arguments)
    found = load(options.runs)
    if len(found) > 1 and options.out is None:
        raise UserError(f"--out FILE.png: is needed for several runs side by side, got {len(found)} runs")
    out = options.out or next(iter(found)).with_name(FIGURE_FILE)
    results = list(found.values())
    save(draw_side_by_side(results) if len(results) > 1 else draw_run(*results), out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
