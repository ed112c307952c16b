"""Batches of whatever holds data: an `Samples`, a pair of tensors, or a loader of pairs; checked as they come."""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor

from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import Samples

Data = Samples | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
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
        check_pair(inputs, targets)
        if len(inputs):
            samples += len(inputs)
            yield _usable(inputs, device), _usable(targets, device)
    if not samples:
        raise ValueError("data must hold at least one sample, got none")


def tensors_of(data: Data) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets, where `data` holds them at once and as many of the one as of the other; None for a loader.

    Raises:
        ValueError: they differ in length.
    """
    if isinstance(data, Samples):
        return data.inputs, data.targets
    is_pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if not is_pair:
        return None
    inputs, targets = cast(tuple[Tensor, Tensor], data)
    _check_lengths(inputs, targets)
    return inputs, targets


def of_every_target(data: Data, most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first sample of each target that there is, of each class, say: inputs (B, ...) and targets (B, ...).

    Args:
        most: samples after which no more are looked for.

    Raises:
        ValueError: as `batches_of`.
    """
    chosen: dict[str, tuple[Tensor, Tensor]] = {}
    for inputs, targets in batches_of(data, most, device):
        for index, target in enumerate(map(str, targets.tolist())):
            chosen.setdefault(target, (inputs[index], targets[index]))
        if len(chosen) >= most:
            break
    pairs = list(chosen.values())[:most]
    return torch.stack([one for one, _ in pairs]), torch.stack([own for _, own in pairs])


def _pairs(data: Data, batch_size: int) -> Iterator:
    if (pair := tensors_of(data)) is not None:
        return ordered_batches(Samples(*pair), batch_size)
    if not isinstance(data, Iterable) or isinstance(data, Tensor | dict | str):
        raise ValueError(f"data must be a pair of tensors, inputs and targets, or a loader; got {type(data).__name__}")
    if iter(data) is data:
        raise ValueError(f"data must be a loader that can be gone through again, got an iterator {type(data).__name__}")
    return iter(data)


def _usable(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; what was made under `torch.inference_mode()` takes no part in a graph, a copy does."""
    return values.to(device).clone() if values.is_inference() else values.to(device)


def check_pair(inputs: Tensor, targets: Tensor) -> None:
    """ValueError unless these are as many inputs, which are finite, as targets."""
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
