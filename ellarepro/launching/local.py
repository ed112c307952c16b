"""Runs side by side on this machine, each in a process of its own that tells the driver how far it is."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.queues import SimpleQueue
from types import FrameType
from typing import Any, cast

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ellarepro.config.schema import Config
from ellarepro.errors import Interrupted, UserError
from ellarepro.launching.display import Event, ProgressDisplay
from ellarepro.launching.sweep_runs import Ended, SweepRuns, label, names, tell

POLL_SECONDS = 0.2
KILLED = "killed, most often for want of memory: lower hydra.launcher.jobs (JOBS=)"
_channel: "SimpleQueue[tuple[int, Event]]"
"""From a run's process to the driver; set once in each, as a queue can be given to a process only when it starts."""


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: `jobs` processes, which share the cores; the driver tells how each run ended.

    Args:
        jobs: runs at a time; None takes one a core, or one where there is a GPU.

    Attributes:
        on_end: called in the driver with each run that has ended.
    """

    def __init__(self, jobs: int | None = None):
        self.jobs = jobs
        self.on_end: Callable[[Ended], None] = lambda run: None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.runs = cast(SweepRuns, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Carry out all runs; what Hydra would pass as overrides is empty, the runs are composed.

        Raises:
            UserError: fewer than one job.
            Interrupted: by SIGINT or SIGTERM, once the runs under way have kept their places.
        """
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"hydra.launcher.jobs must be at least 1, or null for one a core; got {self.jobs}")
        jobs = min(self.jobs or default_jobs(), len(self.runs))
        waiting, running, ended = list(range(len(self.runs))), dict[Future, tuple[int, _Worker]](), dict[int, Ended]()
        started = time.monotonic()
        display = ProgressDisplay(names(self.runs.configs))

        def take(done: set[Future]) -> None:
            for future in done:
                index, worker = running.pop(future)
                ended[index] = worker.outcome(future, self.runs.configs[index])
                display.end(index)
                tell(ended[index], len(ended), len(self.runs), time.monotonic() - started)
                self.on_end(ended[index])

        with ExitStack() as workers, display, _told_to_stop():
            idle = [workers.enter_context(_Worker()) for _ in range(jobs)]
            try:
                while waiting or running:
                    while waiting and idle:
                        index, worker = waiting.pop(0), idle.pop()
                        running[worker.begin(self.runs, index, share(self.runs.configs[index], jobs))] = index, worker
                    done = wait(running, POLL_SECONDS, return_when=FIRST_COMPLETED).done
                    for _, worker in running.values():
                        worker.listen(display)
                    idle += [running[future][1] for future in done]
                    take(done)
            except Interrupted:
                _stop_children()
                # A process that had not begun its run has ended at once, and nothing is to be told of it.
                take({f for f in wait(running).done if not isinstance(f.exception(), BrokenProcessPool)})
                raise
        return [JobReturn(_return_value=ended[index], status=JobStatus.COMPLETED) for index in sorted(ended)]


class _Worker(AbstractContextManager):
    """A process that carries out one run at a time and tells how far it is; if it is killed, no other one suffers."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.channel: SimpleQueue[tuple[int, Event]] = context.SimpleQueue()
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_join, initargs=(self.channel,))

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown()

    def begin(self, runs: SweepRuns, index: int, changes: dict[str, Any]) -> Future:
        return self.pool.submit(_carry_out, runs, index, changes)

    def listen(self, display: ProgressDisplay) -> None:
        """Show what the process has told since."""
        while not self.channel.empty():
            display.show(*self.channel.get())

    def outcome(self, future: Future, config: Config) -> Ended:
        """How the run of `future` ended; if the process ended with it, there is a new one afterwards."""
        try:
            return future.result()
        except BrokenProcessPool:
            self.pool.shutdown()
            self._start()
            return Ended(label(config), f"failed: its process was {KILLED}; the same command continues it", 1)


def _join(channel: "SimpleQueue[tuple[int, Event]]") -> None:
    """Begin a process of the pool."""
    global _channel
    _channel = channel
    threading.Thread(target=_end_with_the_driver, daemon=True).start()


def _end_with_the_driver() -> None:
    """Once the driver is gone, without a word, the run under way keeps its place and the process ends.

    A run notes the first signal and ends; the next one ends the process, which would wait for work for ever.
    """
    driver = parent_process()
    assert driver is not None
    driver.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(POLL_SECONDS)


def _carry_out(runs: SweepRuns, index: int, changes: dict[str, Any]) -> Ended:
    """Carry out run `index` in a process of the pool."""

    def tell_driver(event: Event) -> None:
        _channel.put((index, event))

    tell_driver(None)
    watch = tell_driver if runs.configs[index].progress else None
    return runs.run(index, tell_driver, watch, **changes)


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Within the context the first SIGINT or SIGTERM raises `Interrupted`, a second one is the system's again."""

    def raise_once(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        raise Interrupted(f"stopped by {signal.Signals(number).name}; the same command goes on", number)

    before = {number: signal.signal(number, raise_once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_children() -> None:
    """Tell the runs; not by SIGINT, which a terminal has sent them itself, and whose second does not wait."""
    for child in active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGTERM)


def default_jobs() -> int:
    """One run a core of the CPU; a GPU takes one at a time."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def share(config: Config, jobs: int) -> dict[str, Any]:
    """What a run beside others is told: its share of the cores."""
    return {} if jobs == 1 else {"threads": config.threads or max((os.cpu_count() or 1) // jobs, 1)}
