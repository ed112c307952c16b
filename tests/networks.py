"""Networks as users bring them: a small ResNet, a transformer, separable convolutions, a curve; no layer is ours.

`plain` leaves out what asdl and curvlinops have no curvature of, affine parameters and learned places, and what they
have another curvature of, biases on shared positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation beside a shortcut: `(B, C, H, W)` to `(B, D, H/s, W/s)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, plain: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, out_channels, affine=not plain)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, out_channels, affine=not plain)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.shortcut(features) + self.norm2(self.conv2(hidden)))


def resnet(width: int = 16, classes: int = 10, plain: bool = False) -> nn.Module:
    """Stem, three residual blocks, the mean over positions, a linear head: images `(B, 1, H, W)` to `(B, classes)`."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.GroupNorm(4, width, affine=not plain),
        nn.ReLU(),
        ResidualBlock(width, width, 1, plain),
        ResidualBlock(width, 2 * width, 2, plain),
        ResidualBlock(2 * width, 4 * width, 2, plain),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


class TransformerBlock(nn.Module):
    """Self-attention, then two linear layers, each normalised before and beside a shortcut: `(B, T, F)` to the same."""

    def __init__(self, width: int, heads: int, plain: bool):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not plain)
        self.qkv = nn.Linear(width, 3 * width, bias=not plain)
        self.mix = nn.Linear(width, width, bias=not plain)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not plain)
        self.up = nn.Linear(width, 2 * width, bias=not plain)
        self.down = nn.Linear(2 * width, width, bias=not plain)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(tokens)).unflatten(2, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys, values = heads.chunk(3, 1)
        weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
        tokens = tokens + self.mix((weights @ values).transpose(1, 2).flatten(2))
        return tokens + self.down(F.gelu(self.up(self.norm2(tokens))))


class Transformer(nn.Module):
    """Patches as tokens, learned places, two blocks, the mean over tokens: images `(B, 1, H, W)` to `(B, classes)`."""

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        patch: int = 8,
        image_size: int = 32,
        classes: int = 10,
        plain: bool = False,
    ):
        super().__init__()
        self.patch = patch
        self.token = nn.Linear(patch**2, width, bias=not plain)
        self.place = nn.Embedding((image_size // patch) ** 2, width).requires_grad_(not plain)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, plain) for _ in range(2)))
        self.head = nn.Linear(width, classes)
        self.register_buffer("places", torch.arange(self.place.num_embeddings), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.token(F.unfold(images, self.patch, stride=self.patch).mT)
        # Each sample looks its places up: a layer's first axis is that of the samples.
        return self.head(self.blocks(tokens + self.place(self.places.expand(len(images), -1))).mean(1))


def separable_network(width: int = 8, classes: int = 10) -> nn.Module:
    """Depthwise, grouped and dilated convolutions with batch normalisation: images `(B, 1, H, W)` to `(B, classes)`."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2, padding_mode="reflect"),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding="same", dilation=2, groups=width),
        nn.Conv2d(width, 2 * width, 1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2, padding_mode="circular"),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(2 * width, width, 4, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def curve(width: int = 50) -> nn.Module:
    """One hidden layer, for a function of one variable: `(B, 1)` to `(B, 1)`."""
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
