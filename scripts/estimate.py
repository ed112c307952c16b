"""How long a run will take, from a step, a batch of a fit and a decomposition of its own, measured on this machine."""

import math
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.spectra import SpectralCurvature
from ellarepro.curvature.structures import Block
from ellarepro.data.batches import ordered_batches
from ellarepro.run import check_fit_memory, prepare
from ellarepro.training import Trainer
from scripts.bench.timing import alternate

_STEPS = 3
_DENSE = 512
"""Width of the matrix from whose decomposition larger ones are extrapolated."""


def run_seconds(config: Mapping[str, Any]) -> float:
    """Seconds that a run with this resolved configuration will take; for Laplace at most, as fits become cheaper.

    Raises:
        UserError: what the run itself would refuse.
    """
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    started = time.perf_counter()
    trainer, task = prepare(config)
    check_fit_memory(trainer, task)
    loading = time.perf_counter() - started
    weights, size = trainer.weights, len(task.train)
    step = _step_seconds(trainer)
    seconds = loading + weights.epochs * math.ceil(size / weights.batch_size) * step
    if trainer.laplace is not None:
        fits = 1 + sum(trainer.laplace.due(epoch) for epoch in range(1, weights.epochs))
        # The loss of all training images is a third of an epoch: forward passes without backward ones.
        seconds += fits * (_fit_seconds(trainer) + size / weights.batch_size * step / 3)
    return seconds


def _step_seconds(trainer: Trainer) -> float:
    batches = list(islice(ordered_batches(trainer.task.train, trainer.weights.batch_size), _STEPS))

    def steps() -> None:
        for images, labels in batches:
            loss = nn.functional.cross_entropy(trainer.model(images), labels)
            trainer.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            trainer.optimiser.step()

    return _seconds(steps) / len(batches)


def _fit_seconds(trainer: Trainer) -> float:
    settings, data = trainer.laplace, trainer.task.train
    if settings.fit.structure == "full":
        return 0.0  # small networks only
    images, _ = next(ordered_batches(data, settings.fit.batch_size))
    ggn = GGN(trainer.model, settings.fit.structure, settings.fit.tolerance)
    update = _seconds(lambda: ggn.update(images))
    used = settings.fit.fit_size or len(data)
    blocks = ggn.blocks(len(images))
    small = {name: block for name, block in blocks.items() if _width(block) <= _DENSE}
    large = [f for name, block in blocks.items() if name not in small for f in block.factors]
    decompose = _seconds(lambda: SpectralCurvature.from_blocks(small))
    if large:
        matrix = torch.randn(_DENSE, _DENSE, device=images.device)
        dense = _seconds(lambda: torch.linalg.eigvalsh(matrix))
        decompose += dense * sum(f.shape[0] * (f.shape[1] / _DENSE) ** 3 for f in large)
    return math.ceil(used / len(images)) * update + decompose


def _width(block: Block) -> int:
    return max(factor.shape[1] for factor in block.factors)


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of the second of two calls: the first one warms up."""
    return alternate({"call": call}, rounds=1)["call"]


def as_text(seconds: float) -> str:
    """About how long, in words: `40 s`, `12 min`, `1 h 25 min`."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
