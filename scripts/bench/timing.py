"""Medians of alternating measurements: on a shared machine only ratios within one run mean something."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, taken in turns `rounds` times after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A call that takes one step of SGD with momentum: forward, backward, and an update that changes nothing."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def call() -> None:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return call


def matrix_rate(size: int = 1024, rounds: int = 20) -> float:
    """Multiply-adds a second of a large float32 matrix product, the median of `rounds`."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return size**3 / alternate({"product": lambda: left @ right}, rounds)["product"]


def row(*cells: object, widths: tuple[int, ...] = (44, 14, 14, 14)) -> str:
    """One line of a table for the terminal."""
    return "".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()
