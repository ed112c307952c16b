"""Adaptive polyphase subsampling (Chaman and Dokmanic, 2021), one phase chosen for each sample."""

import torch
from torch import Tensor


def keep_largest_phase(features: Tensor) -> Tensor:
    """Keep, of the four phases of a map, the one with the largest norm.

    A circular shift of the input permutes the phases, so the kept phase is the same set of pixels, circularly
    shifted: subsampling commutes with translation, which plain striding does not. The phase is chosen for each
    sample, so a sample's output does not depend on its batch mates; it is shared by the channels.

    Args:
        features: `(B, C, H, W)`, H and W even.

    Returns:
        `(B, C, H/2, W/2)`.

    Raises:
        ValueError: H or W is odd.
    """
    height, width = features.shape[2:]
    if height % 2 or width % 2:
        raise ValueError(f"polyphase subsampling needs even maps, got {height} x {width}")
    return take_phase(features, largest_phase(features.detach()))


def largest_phase(features: Tensor) -> Tensor:
    """Index `2 * row + column`, shape `(B,)`, of each sample's phase with the largest norm."""
    batch, _, height, width = features.shape
    energy = features.square().sum(1).view(batch, height // 2, 2, width // 2, 2).sum((1, 3))
    return energy.flatten(1).argmax(1)


def take_phase(features: Tensor, phase: Tensor) -> Tensor:
    """Pixels of `features (B, C, H, W)` in the phase `(B,)` of each sample: `(B, C, H/2, W/2)`."""
    batch, channels, height, width = features.shape
    rows = torch.arange(0, height, 2, device=features.device)
    columns = torch.arange(0, width, 2, device=features.device)
    pixels = (rows + (phase // 2)[:, None])[:, :, None] * width + (columns + (phase % 2)[:, None])[:, None, :]
    index = pixels.view(batch, 1, -1).expand(-1, channels, -1)
    return features.flatten(2).gather(2, index).view(batch, channels, height // 2, width // 2)
