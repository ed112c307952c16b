"""A training step beside plain PyTorch at alpha 10, batch 128: the network as one would write it down from the paper.

Convolutions are `nn.Conv2d(padding_mode="circular")` at full resolution, of which the phase with the largest norm is
kept; the factored layer is two einsums. Weights are the same, and outputs and gradients are compared.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ellarepro.layers.conv import Conv
from ellarepro.layers.factored import FactoredDense
from ellarepro.network import Network, build_network
from scripts.bench.tables import Measure, Table
from scripts.bench.timing import measured, ratio, seconds, training_step

BATCH, CLASSES, CHANNELS, ALPHA = 128, 10, 3, 10
LAYERS = ("conv", "f_fc", "f_fc_conv")


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    images, labels = torch.randn(BATCH, CHANNELS, 32, 32), torch.randint(CLASSES, (BATCH,))
    rows = {}
    for layer in LAYERS:
        ours = build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=ALPHA)
        theirs = plain_network(ours, layer)
        apart = largest_difference(ours, theirs, images, labels)
        steps = {"ours": training_step(ours, images, labels), "plain": training_step(theirs, images, labels)}
        found = measured(steps, rounds)
        rows[layer] = {
            "ours": seconds(found["ours"]),
            "plain": seconds(found["plain"]),
            "ours / plain": ratio(found["ours"], found["plain"]),
            "gradients apart": Measure(apart),
        }
    yield Table(f"training step beside plain PyTorch, alpha {ALPHA}, batch {BATCH}", rows)


def plain_network(network: Network, layer: str) -> Network:
    """A copy of `network` of plain layers, with its weights."""
    twin = build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=ALPHA)
    twin.load_state_dict(network.state_dict())
    for block in twin.blocks:
        for name, path in block.paths.items():
            block.paths[name] = PlainConv(path) if isinstance(path, Conv) else PlainFactored(path)
    return twin


class PlainConv(nn.Module):
    """`Conv` by PyTorch's own convolution."""

    def __init__(self, layer: Conv):
        super().__init__()
        self.subsamples = layer.subsamples
        self.conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, padding_mode="circular")
        self.conv.load_state_dict(layer.state_dict())

    def forward(self, features: Tensor) -> Tensor:
        full = self.conv(features)
        return plain_largest_phase(full) if self.subsamples else full


def plain_largest_phase(features: Tensor) -> Tensor:
    """Of the four phases of `features (B, C, H, W)` the one with the largest norm, `(B, C, H/2, W/2)`."""
    phases = nn.functional.pixel_unshuffle(features, 2).unflatten(1, (-1, 4))
    best = phases.detach().square().sum((1, 3, 4)).argmax(1)
    return phases[torch.arange(len(best)), :, best]


class PlainFactored(nn.Module):
    """`FactoredDense` by einsum."""

    def __init__(self, layer: FactoredDense):
        super().__init__()
        self.theta2, self.theta1, self.bias = layer.theta2.weight, layer.theta1.weight, layer.theta1.bias

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.einsum("dcij,bcij->bdc", self.theta2, features)
        return torch.einsum("dcij,bdc->bdij", self.theta1, hidden) + self.bias[:, None, None]


def largest_difference(ours: nn.Module, theirs: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The relative error of the gradients of all weights, taken together."""
    flat = []
    for network in (ours, theirs):
        loss = nn.functional.cross_entropy(network(images), labels)
        by_size = sorted(torch.autograd.grad(loss, list(network.parameters())), key=lambda g: tuple(g.shape))
        flat.append(torch.cat([gradient.flatten() for gradient in by_size]))
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()
