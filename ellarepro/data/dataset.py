"""The two things the rest of the project knows of data: a set of images, and a task made of two of them."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, C, H, W), float32 and normalised, with their labels (N,), int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: what is learned from, what is tested on, and how to read both.

    `mean` and `std` are those of each channel before normalisation, where pixels lie in 0 to 1; `augment` says
    whether training batches are to be augmented; `fingerprint` is `fingerprint(train, test)`, and
    `source_fingerprint` that of the raw images they were made of, which is the same on every processor.
    """

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    in_channels: int
    image_size: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    class_names: tuple[str, ...]
    source_fingerprint: str = ""

    def to(self, device: torch.device | str) -> "Task":
        """The same task with both sets on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def guessing_loss(self) -> float:
        """The entropy of the training labels, nats: what a constant prediction can reach at best."""
        shares = self.train.labels.bincount(minlength=self.num_classes) / len(self.train)
        return torch.special.entr(shares.double()).sum().item()


def fingerprint(*sets: ImageSet) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the pixels and labels of these sets, in order.

    It covers the final float32 pixels, so a processor that rounds an interpolation differently in the last bit
    gives another fingerprint for the resized, rotated and translated sets.
    """
    digest = hashlib.sha256()
    for images in sets:
        for tensor in (images.images, images.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
