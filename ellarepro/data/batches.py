"""Batches of a set that lies on one device as a whole: two indexings, no loader and no copying."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ellarepro.data.dataset import Samples
from ellarepro.errors import UserError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def epoch_batches(
    images: Samples, batch_size: int, generator: torch.Generator, augment: Augmentation | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once, in a fresh random order: pairs of images (B, C, H, W) and labels (B,).

    The last batch may be smaller. `generator` lies on the device of the images and serves the order and the
    augmentation; the host never waits for the device. UserError for a batch size below 1.
    """
    _check(batch_size)
    yield from batches_in_order(images, epoch_order(images, generator), batch_size, generator, augment)


def epoch_order(images: Samples, generator: torch.Generator) -> Tensor:
    """A fresh random order (N,) of the set."""
    return torch.randperm(len(images), generator=generator, device=images.targets.device)


def batches_in_order(
    images: Samples,
    order: Tensor,
    batch_size: int,
    generator: torch.Generator,
    augment: Augmentation | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples of `order`, or of what is left of it after whole batches, as `epoch_batches` gives them."""
    for chosen in order.split(batch_size) if len(order) else ():
        batch = images.inputs.index_select(0, chosen)
        yield batch if augment is None else augment(batch, generator), images.targets.index_select(0, chosen)


def ordered_batches(images: Samples, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once, in the order of the set: pairs of images (B, C, H, W) and labels (B,), which are views.

    The last batch may be smaller. UserError for a batch size below 1.
    """
    _check(batch_size)
    yield from zip(images.inputs.split(batch_size), images.targets.split(batch_size), strict=True)


def _check(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: a batch holds at least 1 image")
