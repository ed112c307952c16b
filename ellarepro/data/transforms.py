"""What moves an image: quadrants, rotations and translations, as functions of (images, generator).

Images are float tensors (N, C, H, W) with black at 0, so that the zeros filled in from outside an image are black:
normalise afterwards. Each image gets a draw of its own from the generator that is passed in; the helpers ending
in `_by` take the amounts themselves. All sampling is bilinear with `align_corners=False`, and large sets are
treated in chunks, so that the sampling grids of a whole training set never exist at once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
MAX_DEGREES = 180.0
MAX_PIXELS = 8.0
_CHUNK = 2048


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images (N, C, H, W) to (N, C, size, size), bilinear and without antialiasing.

    Without antialiasing a smaller image is sampled, not averaged, as in the published toy problem; for a larger
    one (28 to 32) antialiasing makes no difference. Images that have the size already are returned as they are.
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=False)


def reduced(pixels: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W), uint8, of more than `size` pixels a side averaged down to it; others as they are.

    Each new pixel is the mean of all that it stands for: sampled, thin lines would be there or not.
    """
    if pixels.shape[-1] <= size:
        return pixels
    parts = [F.interpolate(part, size=(size, size), mode="bilinear", antialias=True) for part in pixels.split(_CHUNK)]
    return torch.cat(parts)


def place_in_quadrant(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put each digit (N, 1, 28, 28) into a random quadrant of a black canvas twice its size, resized to 32x32.

    Returns the images (N, 1, 32, 32) and the quadrants (N,), int64, numbered as in `QUADRANTS`: row by row.
    """
    quadrant = torch.randint(len(QUADRANTS), (len(images),), generator=generator, device=generator.device)
    quadrant = quadrant.to(images.device)
    placed = [_place(*chunk) for chunk in zip(images.split(_CHUNK), quadrant.split(_CHUNK), strict=True)]
    return torch.cat(placed), quadrant


def _place(images: Tensor, quadrant: Tensor) -> Tensor:
    """Images (n, C, H, W) on a (2H, 2W) canvas at the quadrants (n,) given, resized to (n, C, 32, 32)."""
    n, channels, height, width = images.shape
    canvas = images.new_zeros(n, channels, 2, height, 2, width)
    # The indices lie on either side of a slice, so the indexed axis comes first: (n, C, H, W), as `images` is.
    canvas[torch.arange(n, device=images.device), :, quadrant // 2, :, quadrant % 2, :] = images
    return resize(canvas.reshape(n, channels, 2 * height, 2 * width), 32)


def rotate(images: Tensor, generator: torch.Generator, degrees: float = MAX_DEGREES) -> Tensor:
    """Rotate each image (N, C, H, W) by its own angle, uniform in +-`degrees`; zeros come in at the corners."""
    return rotate_by(images, degrees * _symmetric_uniform((len(images),), images, generator))


def rotate_by(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images (N, C, H, W) about their centre by `degrees` (N,), counter-clockwise as `torch.rot90` does."""
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    zero = torch.zeros_like(cos)
    # A row of the map takes an output position (x right, y down) to the input position it is read from.
    maps = torch.stack((torch.stack((cos, -sin, zero), -1), torch.stack((sin, cos, zero), -1)), -2)
    return _sample(images, maps)


def scale(images: Tensor, generator: torch.Generator, logarithm: float) -> Tensor:
    """Stretch each axis of each image (N, C, H, W) by its own factor, whose logarithm is uniform in +-`logarithm`."""
    factors = (logarithm * _symmetric_uniform((len(images), 2), images, generator)).neg().exp()  # (down, right)
    return _sample(images, F.pad(torch.diag_embed(factors.flip(-1)), (0, 1)))


def translate(images: Tensor, generator: torch.Generator, pixels: float = MAX_PIXELS) -> Tensor:
    """Translate each image (N, C, H, W) by its own amounts, uniform and continuous in +-`pixels` on both axes."""
    return translate_by(images, pixels * _symmetric_uniform((len(images), 2), images, generator))


def translate_by(images: Tensor, pixels: Tensor) -> Tensor:
    """Translate images (N, C, H, W) by `pixels` (N, 2), (down, right); what comes in at the borders is zero."""
    height, width = images.shape[-2:]
    down, right = pixels.unbind(-1)
    one, zero = torch.ones_like(down), torch.zeros_like(down)
    # The sampling grid spans 2 units from border to border.
    to_x, to_y = -2 * right / width, -2 * down / height
    return _sample(images, torch.stack((torch.stack((one, zero, to_x), -1), torch.stack((zero, one, to_y), -1)), -2))


def _symmetric_uniform(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws in [-1, 1) of this shape, made on the generator's device and put on the images'."""
    draws = torch.rand(shape, generator=generator, device=generator.device)
    return (2 * draws - 1).to(images.device)


def _sample(images: Tensor, maps: Tensor) -> Tensor:
    """Read images (N, C, H, W) through the affine maps (N, 2, 3) from output to input positions."""
    sampled = []
    for chunk, chunk_maps in zip(images.split(_CHUNK), maps.split(_CHUNK), strict=True):
        grid = F.affine_grid(chunk_maps, list(chunk.shape), align_corners=False)
        sampled.append(F.grid_sample(chunk, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    return torch.cat(sampled)
