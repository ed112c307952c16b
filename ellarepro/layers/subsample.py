"""Adaptive polyphase subsampling (Chaman and Dokmanic, 2021), one phase chosen for each sample."""

import torch
import torch.nn.functional as F
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
    return take_phase(features, largest_phase(features.detach()))


def keep_first_phase(features: Tensor) -> Tensor:
    """Keep the phase that begins at the first pixel, plain striding: `(B, C, H, W)` to `(B, C, H/2, W/2)`."""
    return features[..., ::2, ::2]


def largest_phase(features: Tensor) -> Tensor:
    """Index `2 * row + column`, shape `(B,)`, of each sample's phase with the largest norm.

    Raises:
        ValueError: H or W is odd.
    """
    batch, _, height, width = features.shape
    if height % 2 or width % 2:
        raise ValueError(f"polyphase subsampling needs even maps, got {height} x {width}")
    energy = features.square().sum(1).view(batch, height // 2, 2, width // 2, 2).sum((1, 3))
    return energy.flatten(1).argmax(1)


def take_phase(features: Tensor, phase: Tensor) -> Tensor:
    """Pixels of `features (B, C, H, W)` in the phase `(B,)` of each sample: `(B, C, H/2, W/2)`."""
    height, width = features.shape[2:]
    return _pixels(features, phase, range(0, height, 2), range(0, width, 2))


def window_at(features: Tensor, phase: Tensor, wraps: bool) -> Tensor:
    """What 3 x 3 filters see of `features (B, C, H, W)` at the pixels of each sample's phase: `(B, C, H+1, W+1)`.

    It begins a pixel before the first of them; beyond the map is its other side, or with `wraps=False` are zeros.
    """
    height, width = features.shape[2:]
    if wraps:
        return _pixels(features, phase, range(-1, height), range(-1, width))
    return _pixels(F.pad(features, (1, 1, 1, 1)), phase, range(height + 1), range(width + 1))


def _pixels(features: Tensor, phase: Tensor, rows: range, columns: range) -> Tensor:
    """The pixels at R `rows` and S `columns` from the first of each sample's phase, wrapping: `(B, C, R, S)`."""
    batch, channels, height, width = features.shape
    above, beside = (torch.arange(r.start, r.stop, r.step, device=phase.device) for r in (rows, columns))
    down, right = (above + (phase // 2)[:, None]) % height, (beside + (phase % 2)[:, None]) % width
    sample = torch.arange(batch, device=phase.device)[:, None, None]
    index = (sample * height + down[:, :, None]) * width + right[:, None, :]
    # A pixel's channels lie together: whole rows are copied, an order of magnitude faster than single numbers.
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, index.flatten())
    return pixels.view(batch, len(rows), len(columns), channels).permute(0, 3, 1, 2)
