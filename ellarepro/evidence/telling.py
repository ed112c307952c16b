"""What a fit takes, refused or said before it is waited for."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace

import torch
from torch import Tensor

from ellarepro.curvature.accumulators import Accumulator
from ellarepro.data.loading import Data, tensors_of

_LONG = 30.0
"""Seconds from which on a fit is announced."""
_REMEDY = "take structure=diag, freeze the largest layers, or a smaller fit_size"
_log = logging.getLogger(__name__)


def check_memory(accumulator: Accumulator, inputs: Tensor, size: int) -> None:
    """FactorsTooLarge if the curvature of `size` data such as `inputs (B, ...)` does not fit into memory."""
    forecast = accumulator.forecast(inputs[:1].expand(size, *inputs.shape[1:]))
    replace(forecast, remedy=_REMEDY).check(inputs.device)


def batches_in(data: Data, batch_size: int) -> int:
    """How many batches `data` come in, of `batch_size` if they are tensors; 0 for a loader that does not say."""
    if (pair := tensors_of(data)) is not None:
        return -(-len(pair[0]) // batch_size)
    return len(data) if isinstance(data, Sized) else 0


def told(steps: Iterable[None], count: int, device: torch.device) -> Iterator[None]:
    """The same steps; after the first, one line on how long all `count` will take, if that is long."""
    start = time.monotonic()
    for number, step in enumerate(steps):
        if number == 0:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = (time.monotonic() - start) * (count - 1)
            if seconds > _LONG:
                _log.warning(
                    "this fit takes about %.0f minutes more; FitSettings(passes=1) has one backward pass a batch in "
                    "place of one a class, fit_size fewer data",
                    max(seconds / 60, 1),
                )
        yield step
