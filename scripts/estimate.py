"""How long a run will take, from a step, a batch of a fit and a decomposition of its own, measured on this machine."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from typing import cast

import torch

from ellarepro.config.schema import Config
from ellarepro.curvature.accumulators import Accumulator
from ellarepro.curvature.factory import accumulator_of
from ellarepro.data.batches import ordered_batches
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.network import Network
from ellarepro.runs.preparing import prepare
from ellarepro.symmetry.shares import has_choice
from ellarepro.training.loop import Trainer
from scripts.bench.timing import alternate, capture

_STEPS = 3
_DENSE = 512
"""Width of the matrix from whose decomposition larger ones are extrapolated."""


def run_seconds(config: Config) -> float:
    """Seconds that a run with these settings will take; for Laplace at most, as fits become cheaper.

    Raises:
        UserError: what the run itself would refuse.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    started = time.perf_counter()
    trainer, _ = prepare(config)
    trainer.objective.check_memory()
    loading = time.perf_counter() - started
    data, size = trainer.data, trainer.data.size
    step = _step_seconds(trainer)
    seconds = loading + trainer.epochs * data.steps * step
    if fits := trainer.objective.fits(trainer.epochs):
        fits += has_choice(cast(Network, trainer.model).tensor_info())
        # The loss of images that the curvature leaves out: forward passes, a third of steps.
        others = size - min(trainer.objective.settings.fit.fit_size or size, size)
        seconds += fits * (_fit_seconds(trainer) + others / data.batch_size * step / 3)
    return seconds


def _step_seconds(trainer: Trainer) -> float:
    batches = list(islice(ordered_batches(trainer.objective.data, trainer.data.batch_size), _STEPS))

    def steps() -> None:
        for images, labels in batches:
            trainer.step(images, labels)

    capture(trainer, *batches[0])
    return _seconds(steps) / len(batches)


def _fit_seconds(trainer: Trainer) -> float:
    """Seconds of a fit and its hyper-steps."""
    settings, images = trainer.objective.settings, trainer.objective.data.inputs
    used, batch = images[: settings.fit.fit_size], images[: settings.fit.batch_size][: settings.fit.fit_size]
    accumulators: list[Accumulator] = []

    def update() -> None:
        accumulators.append(accumulator_of(trainer.model, settings.fit, trainer.generator))
        accumulators[-1].update(batch)

    batches = math.ceil(len(used) / len(batch)) * _seconds(update)
    curvature = accumulators[-1].curvature(len(images))
    evidence = MarginalLikelihood(curvature, 0.0, trainer.objective.prior.squared_norms(), len(images))
    step = _seconds(lambda: evidence.effective_parameters(trainer.objective.prior.log_precision))
    whole, one = accumulators[-1].forecast(used), accumulators[-1].forecast(batch)
    # Few images have few eigenvalues. Each takes its time, so for large networks this is that of a step.
    steps = settings.steps * step * max(whole.eigenvalues / max(one.eigenvalues, 1), 1)
    return batches + _decomposition_seconds(whole.decompositions, images.device) + steps


def _decomposition_seconds(decompositions: Iterable[tuple[int, int]], device: torch.device) -> float:
    """Seconds of eigenvalues alone, for wide matrices extrapolated from one of width `_DENSE`."""

    @cache
    def of_one(width: int) -> float:
        matrix = torch.eye(width, device=device) + torch.rand(width, width, device=device)
        return _seconds(lambda: torch.linalg.eigvalsh(matrix))

    widths = Counter()
    for matrices, width in decompositions:
        widths[width] += matrices
    return sum(n * of_one(min(w, _DENSE)) * max(w / _DENSE, 1.0) ** 3 for w, n in widths.items())


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of the second of two calls: the first one warms up."""
    return alternate({"call": call}, rounds=1)["call"]


def as_text(seconds: float) -> str:
    """About how long, in words: `40 s`, `12 min`, `1 h 25 min`."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
