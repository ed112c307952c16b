"""Batches of a set that lies on one device as a whole: two indexings, no loader and no copying."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ellarepro.data.dataset import Samples
from ellarepro.errors import UserError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def ordered_batches(images: Samples, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once, in the order of the set: pairs of images (B, C, H, W) and labels (B,), which are views.

    The last batch may be smaller. UserError for a batch size below 1.
    """
    check_batch_size(batch_size)
    yield from zip(images.inputs.split(batch_size), images.targets.split(batch_size), strict=True)


def check_batch_size(batch_size: int) -> None:
    """UserError for a batch size below 1."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: a batch holds at least 1 image")
