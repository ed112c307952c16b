"""The released route to the factored layer, written afresh: block-diagonal inputs through a stock linear layer.

The released code makes eq. 5 two ordinary matrix products, so that a stock KFAC library sees two linear layers: each
stage's inputs are laid out as a block-diagonal matrix, zeros included. The map is the same; memory and time are not.
"""

from math import prod

import torch
from torch import Tensor, nn

from ellarepro.layers.factored import FactoredDense


class BlockDiagonalDense(nn.Module):
    """Eq. 5 by dense block-diagonal inputs; takes the weights of a `FactoredDense`."""

    def __init__(self, layer: FactoredDense):
        super().__init__()
        channels, outputs = layer.in_channels, layer.out_channels
        self.out_shape = layer.out_shape
        self.spatial = nn.Linear(channels * prod(layer.in_shape), outputs, bias=False)
        self.channel = nn.Linear(outputs * channels, prod(layer.out_shape), bias=False)
        self.bias = nn.Parameter(layer.theta1.bias.detach().clone())
        with torch.no_grad():
            self.spatial.weight.copy_(layer.theta2.weight.flatten(1))
            self.channel.weight.copy_(layer.theta1.weight.flatten(2).permute(2, 0, 1).flatten(1))

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.spatial(block_diagonal(features.flatten(2))).transpose(1, 2)
        outputs = self.channel(block_diagonal(hidden)) + self.bias[:, None]
        return outputs.unflatten(2, self.out_shape)


def block_diagonal(rows: Tensor) -> Tensor:
    """`(B, G, I)` as `(B, G, G*I)` with row g in block g and zeros elsewhere."""
    groups = rows.shape[1]
    eye = torch.eye(groups, dtype=rows.dtype, device=rows.device)
    return (eye[:, :, None] * rows[:, None, :, :]).flatten(2)


def released_network(network: nn.Module) -> nn.Module:
    """Replace every `FactoredDense` of `network` by its block-diagonal form, in place; returns `network`."""
    for block in network.blocks:
        for name, path in block.paths.items():
            if isinstance(path, FactoredDense):
                block.paths[name] = BlockDiagonalDense(path)
    return network
