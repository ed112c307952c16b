"""The format of MNIST's files, written."""

import struct
from pathlib import Path

import numpy as np


def write_idx(file: Path, array: np.ndarray) -> None:
    file.write_bytes(struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())
