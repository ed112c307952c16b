"""Shifts, augmentation and batches: what is done to images, one by one."""

import pytest
import torch
import torch.nn.functional as F

from ellarepro.data import (
    QUADRANTS,
    Samples,
    flip_and_crop,
    ordered_batches,
    place_in_quadrant,
    rotate,
    rotate_by,
    translate,
    translate_by,
)
from ellarepro.data.training_batches import ShuffledBatches
from ellarepro.errors import UserError


def epoch_batches(samples, batch_size, draws, augment=None):
    """The batches of one epoch of training."""
    made = ShuffledBatches(samples, batch_size, augment)
    return made.batches(made.order(draws), 0, draws)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def numbered(count: int, device: str = "cpu") -> Samples:
    """Images whose pixels, and labels, are their number."""
    numbers = torch.arange(count, device=device)
    return Samples(numbers.float()[:, None, None, None].expand(-1, 1, 32, 32).contiguous(), numbers)


def test_batches_cover_every_sample_once_in_an_order_of_their_own():
    images, draws = numbered(103), generator()
    epochs = []
    for _ in range(2):
        batches = list(epoch_batches(images, 25, draws))
        assert [len(labels) for _, labels in batches] == [25, 25, 25, 25, 3]
        assert all(torch.equal(batch[:, 0, 3, 4].long(), labels) for batch, labels in batches)
        epochs.append(torch.cat([labels for _, labels in batches]))
        assert torch.equal(epochs[-1].sort().values, images.targets)
    assert not torch.equal(epochs[0], epochs[1])
    again = torch.cat([labels for _, labels in epoch_batches(images, 25, generator())])
    assert torch.equal(again, epochs[0])
    ordered = list(ordered_batches(images, 25))
    assert torch.equal(torch.cat([labels for _, labels in ordered]), images.targets)
    assert torch.equal(torch.cat([batch for batch, _ in ordered]), images.inputs)


def test_batches_augment_images_and_leave_labels():
    images = numbered(10)
    for batch, labels in epoch_batches(images, 4, generator(), lambda batch, draws: batch + 0.5):
        assert torch.equal(batch[:, 0, 0, 0], labels + 0.5)
    with pytest.raises(UserError, match="batch_size=0"):
        next(epoch_batches(images, 0, generator()))
    with pytest.raises(UserError, match="batch_size=-1"):
        next(ordered_batches(images, -1))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the host must not wait for it")
def test_batches_do_not_wait_for_the_device():
    images, draws = numbered(1000, "cuda"), torch.Generator("cuda").manual_seed(0)
    try:
        torch.cuda.set_sync_debug_mode("error")
        batches = list(epoch_batches(images, 128, draws, flip_and_crop))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cat([labels for _, labels in batches]).sort().values, images.targets)
