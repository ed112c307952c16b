"""How much is measured: everything that a rehearsal without a GPU makes smaller."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from ellarepro.network import LAYERS


def processes(count: int) -> Executor:
    """`count` processes, each with a context of its own on the device."""
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


@dataclass(frozen=True)
class Plan:
    """What is measured, and on what.

    Attributes:
        keys: of the cells of each table, as `make_table` takes them: where the data lie.
        layers: the layer types.
        alpha: of all networks; `grouped_alpha` of those with group features.
        batch: of a step; `fit_batch` of a fit.
        width: of the square matrices from which the device's rate is taken.
        rounds: measurements of each contender.
        budget: of the tables' cells.
        seconds: that a cell runs, stopped and continued in the middle.
        jobs: how many runs are tried side by side, `together` seconds long after `start` seconds to get ready.
        digits: keys of the run whose accuracy and evidence each arithmetic gives.
        tests: what pytest is told.
        pool: what the runs side by side run in.
    """

    device: str = "cuda"
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    layers: tuple[str, ...] = tuple(LAYERS)
    alpha: int = 10
    grouped_alpha: int = 2
    batch: int = 128
    fit_batch: int = 1000
    width: int = 8192
    rounds: int = 3
    budget: str = "paper"
    seconds: float = 120.0
    jobs: tuple[int, ...] = (1, 2, 4)
    together: float = 6.0
    start: float = 30.0
    digits: tuple[str, ...] = ("budget=demo", "alpha=10", "epochs=20")
    tests: tuple[str, ...] = ("-m", "cuda")
    pool: Callable[[int], Executor] = processes
