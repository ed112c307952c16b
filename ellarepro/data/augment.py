"""Training augmentation, a whole batch at a time on the device it lies on."""

import torch
from torch import Tensor

PADDING = 4


def flip_and_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image (B, C, H, W) left to right with probability 1/2 and crop it after padding by 4 pixels.

    Every image has draws of its own. The padding is zero: on normalised images that is the mean colour, as in the
    published protocol. `generator` lies on the images' device; the host never waits for the device.
    """
    batch, channels, height, width = images.shape
    device = images.device
    flip = torch.rand((batch, 1), generator=generator, device=device) < 0.5
    shift = torch.randint(-PADDING, PADDING + 1, (2, batch, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) + shift[0]
    columns = torch.arange(width, device=device) + shift[1]
    columns = torch.where(flip, width - 1 - columns, columns)
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    sample = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    rows = rows.clamp(0, height - 1)[:, None, :, None]
    columns = columns.clamp(0, width - 1)[:, None, None, :]
    return torch.where(inside, images[sample, channel, rows, columns], 0.0)
