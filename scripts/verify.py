"""Recompute a finished run and say whether it is the same within a stated tolerance.

    python -m scripts.verify RUN [--root DIR] [--weights]

RUN is the folder of a run, as results/table1/<run_id>. Its kept weights, if there are any, are tested first, which
takes seconds; `--weights` does nothing else. Then the run is trained again. With the packages and the instruction set
that it was made with, the numbers are the same to the last bit. Other kernels round otherwise, and that grows over the
epochs to what another seed would give: `TOLERANCES` allow for a little of it, and a short run can differ by more. A
machine that has AVX-512 computes as one that has AVX2 with

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m scripts.verify RUN

Exit status 0: within; 1: not; 2: it cannot be run.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ellarepro.errors import command
from ellarepro.results import RunResult, read_result, result_file

TOLERANCES = {"test_accuracy": 0.02, "test_nll": 0.1, "neg_log_marglik_per_datum": 0.05}
"""Absolute: a fraction of 1, nats, nats a datum."""
OTHER_KERNELS = (
    "kernels of another processor or package round otherwise, and that grows over a run; "
    "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 computes as a processor with AVX2 does"
)
SCORES = ("test_accuracy", "test_nll")


def report(kept: RunResult, again: RunResult, names: Iterable[str] = TOLERANCES) -> tuple[list[str], bool]:
    """A line a number, and whether all agree."""
    lines, agree = [], True
    for name in names:
        tolerance = TOLERANCES[name]
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
    parser.add_argument("--weights", action="store_true", help="test the kept weights, without training again")
    asked = parser.parse_args(arguments)
    kept, agree = read_result(result_file(asked.run)), True
    # Of committed runs the digest is there, and the weights are not.
    if asked.weights or (result_file(asked.run).parent / "weights.safetensors").exists():
        lines, agree = report(kept, _tested(asked.run, asked.root), SCORES)
        print("\n".join(["the kept weights:", *lines]))
    if not asked.weights:
        agree &= _agrees_again(kept, asked.root)
    return 0 if agree else 1


def _agrees_again(kept: RunResult, root: str | None) -> bool:
    """Train the run again, print what it gives, and return whether that agrees."""
    from ellarepro.run import run
    from ellarepro.runs.trained import asked_again

    with tempfile.TemporaryDirectory() as folder:
        again = run(asked_again(kept, root).changed(output_dir=folder)).result
    lines, agree = report(kept, again)
    print("\n".join([f"recorded: {made_with(kept)}", f"recomputed: {made_with(again)}", *lines]))
    if not agree and (kept.hardware, kept.versions) != (again.hardware, again.versions):
        print(OTHER_KERNELS)
    return agree


def _tested(run: Path, root: str | None) -> RunResult:
    """The result of a run with the test scores of its kept weights."""
    from ellarepro import load_run
    from ellarepro.evidence.evaluation import evaluate

    loaded = load_run(run, root=root)
    scores = evaluate(loaded.network, loaded.task.test, likelihood=loaded.likelihood)
    return replace(loaded.result, test_accuracy=scores.accuracy, test_nll=scores.nll)


if __name__ == "__main__":
    sys.exit(main())
