"""Training augmentation, a whole batch at a time on the device it lies on."""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4


def flip_and_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image (B, C, H, W) left to right with probability 1/2 and crop it after padding by 4 pixels.

    Every image has draws of its own. The padding is zero: on normalised images that is the mean colour, as in the
    published protocol. `generator` lies on the images' device; the host never waits for the device.
    """
    batch, _, height, width = images.shape
    device = images.device
    flip = torch.rand((batch, 1, 1, 1), generator=generator, device=device) < 0.5
    top, left = torch.randint(2 * PADDING + 1, (2, batch), generator=generator, device=device)
    padded = F.pad(torch.where(flip, images.flip(3), images), [PADDING] * 4)
    # A view of all crops of all images, (B, C, 9, 9, H, W): only those drawn are copied, row by row.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=device), :, top, left]
