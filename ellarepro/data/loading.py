"""Batches of whatever holds data: an `ImageSet`, a pair of tensors, or a loader of pairs; checked as they come."""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor

from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import ImageSet

Data = ImageSet | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
"""Inputs (N, ...) and targets (N, ...), at once or, from a `DataLoader` say, in batches."""


def batches_of(data: Data, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once: pairs of inputs (B, ...) and targets (B, ...) on `device`.

    Args:
        data: tensors are taken in order, `batch_size` at a time; a loader comes in batches of its own.

    Raises:
        ValueError: no samples; inputs that are no tensor or not finite; inputs and targets of different length; an
            iterator, which can be gone through only once.
    """
    samples = 0
    for batch in _pairs(data, batch_size):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"a batch must be a pair, inputs and targets; got {type(batch).__name__} of the loader")
        inputs, targets = batch
        _check(inputs, targets)
        if len(inputs):
            samples += len(inputs)
            yield inputs.to(device), targets.to(device)
    if not samples:
        raise ValueError("data must hold at least one sample, got none")


def shuffled_batches(
    data: Data, batch_size: int, device: torch.device, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `batches_of`, with tensors in a random order, drawn by `generator` on the CPU; a loader as it comes.

    A single sample that would be left over joins the batch before it: batch normalisation takes no batch of one.
    """
    if (pair := _tensors(data)) is not None:
        _check_lengths(*pair)
        order = torch.randperm(len(pair[0]), generator=generator, device="cpu").to(pair[0].device)
        data = (pair[0][order], pair[1][order])
        if len(order) > batch_size > 1 and len(order) % batch_size == 1:
            sizes = [batch_size] * (len(order) // batch_size - 1) + [batch_size + 1]
            data = list(zip(*(part.split(sizes) for part in data), strict=True))
    return batches_of(data, batch_size, device)


def size_of(data: Data) -> int:
    """Samples of `data`; a loader is gone through once, and refused as by `batches_of`."""
    if (pair := _tensors(data)) is not None:
        return len(pair[0])
    return sum(len(targets) for _, targets in batches_of(data, 1, torch.device("cpu")))


def _tensors(data: Data) -> tuple[Tensor, Tensor] | None:
    if isinstance(data, ImageSet):
        return data.images, data.labels
    is_pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    return cast(tuple[Tensor, Tensor], data) if is_pair else None


def _pairs(data: Data, batch_size: int) -> Iterator:
    if (pair := _tensors(data)) is not None:
        _check_lengths(*pair)
        return ordered_batches(ImageSet(*pair), batch_size)
    if not isinstance(data, Iterable) or isinstance(data, Tensor | dict | str):
        raise ValueError(f"data must be a pair of tensors, inputs and targets, or a loader; got {type(data).__name__}")
    if iter(data) is data:
        raise ValueError(f"data must be a loader that can be gone through again, got an iterator {type(data).__name__}")
    return iter(data)


def _check(inputs: Tensor, targets: Tensor) -> None:
    for what, value in (("inputs", inputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{what} of a batch must be one tensor, got {type(value).__name__}")
    _check_lengths(inputs, targets)
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        raise ValueError(
            f"inputs must be finite, got {(~torch.isfinite(inputs)).sum()} entries in a batch that are not"
        )


def _check_lengths(inputs: Tensor, targets: Tensor) -> None:
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"inputs and targets must have as many samples, got shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
