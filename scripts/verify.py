"""Recompute a finished run and say whether it is the same within a stated tolerance.

    python -m scripts.verify RUN [--root DIR]

RUN is the folder of a run, as results/table1/<run_id>. With the packages and the instruction set that it was made with,
the numbers are the same to the last bit. Other kernels round otherwise, and that grows over the epochs to what another
seed would give: `TOLERANCES` allow for a little of it, and a short run can differ by more. A machine that has AVX-512
computes as one that has AVX2 with

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m scripts.verify RUN

Exit status 0: within; 1: not; 2: it cannot be run.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from ellarepro.errors import UserError, command
from ellarepro.results import RunResult, flatten, read_result, result_file, run_id
from ellarepro.results.identity import ADDED_LATER, MOVED, RETIRED, leaves
from ellarepro.settings.compose import compose

TOLERANCES = {"test_accuracy": 0.02, "test_nll": 0.1, "neg_log_marglik_per_datum": 0.05}
"""Absolute: a fraction of 1, nats, nats a datum."""
OTHER_KERNELS = (
    "kernels of another processor or package round otherwise, and that grows over a run; "
    "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 computes as a processor with AVX2 does"
)
TODAY = {before: now for now, before in MOVED.items()}
_GROUPS = ("dataset", "layer", "prior", "optimiser", "objective", "budget")


def asked_again(result: RunResult) -> dict[str, Any]:
    """The configuration of `result` with today's keys: those added since at the value that stands for what was done.

    Raises:
        UserError: it cannot be asked for today.
    """
    recorded = result.config
    today = compose([f"{group}={recorded[group]['name']}" for group in _GROUPS])
    before = {key: value for key, value in ADDED_LATER.items() if key not in recorded}
    for key, value in [*before.items(), *leaves(recorded)]:
        _set(today, TODAY.get(key, key), value)
    if (got := run_id(recorded)) != result.run_id:
        raise UserError(f"{result.run_id}: its configuration is that of {got}; nothing to compare")
    retired = RETIRED.get(recorded["optimiser"]["name"], {})
    if gone := dict(flatten(recorded)).keys() - dict(flatten(today)).keys() - retired.keys():
        raise UserError(f"{result.run_id}: there is no key {', '.join(sorted(gone))} any more; nothing to compare")
    return today | {"force": True, "wait": False, "tracking": {"name": "none"}}


def report(kept: RunResult, again: RunResult) -> tuple[list[str], bool]:
    """A line a number, and whether all agree."""
    lines, agree = [], True
    for name, tolerance in TOLERANCES.items():
        before, now = getattr(kept, name), getattr(again, name)
        if before is None and now is None:
            continue
        fine = before is not None and now is not None and abs(before - now) <= tolerance
        agree &= fine
        verdict = "the same" if before == now else f"within {tolerance:g}" if fine else f"NOT within {tolerance:g}"
        lines.append(f"{name}: recorded {before}, recomputed {now}: {verdict}")
    return lines, agree


def made_with(result: RunResult) -> str:
    """Code, torch and hardware, in words."""
    return f"{result.git_commit}, torch {result.versions.get('torch', 'not recorded')}, {result.hardware}"


@command("verify")
def main(arguments: list[str] | None = None) -> int:
    """Recompute what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--root", help="folder of the data, if it is another one here")
    asked = parser.parse_args(arguments)
    from ellarepro.run import run

    kept = read_result(result_file(asked.run))
    config = asked_again(kept)
    if asked.root:
        config["dataset"]["root"] = asked.root
    with tempfile.TemporaryDirectory() as folder:
        again = run(config | {"output_dir": folder}).result
    lines, agree = report(kept, again)
    print("\n".join([f"recorded: {made_with(kept)}", f"recomputed: {made_with(again)}", *lines]))
    if not agree and (kept.hardware, kept.versions) != (again.hardware, again.versions):
        print(OTHER_KERNELS)
    return 0 if agree else 1


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`, if there is one today."""
    group, _, name = key.rpartition(".")
    place = config.get(group) if group else config
    if isinstance(place, dict) and name in place:
        place[name] = value


if __name__ == "__main__":
    sys.exit(main())
