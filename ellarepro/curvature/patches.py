"""Second moments of the 3 x 3 patches of maps, without writing the patches out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.factors import second_moment

KERNEL = 3
SMALL_MAP = 16
"""Positions of a map below which its few patches are cheaper written out than avoided."""


def circular_patch_moment(inputs: Tensor) -> Tensor:
    """Sum over samples, mean over positions, of p p^T for all circular 3 x 3 patches p: `(1, 9C, 9C)`."""
    return circular_patch_moments(inputs[None])


def circular_patch_moments(inputs: Tensor) -> Tensor:
    """As `circular_patch_moment`, for each of G groups of maps `(G, N, C, H, W)`: `(G, 9C, 9C)`.

    With circular padding the entry of two patch pixels depends on their offset alone: it is the correlation of two
    channels at that offset. Fourier transforms give it for all offsets at once (Wiener and Khinchin), without patches.
    They take C^2 products for half of the frequencies, where patches take 81 C^2 a position.
    """
    groups, _, channels, height, width = inputs.shape
    # One copy, as a batch of matrices without a unit stride would be copied one by one.
    spectra = torch.fft.rfft2(inputs).permute(0, 3, 4, 2, 1).contiguous()
    products = (spectra @ spectra.mH).permute(0, 4, 3, 1, 2)
    correlations = torch.fft.irfft2(products, s=(height, width))
    pixels = torch.arange(KERNEL, device=inputs.device)
    offsets = pixels - pixels[:, None]
    rows, columns = (offsets % height)[:, None, :, None], (offsets % width)[None, :, None, :]
    factor = correlations[..., rows, columns].permute(0, 1, 3, 4, 2, 5, 6)
    return factor.reshape(groups, channels * KERNEL**2, channels * KERNEL**2) / (height * width)


def zero_padded_patch_moment(inputs: Tensor) -> Tensor:
    """As `circular_patch_moment`, for zero padding: that of the zero-padded map, less the patches around its border.

    A patch around the zero border sees one line of pixels on one of its sides, so these are moments of 1 x 3 patches.
    """
    channels, height, width = inputs.shape[1:]
    total = circular_patch_moment(F.pad(inputs, (1, 1, 1, 1))) * ((height + 2) * (width + 2))
    sides = total.view(channels, KERNEL, KERNEL, channels, KERNEL, KERNEL)
    sides[:, 2, :, :, 2, :] -= _line_moment(inputs[:, :, 0], border=2)
    sides[:, 0, :, :, 0, :] -= _line_moment(inputs[:, :, -1], border=2)
    sides[:, :, 2, :, :, 2] -= _line_moment(inputs[..., 0], border=1)
    sides[:, :, 0, :, :, 0] -= _line_moment(inputs[..., -1], border=1)
    return total / (height * width)


def _line_moment(line: Tensor, border: int) -> Tensor:
    """Sum of p p^T over the patches of three of `line (N, C, L)` between `border` zeros: `(C, 3, C, 3)`."""
    patches = F.pad(line, (border, border)).unfold(2, KERNEL, 1).transpose(1, 2).flatten(2)
    return second_moment(patches[None]).view(line.shape[1], KERNEL, line.shape[1], KERNEL)
