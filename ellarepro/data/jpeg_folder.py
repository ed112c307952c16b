"""CIFAR-10 as JPEG files in a folder a class, decoded once into a file of tensors beside the folder.

The copy is lossy, so it is a data set of its own, `cifar10_jpeg`, and never stands in for `cifar10`.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from ellarepro.data.sources import RawImages
from ellarepro.errors import UserError

FOLDER = "cifar10-jpeg"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_PER_CLASS = {"train": 5000, "test": 1000}
_SIZE = (32, 32)

_log = logging.getLogger(__name__)


def read_cifar10_jpeg(root: str | Path, per_class: Mapping[str, int] = IMAGES_PER_CLASS) -> tuple[RawImages, RawImages]:
    """Training and test images (N, 3, 32, 32) from `root`/cifar10-jpeg/{train,test}/<class>/*.jpg, by class and name.

    `per_class` is the number of images a class that each split must have. The decoded pixels are kept in
    `root`/cifar10-jpeg.cache.pt and made anew when a file of the folder is added, removed or changed. UserError if
    the folder is missing, incomplete or holds an image that cannot be read.
    """
    folder = Path(root).expanduser() / FOLDER
    files = {split: _list_files(folder, split, count) for split, count in per_class.items()}
    key = _fingerprint(folder, [file for split in files.values() for file in split])
    cache = folder.with_name(FOLDER + ".cache.pt")
    pixels = _load_cache(cache, key)
    if pixels is None:
        pixels = {split: _decode(split_files) for split, split_files in files.items()}
        _save_cache(cache, key, pixels)
    classes = torch.arange(len(CIFAR10_CLASSES))
    train, test = (RawImages(pixels[split], classes.repeat_interleave(per_class[split])) for split in ("train", "test"))
    return train, test


def _list_files(folder: Path, split: str, count: int) -> list[os.DirEntry]:
    """The files of one split, by class and then by name; UserError unless every class has `count` of them."""
    files = []
    for name in CIFAR10_CLASSES:
        directory = folder / split / name
        # Not Path.glob: with 60,000 files it takes a second longer at the start of every run.
        entries = os.scandir(directory) if directory.is_dir() else ()
        found = sorted((entry for entry in entries if entry.name.endswith(".jpg")), key=lambda entry: entry.name)
        if len(found) != count:
            raise UserError(
                f"dataset.root={folder.parent}: {directory} should hold {count} files *.jpg, got {len(found)}; "
                f"lay out the whole copy as {folder}/{{train,test}}/<class>/*.jpg (it is not downloaded), "
                "set dataset.root to the folder that holds it, or use dataset=cifar10"
            )
        files += found
    return files


def _fingerprint(folder: Path, files: list[os.DirEntry]) -> str:
    """SHA-256 of the names, sizes and times of the files, and of the decoder, which may change pixels."""
    digest = hashlib.sha256(f"PIL {PIL.__version__}\n".encode())
    for file in files:
        status = file.stat()
        name = os.path.relpath(file.path, folder)
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode(files: list[os.DirEntry]) -> torch.Tensor:
    """Pixels (N, 3, 32, 32), uint8; UserError for a file that is not a whole 32x32 image."""
    pixels = np.empty((len(files), *_SIZE, 3), dtype=np.uint8)
    for row, file in zip(pixels, files, strict=True):
        try:
            with Image.open(file.path) as image:
                if image.size != _SIZE:
                    raise ValueError(f"{image.size[0]}x{image.size[1]} pixels instead of 32x32")
                row[:] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"dataset.root: {file.path} is not a readable image of CIFAR-10 ({error}); lay out the copy anew"
            ) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _load_cache(cache: Path, key: str) -> dict[str, torch.Tensor] | None:
    """The pixels of each split, or None if there is no whole cache of exactly these files."""
    try:
        content = torch.load(cache, weights_only=True)
        return content["pixels"] if content["key"] == key else None
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever damaged bytes make of torch.load, the images can be decoded again
        _log.warning("%s cannot be read (%s): decoding the images again", cache, error)
        return None


def _save_cache(cache: Path, key: str, pixels: dict[str, torch.Tensor]) -> None:
    """Write the cache in one step, so that a run beside this one never reads half of it."""
    partial = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
    try:
        torch.save({"key": key, "pixels": pixels}, partial)
        os.replace(partial, cache)
    except (OSError, RuntimeError) as error:
        _log.warning("%s cannot be written (%s): the next run decodes the images again", cache, error)
        partial.unlink(missing_ok=True)
