"""SLURM's queue, asked by squeue alone: it needs no accounting, and a job that died without a word is noticed."""

import pickle
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ellarepro.launching.sweep_runs import Ended, tell

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""How long the result of a job that is over may take to appear on a shared file system."""
OVER = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "cancelled",
    "COMPLETED": "ended",
    "DEADLINE": "past its deadline",
    "FAILED": "killed, or stopped before it could say why",
    "GONE": "cancelled, or gone from the queue",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory (hydra.launcher.memory_gb)",
    "TIMEOUT": "at its time limit (hydra.launcher.minutes), before it could be requeued",
}
"""States that a job does not leave, in words; GONE is one that the queue does not know any more."""


@dataclass(frozen=True)
class Queued:
    """A job.

    Attributes:
        id: SLURM's, as `17` or `17_3`.
        result: the file that its result will be in.
        log: what it prints.
    """

    id: str
    result: Path
    log: Path


@dataclass(frozen=True)
class State:
    """What the queue says of a job: its state's name, as PENDING, and why it does not run ("None" if it does)."""

    name: str
    reason: str = "None"

    @property
    def is_over(self) -> bool:
        return self.name in OVER


def follow(
    jobs: Mapping[int, Queued],
    labels: Mapping[int, str],
    before: Mapping[int, Ended],
    on_end: Callable[[Ended], None] = lambda run: None,
) -> dict[int, Ended]:
    """Wait until all `jobs` have ended, and print how, each as it does.

    Args:
        labels: what each job runs.
        before: runs that had ended before; they are printed first.
        on_end: called with each run that ends.
    """
    started, total = time.monotonic(), len(jobs) + len(before)
    ended: dict[int, Ended] = {}
    for number, run in enumerate(before.values(), 1):
        tell(run, number, total, 0.0)
    over_since: dict[int, float] = {}
    shown = None
    while len(ended) < len(jobs):
        waiting = {index: job for index, job in jobs.items() if index not in ended}
        # Asked before results are looked for: one that is written in between is found the next time.
        now = states(job.id for job in waiting.values()) or {}
        for index, job in waiting.items():
            state = now.get(job.id)
            if state is None or not state.is_over:
                over_since.pop(index, None)
            elif time.monotonic() - over_since.setdefault(index, time.monotonic()) > PATIENCE_SECONDS:
                ended[index] = Ended(labels[index], f"failed: {OVER[state.name]}, without a result; {job.log}", 1)
            if job.result.exists():
                ended[index] = _read(job, labels[index])
            if index in ended:
                tell(ended[index], len(before) + len(ended), total, time.monotonic() - started)
                on_end(ended[index])
        summary = _summary(now[job.id] for index, job in waiting.items() if now and index not in ended)
        if summary not in ("", shown):
            print(summary, flush=True)
            shown = summary
        if len(ended) < len(jobs):
            time.sleep(POLL_SECONDS)
    return ended


def states(jobs: Iterable[str]) -> dict[str, State] | None:
    """The states of `jobs` by id; None while the queue cannot be asked."""
    wanted = list(jobs)
    numbers = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={numbers}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    found = dict(_line(line) for line in asked.stdout.splitlines() if line.count("|") == 2)
    return {job: found.get(job, State("GONE")) for job in wanted}


def _line(line: str) -> tuple[str, State]:
    job, name, reason = line.strip().split("|")
    return job, State(name, reason)


def _read(job: Queued, label: str) -> Ended:
    """What a job has left: how its run ended, or the trace of what stopped it before or after."""
    try:
        outcome, value = pickle.loads(job.result.read_bytes())
    except Exception as error:  # A damaged file can raise anything.
        outcome, value = "error", f"{job.result} cannot be read ({error})"
    if outcome == "success":
        return value
    return Ended(label, f"failed: {value.strip().splitlines()[-1]}; {job.log}", 1)


def _summary(found: Iterable[State]) -> str:
    """How many jobs run, wait and why, in one line."""
    counts = Counter(
        f"{state.name.lower()}" + ("" if state.reason == "None" else f" ({state.reason})")
        for state in found
        if not state.is_over
    )
    return ", ".join(f"{number} {text}" for text, number in sorted(counts.items()))
