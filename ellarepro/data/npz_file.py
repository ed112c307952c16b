"""Images of one's own from an .npz file: `train_images` and `test_images`, and their `…_labels` or `…_targets`."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from ellarepro.data.sources import RawImages
from ellarepro.errors import UserError

_SPLITS = ("train", "test")
MOST_CLASSES = 1000
FEWEST_PIXELS = 8
"""A side of an image at least: of fewer, channels cannot be told from rows."""


def read_npz(path: str | Path) -> tuple[RawImages, RawImages]:
    """Training and test images (N, C, S, S) of the file `path`, C of 1 or 3.

    Images are uint8, (N, S, S), (N, S, S, 3) or (N, S, S, 1), square. `train_labels` and `test_labels` are classes:
    whole numbers from 0, (N,) or (N, 1), and each up to the largest has a training image. In their place
    `train_targets` and `test_targets` are the values of a regression, (N,) or (N, K), finite. Other arrays in the file
    are left alone.

    Raises:
        UserError: no file, or one that is not of this form; it names the array.
    """
    arrays = _arrays(Path(path).expanduser())
    train, test = (_split(f"dataset.path={path}", split, arrays) for split in ("train", "test"))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        shapes = " and ".join(str(tuple(part.pixels.shape[1:])) for part in (train, test))
        raise UserError(f"dataset.path={path}: training and test images must have one shape (C, S, S); got {shapes}")
    if train.targets.is_floating_point():
        _check_values(f"dataset.path={path}", train.targets, test.targets)
        return train, test
    largest = int(max(train.targets.max(), test.targets.max()))
    missing = sorted(set(range(largest + 1)) - set(train.targets.tolist()))
    if largest < 1 or largest >= MOST_CLASSES or missing:
        raise UserError(
            f"dataset.path={path}: labels must be 0, 1, ... of 2 to {MOST_CLASSES} classes, all to be trained on; "
            f"got labels up to {largest}" + (f" and no training image of class {missing[0]}" if missing else "")
        )
    return train, test


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = "targets" if "train_targets" in file else "labels"
            wanted = [f"{split}_{part}" for split in _SPLITS for part in ("images", kind)]
            if lacking := [name for name in wanted if name not in file]:
                raise UserError(
                    f"dataset.path={path}: has no {', '.join(lacking)}; it must hold train_images, test_images, and "
                    f"train_labels, test_labels (classes) or train_targets, test_targets (values); it holds "
                    f"{', '.join(file)}"
                )
            return {name: file[name] for name in wanted}
    except FileNotFoundError as error:
        raise UserError(f"dataset.path={path}: there is no such file") from error
    except UserError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"dataset.path={path}: is not a readable .npz file ({error})") from error


def _split(key: str, split: str, arrays: dict[str, np.ndarray]) -> RawImages:
    images, values = arrays[f"{split}_images"], arrays.get(f"{split}_targets")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1] != images.shape[2] or not images.size:
        raise UserError(
            f"{key}: {split}_images must be uint8, (N, S, S), (N, S, S, 1) or (N, S, S, 3); "
            f"got {images.dtype} {images.shape}"
        )
    if images.shape[1] < FEWEST_PIXELS:
        raise UserError(
            f"{key}: {split}_images must have {FEWEST_PIXELS} pixels a side at least, and channels as the last axis; "
            f"got {images.shape}"
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise UserError(f"{key}: {split}_images must have 1 or 3 channels, the last axis; got {images.shape}")
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()
    if values is not None:
        return RawImages(pixels, _values(key, split, values, len(images)))
    labels = arrays[f"{split}_labels"]
    if labels.shape not in ((len(images),), (len(images), 1)) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(
            f"{key}: {split}_labels must be whole numbers from 0, of shape ({len(images)},); "
            f"got {labels.dtype} {labels.shape}"
        )
    return RawImages(pixels, torch.from_numpy(labels.reshape(-1).astype(np.int64)))


def _values(key: str, split: str, values: np.ndarray, samples: int) -> torch.Tensor:
    """The targets of a regression, `(N, K)`, float32."""
    if values.ndim not in (1, 2) or len(values) != samples or values.dtype.kind not in "fiu" or not values.size:
        raise UserError(
            f"{key}: {split}_targets must be numbers of shape ({samples},) or ({samples}, K); "
            f"got {values.dtype} {values.shape}"
        )
    if not np.isfinite(values).all():
        raise UserError(f"{key}: {split}_targets must be finite; got {int((~np.isfinite(values)).sum())} that are not")
    return torch.from_numpy(values.reshape(samples, -1).astype(np.float32))


def _check_values(key: str, train: torch.Tensor, test: torch.Tensor) -> None:
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"{key}: training and test targets must have as many values a sample; got {train.shape[1]}, {test.shape[1]}"
        )
    if not (train.std(0, correction=0) > 0).all():
        raise UserError(f"{key}: each of the train_targets must vary; got a constant one")
