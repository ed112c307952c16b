"""Recompute a finished run and say whether it is the same within a stated tolerance.

    python -m scripts.verify RUN [--root DIR]

RUN is the folder of a run, as results/table1/<run_id>. On the processor and with the packages it was made with, the
numbers are the same; elsewhere rounding grows over the epochs, and `TOLERANCES` are what a seed-to-seed difference is
wide. Exit status 0: within; 1: not; 2: it cannot be run.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ellarepro.config.compose import compose
from ellarepro.errors import UserError, command
from ellarepro.results import RunResult, flatten, read_result, result_file, run_id
from ellarepro.results.identity import ADDED_LATER, RETIRED

TOLERANCES = {"test_accuracy": 0.02, "test_nll": 0.1, "neg_log_marglik_per_datum": 0.05}
"""Absolute: a fraction of 1, nats, nats a datum."""
_GROUPS = ("dataset", "layer", "prior", "optimiser", "objective", "budget")


def asked_again(result: RunResult) -> dict[str, Any]:
    """The configuration of `result` with today's keys: those added since at the value that stands for what was done.

    Raises:
        UserError: it cannot be asked for today.
    """
    recorded = result.config
    today = compose([f"{group}={recorded[group]['name']}" for group in _GROUPS])
    before = {key: value for key, value in ADDED_LATER.items() if _has(today, key)}
    for key, value in before.items():
        _set(today, key, value)
    _take_over(today, recorded)
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
    print("\n".join([f"made with {kept.git_commit}, recomputed with {again.git_commit}", *lines]))
    return 0 if agree else 1


def _take_over(config: dict[str, Any], recorded: Mapping[str, Any]) -> None:
    """Set what was recorded of keys that there are today."""
    for key, value in recorded.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            _take_over(config[key], value)
        elif key in config:
            config[key] = value


def _has(config: Mapping[str, Any], key: str) -> bool:
    group, _, name = key.rpartition(".")
    return name in (config[group] if group else config)


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    group, _, name = key.rpartition(".")
    (config[group] if group else config)[name] = value


if __name__ == "__main__":
    sys.exit(main())
