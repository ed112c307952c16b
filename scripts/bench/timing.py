"""Alternating measurements: on a shared machine only ratios within one run mean something."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.data import Samples, Task
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.runs import preparing
from ellarepro.settings.parts import OptimiserSettings, WeightSettings
from ellarepro.training.loop import Trainer
from ellarepro.training.replay import WARM_UP
from scripts.bench.tables import HIGHER, Measure

STILL = OptimiserSettings("torch.optim.SGD", 1e-30, 0.0, arguments={"momentum": 0.9, "fused": True})
"""SGD with momentum, with a learning rate so small that it changes nothing."""


def measured(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contender by the `clock`, taken in turns `rounds` times after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            started = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, see `measured`."""
    return {name: statistics.median(times) for name, times in measured(contenders, rounds).items()}


def summary(values: Sequence[float], unit: str = "", worse: str = "") -> Measure:
    """The median, and half of the range between the quartiles as its noise."""
    median = statistics.median(values)
    spread = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [median] * 3
    return Measure(median, unit, (spread[2] - spread[0]) / 2, worse)


def seconds(values: Sequence[float]) -> Measure:
    """Seconds of a call, as `measured` took them."""
    return summary(values, "s", HIGHER)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Measure:
    """Our seconds over theirs, round by round."""
    return summary([a / b for a, b in zip(ours, theirs, strict=True)], "", HIGHER)


def trainer_of(
    network: nn.Module,
    data: Samples,
    batch_size: int,
    augment: bool = False,
    replay: bool = False,
    objective: tuple[str, Any] = ("map", None),
    optimiser: OptimiserSettings = STILL,
) -> Trainer:
    """A run of one epoch."""
    channels, size = data.inputs.shape[1:3]
    task = Task("bench", data, data, int(data.targets.max()) + 1, channels, size, "", (0.0,), (1.0,), augment, ())
    weights = WeightSettings(1, batch_size, optimiser)
    generator = torch.Generator(data.inputs.device)
    return preparing.trainer_of(LayerwisePrior(network), task, weights, objective, generator, replay)


def training_step(
    network: nn.Module, images: Tensor, labels: Tensor, replay: bool = False, optimiser: OptimiserSettings = STILL
) -> Callable[[], object]:
    """A call that takes a step of `trainer_of`.

    Args:
        replay: whether it is replayed as a CUDA graph, which has been captured by then.
    """
    trainer = trainer_of(network, Samples(images, labels), len(labels), replay=replay, optimiser=optimiser)
    capture(trainer, images, labels)
    return lambda: trainer.step(images, labels)


def several(step: Callable[[], object], count: int) -> Callable[[], None]:
    """A call that takes `count` steps."""

    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def capture(trainer: Trainer, images: Tensor, labels: Tensor) -> None:
    """Where a run's steps are replayed, take as many as it needs for the next one to be."""
    for _ in range(WARM_UP + 1 if trainer.replay else 0):
        trainer.step(images, labels)


def matrix_rate(size: int = 1024, rounds: int = 20, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds a second of a large matrix product, the median of `rounds`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return size**3 / alternate({"product": lambda: left @ right}, rounds)["product"]
