"""The two things the rest of the project knows of data: samples with targets, and a task made of two such sets."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs (N, ...), float32, say images (N, C, H, W); targets: classes (N,), int64, or values (N, K), float32."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def first(self, size: int) -> "Samples":
        """The first `size` of them."""
        return Samples(self.inputs[:size], self.targets[:size])

    def to(self, device: torch.device | str) -> "Samples":
        """The same set on another device."""
        return Samples(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned from, what is tested on, and how to read both.

    `likelihood` is what the targets are: `classification` of `outputs` classes, or `regression` of as many values:
    those of the data less `target_mean`, divided by `target_std`.
    `mean` and `std` are those of each channel before normalisation, where pixels lie in 0 to 1. `augment` says
    whether training batches are to be augmented. `fingerprint` is `fingerprint(train, test)`, and
    `source_fingerprint` that of the raw images they were made of, which is the same on every processor.
    """

    name: str
    train: Samples
    test: Samples
    outputs: int
    in_channels: int
    image_size: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    class_names: tuple[str, ...]
    source_fingerprint: str = ""
    likelihood: str = "classification"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    def title(self, target: Tensor) -> str:
        """What one target is called: its class's name, or its values in their own unit."""
        if self.likelihood == "classification":
            return self.class_names[int(target)]
        values = zip(target.tolist(), self.target_mean, self.target_std, strict=True)
        return ", ".join(f"{mean + std * value:.3g}" for value, mean, std in values)

    def to(self, device: torch.device | str) -> "Task":
        """The same task with both sets on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def fingerprint(*sets: Samples) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the inputs and targets of these sets, in order.

    It covers the final float32 pixels, so a processor that rounds an interpolation differently in the last bit
    gives another fingerprint for the resized, rotated and translated sets.
    """
    digest = hashlib.sha256()
    for samples in sets:
        for tensor in (samples.inputs, samples.targets):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
