"""Mirror finished runs in W&B anew, whatever was tracked while they went on: folders, their result.json, or many.

python -m ellarepro.tracking RUN [RUN ...] [--mode online|offline] [--project NAME] [--entity NAME]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ellarepro.errors import command
from ellarepro.figures import as_png, draw_run
from ellarepro.results import RunResult, read_result, read_results, result_file
from ellarepro.tracking import contents
from ellarepro.tracking.trackers import MODES, make_tracker


def mirror(result: RunResult, folder: Path, **options: Any) -> None:
    """Track the finished `result`, whole and under an id of its own, so that nothing of another tracking is in its way.

    Args:
        result: what the run found.
        folder: where an offline run lies.
        options: `mode`, `project` and `entity`, as of `make_tracker`.

    Raises:
        UserError: as of `make_tracker`.
    """
    identity = contents.identity(f"{result.run_id}-mirror", result.config)
    tracker = make_tracker("wandb", identity=identity, folder=folder, **options)
    for epoch, points in contents.curves(result):
        tracker.log(points, epoch)
    tracker.finish(result, as_png(draw_run(result)))


@command("tracking")
def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror the finished runs that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.tracking", description=__doc__.partition(":")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, its result.json, or many")
    parser.add_argument("--mode", choices=MODES, help="by default as tracking=wandb chooses")
    parser.add_argument("--project", default="ellarepro")
    parser.add_argument("--entity")
    asked = parser.parse_args(arguments)
    options = {"mode": asked.mode, "project": asked.project, "entity": asked.entity}
    for run in asked.runs:
        file = result_file(run)
        for result in [read_result(file)] if file.is_file() else read_results(run):
            mirror(result, run if run.is_dir() else run.parent, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
