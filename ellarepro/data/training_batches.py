"""The batches of training: of samples that are tensors, in a fresh order each epoch, or of a loader as it comes."""

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from ellarepro.data.batches import Augmentation, check_batch_size
from ellarepro.data.dataset import Samples
from ellarepro.data.loading import Data, batches_of, check_pair, tensors_of

Batches = Iterator[tuple[Tensor, Tensor]]


class TrainingBatches(Protocol):
    """What the loop asks of the training data.

    Attributes:
        size: samples an epoch.
        steps: batches an epoch.
        batch_size: samples of all batches but perhaps the last.
        resumable: whether an epoch can go on in its middle with the batches that it would have had.
    """

    size: int
    steps: int
    batch_size: int
    resumable: bool

    def order(self, generator: torch.Generator) -> Tensor:
        """The order of one epoch, as `batches` takes it."""

    def batches(self, order: Tensor, done: int, generator: torch.Generator) -> Batches:
        """Pairs of inputs (B, ...) and targets (B, ...), from the one after `done` batches on."""


class ShuffledBatches:
    """Tensors in a fresh order each epoch.

    A single sample that would be left over joins the batch before it: batch normalisation takes no batch of one.

    Args:
        augment: changes the inputs of a batch, by draws of the generator.
        device: where the batches go; where the samples lie if not given.

    Raises:
        UserError: a batch size below 1.
    """

    resumable = True

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        augment: Augmentation | None = None,
        device: torch.device | None = None,
    ):
        check_batch_size(batch_size)
        self.samples, self.batch_size, self.augment = samples, batch_size, augment
        self.device = device or samples.targets.device
        self.size = len(samples)
        whole, rest = divmod(self.size, batch_size)
        self.sizes = [batch_size] * whole + [rest] * (rest > 0)
        if whole and rest == 1 and batch_size > 1:
            self.sizes = [*self.sizes[:-2], batch_size + 1]
        self.steps = len(self.sizes)

    def order(self, generator: torch.Generator) -> Tensor:
        """A random permutation `(N,)`."""
        return torch.randperm(self.size, generator=generator, device=generator.device)

    def batches(self, order: Tensor, done: int, generator: torch.Generator) -> Batches:
        """The samples in this `order`; the host never waits for the device."""
        inputs, targets = self.samples.inputs, self.samples.targets
        for chosen in order.to(targets.device).split(self.sizes)[done:]:
            batch = inputs.index_select(0, chosen).to(self.device)
            batch = batch if self.augment is None else self.augment(batch, generator)
            yield batch, targets.index_select(0, chosen).to(self.device)


class LoaderBatches:
    """The batches of a loader, checked as they come; it is gone through once to be counted.

    Raises:
        ValueError: as `batches_of`.
    """

    resumable = False

    def __init__(self, loader: Data, device: torch.device):
        self.loader, self.device = loader, device
        sizes = [len(targets) for _, targets in batches_of(loader, 1, torch.device("cpu"))]
        self.size, self.steps, self.batch_size = sum(sizes), len(sizes), sizes[0]

    def order(self, generator: torch.Generator) -> Tensor:
        """Nothing: the order is the loader's."""
        return torch.empty(0, dtype=torch.long, device=generator.device)

    def batches(self, order: Tensor, done: int, generator: torch.Generator) -> Batches:
        """As the loader gives them."""
        return islice(batches_of(self.loader, 1, self.device), done, None)


def training_batches(data: Data, batch_size: int, device: torch.device) -> TrainingBatches:
    """The training batches of whatever holds data: tensors are shuffled, a loader is taken as it comes.

    Raises:
        ValueError: no samples, inputs that are not finite, or inputs and targets of different length.
    """
    if (pair := tensors_of(data)) is None:
        return LoaderBatches(data, device)
    check_pair(*pair)
    if not len(pair[0]):
        raise ValueError("data must hold at least one sample, got none")
    return ShuffledBatches(Samples(*pair), batch_size, device=device)
