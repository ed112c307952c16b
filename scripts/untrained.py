"""Add to results of earlier versions what their networks had before any training, measured now: no run is repeated.

    python -m scripts.untrained RUN [RUN ...] [--root WHERE THE DATA LIE]

The network is built as the run built it and its curvature is fitted once, with the run's own settings. A result that
has the numbers, or has no use for them, stays as it is.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ellarepro.errors import UserError, command
from ellarepro.results import UNTRAINED, read_result, result_file
from ellarepro.results.record import as_json
from ellarepro.resume.files import write_atomically
from ellarepro.runs.measuring import note_untrained
from ellarepro.runs.preparing import prepare
from scripts.verify import asked_again


@command("untrained")
def main(arguments: Sequence[str] | None = None) -> int:
    """Say what was done, a line a run; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m scripts.untrained", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder or its result.json")
    parser.add_argument("--root", help="where the data lie (default: where the run found them)")
    options = parser.parse_args(arguments)
    for run in options.runs:
        print(f"{run}: {_add(result_file(run), options.root)}", flush=True)
    return 0


def _add(file: Path, root: str | None) -> str:
    """Add the numbers to one result; return what was done."""
    result = read_result(file)
    if UNTRAINED in result.history:
        return "has them"
    config = asked_again(result)
    if root:
        config["dataset"]["root"] = root
    trainer, task = prepare(config)
    if task.fingerprint != result.data_fingerprint:
        raise UserError(f"{file}: made of other data (fingerprint {result.data_fingerprint}, here {task.fingerprint})")
    note_untrained(trainer)
    if UNTRAINED not in trainer.history:
        return "learns no precisions, or has one path a layer: nothing to add"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["history"][UNTRAINED] = trainer.history[UNTRAINED]
    write_atomically(file, as_json(record).encode())
    return "added"


if __name__ == "__main__":
    sys.exit(main())
