"""`hydra/launcher=slurm`: all runs of a sweep as one SLURM array, followed from the node that it is submitted on.

submitit writes the batch file and, on the node, catches the signals of a time limit and of preemption and requeues.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ellarepro.config.schema import Config
from ellarepro.errors import UserError
from ellarepro.launching.queue import Queued, follow, states
from ellarepro.launching.snapshot import snapshot
from ellarepro.launching.sweep_runs import Ended, SweepRuns, label
from ellarepro.resume.files import write_atomically
from ellarepro.settings.ranges import Settings, setting

JOBS_FILE = "jobs.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A signal that comes before Python catches it would end the job for good. -P: the working directory, with code that may
# have been edited since, is not imported from.
PYTHON = f'sh -c \'trap "" USR2; exec "$@"\' sh {shlex.quote(sys.executable)} -P'


@dataclass(frozen=True)
class SlurmSettings(Settings):
    """What the cluster is asked for, for each run.

    Raises:
        ValueError: a value out of its range, or a warning that comes before the run has started.
    """

    jobs: int | None = setting("runs at a time; null: as many as the cluster gives", None, least=1)
    minutes: int = setting("limit of a stretch, after which a run is requeued", 240, least=1)
    requeues: int = setting("how often a run may reach that limit", 50, least=0)
    warning_seconds: int = setting("how long before the limit a run is told", 120, least=1)
    cpus: int = setting("cores, and threads, of a run", 4, least=1)
    memory_gb: float | None = setting("of the node, for a run; null: the cluster's default", 16, above=0)
    gres: str | None = setting("generic resources, as gpu:1", "gpu:1")
    shell: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if self.warning_seconds >= 60 * self.minutes:
            raise ValueError(
                f"warning_seconds must be below the limit, {60 * self.minutes}; got {self.warning_seconds}"
            )

    def parameters(self, code: Path) -> dict[str, Any]:
        """What submitit calls these, for runs of the code in the folder `code`."""
        threads = " ".join(f"{name}={self.cpus}" for name in THREAD_VARIABLES)
        options = {"requeue": True, "gres": self.gres, **self.sbatch}
        wanted = {
            "job_name": "ellarepro",
            "time": self.minutes,
            "signal_delay_s": self.warning_seconds,
            "cpus_per_task": self.cpus,
            "mem": None if self.memory_gb is None else f"{round(1024 * self.memory_gb)}M",
            "array_parallelism": self.jobs,
            "stderr_to_stdout": True,
            "additional_parameters": {key: value for key, value in options.items() if value is not None},
            "setup": [
                *self.shell,
                f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
                f"export {threads}",
            ],
        }
        # submitit's own key for accounting, which some clusters refuse.
        return {key: value for key, value in wanted.items() if value is not None} | {"wckey": None}


@dataclass(frozen=True)
class SlurmRun:
    """One run as it is put into the queue."""

    config: Config

    def __call__(self) -> Ended:
        ended = SweepRuns([self.config]).run(0)
        print(f"{ended.label}: {ended.line}", flush=True)
        return ended

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same run, which finds its own checkpoint."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


class SlurmLauncher(Launcher):
    """Submits what is neither finished nor in the queue, follows all, and tells how each run ended.

    Args:
        settings: those of `SlurmSettings`, by name.

    Attributes:
        on_end: called in the driver with each run that has ended since it began to follow.
    """

    def __init__(self, **settings: Any):
        self.settings = SlurmSettings(**settings)
        self.on_end: Callable[[Ended], None] = lambda run: None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.runs = cast(SweepRuns, task_function)
        self.sweep = Path(config.hydra.sweep.dir)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Carry out all runs; what Hydra would pass as overrides is empty, the runs are composed.

        Raises:
            UserError: this is no node to submit from, or sbatch refuses the jobs.
        """
        configs = self.runs.configs
        finished = {index: self.runs.finished(index) for index in range(len(configs))}
        ended = {index: run for index, run in finished.items() if run is not None}
        left = [index for index in finished if index not in ended]
        if left:
            _check_tools()
        jobs = _queued(self.sweep.parent, {configs[index].run_id: index for index in left})
        for index, job in jobs.items():
            print(f"{job.id} is in the queue: {label(configs[index])}, {job.log}", flush=True)
        jobs |= self._submit([index for index in left if index not in jobs])
        try:
            ended |= follow(jobs, {index: label(configs[index]) for index in jobs}, ended, self.on_end)
        except KeyboardInterrupt:
            print("\nThe jobs stay in the queue; the same command, given again, follows them.", file=sys.stderr)
            raise
        return [JobReturn(_return_value=ended[index], status=JobStatus.COMPLETED) for index in sorted(ended)]

    def _submit(self, indices: Sequence[int]) -> dict[int, Queued]:
        """One array of the runs `indices`."""
        if not indices:
            return {}
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = _new_folder(self.sweep)
        executor = SlurmExecutor(folder, max_num_timeout=self.settings.requeues, python=PYTHON)
        changes = {"progress": False, "threads": self.settings.cpus}
        try:
            with _outside_of_any_job():
                executor.update_parameters(**self.settings.parameters(snapshot(folder / "code")))
                runs = [SlurmRun(self.runs.configs[index].changed(**changes)) for index in indices]
                with executor.batch():
                    submitted = [executor.submit(run) for run in runs]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refused the jobs: {' '.join(str(error).split())}") from error
        jobs = {
            index: Queued(job.job_id, job.paths.result_pickle, folder / f"{self.runs.configs[index].run_id}.log")
            for index, job in zip(indices, submitted, strict=True)
        }
        self._note(folder, jobs, [job.paths.stdout for job in submitted])
        return jobs

    def _note(self, folder: Path, jobs: Mapping[int, Queued], logs: Sequence[Path]) -> None:
        """Say where each run is to be found, on the screen and in files for the next launch."""
        print(f"SLURM took {len(jobs)} runs; logs, and the code they run, in {folder}", flush=True)
        for (index, job), log in zip(jobs.items(), logs, strict=True):
            job.log.symlink_to(log.name)
            print(f"{job.id}  {label(self.runs.configs[index])}", flush=True)
        names = {self.runs.configs[index].run_id: [job.id, job.result.name] for index, job in jobs.items()}
        write_atomically(folder / JOBS_FILE, json.dumps(names, indent=2).encode())


