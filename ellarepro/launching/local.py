"""Runs side by side on this machine, each in a process of its own."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, cast

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ellarepro.errors import UserError
from ellarepro.launching.cells import Cells, tell


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: `jobs` processes, which share the cores; the driver tells how each run ended.

    Args:
        jobs: runs at a time; None takes one a core, or one where there is a GPU.
    """

    def __init__(self, jobs: int | None = None):
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.cells = cast(Cells, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Carry out all runs; what Hydra would pass as overrides is empty, the runs are composed."""
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"hydra.launcher.jobs must be at least 1, or null for one a core; got {self.jobs}")
        jobs = min(self.jobs or default_jobs(), len(self.cells))
        started, ended = time.monotonic(), {}
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {
                pool.submit(self.cells.run, index, **share(self.cells.configs[index], jobs)): index
                for index in range(len(self.cells))
            }
            for future in as_completed(futures):
                ended[futures[future]] = future.result()
                tell(future.result(), len(ended), len(self.cells), time.monotonic() - started)
        return [JobReturn(_return_value=ended[index], status=JobStatus.COMPLETED) for index in sorted(ended)]


def default_jobs() -> int:
    """One run a core of the CPU; a GPU takes one at a time."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def share(config: dict[str, Any], jobs: int) -> dict[str, Any]:
    """What a run beside others is told: no progress line of its own, and its share of the cores."""
    if jobs == 1:
        return {}
    threads = config["threads"] or max((os.cpu_count() or 1) // jobs, 1)
    return {"progress": False, "threads": threads}