def _check_tools() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("hydra/launcher=slurm needs submitit: pip install submitit") from error
    missing = [tool for tool in ("sbatch", "srun", "squeue") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"hydra/launcher=slurm is for a machine that submits SLURM jobs; not found here: {', '.join(missing)}. "
            "hydra/launcher=local runs on this machine"
        )


def _queued(sweeps: Path, wanted: Mapping[str, int]) -> dict[int, Queued]:
    """Those of the runs `wanted` ({id: index}) that an earlier launch has put into the queue and that are still there.

    Raises:
        UserError: there are such, and the queue cannot be asked for them.
    """
    found = {}
    for file in sorted(sweeps.glob(f"*/{JOBS_FILE}")):
        for name, (job, result) in json.loads(file.read_text(encoding="utf-8")).items():
            if name in wanted:
                found[wanted[name]] = Queued(job, file.parent / result, file.parent / f"{name}.log")
    if not found:
        return {}
    now = states(job.id for job in found.values())
    if now is None:
        raise UserError("squeue does not answer, and some of these runs may be in the queue: try again later")
    return {index: job for index, job in found.items() if not now[job.id].is_over}


def _new_folder(folder: Path) -> Path:
    """Make `folder`, or one beside it where another launch had the same second."""
    for number in count(1):
        made = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            made.mkdir(parents=True)
        except FileExistsError:
            continue
        return made.resolve()
    raise AssertionError("numbers never end")


@contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hide what a job that this process may run in has set in the environment; which cluster it is stays."""
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield
