"""Every layer type beside CONV at alpha 10, batch 128: what learning the symmetry costs, which the paper leaves open.

A step is forward, backward and SGD with momentum. Memory is what a step holds at its peak, counted: parameters with
gradients and momenta, and all tensors kept for the backward pass. A fit is exact (all class passes) on one batch.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.structures import factor_bytes
from ellarepro.network import LAYERS, Network, build_network, options_of
from ellarepro.settings.parts import AnchorSettings
from scripts.bench.tables import HIGHER, Measure, Table
from scripts.bench.timing import measured, ratio, seconds, training_step

BATCH, CLASSES, CHANNELS = 128, 10, 3
LEARNED = "omega learned"


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    images, labels = torch.randn(BATCH, CHANNELS, 32, 32), torch.randint(CLASSES, (BATCH,))
    contenders = [(layer, False) for layer in LAYERS]
    contenders += [(layer, True) for layer in LAYERS if layer.startswith("s_")]
    networks = {_label(layer, learned): _network(layer, learned) for layer, learned in contenders}
    steps = measured({name: training_step(net, images, labels) for name, net in networks.items()}, rounds)
    factors: dict[str, float] = {}
    fits = measured({name: _fit(name, net, images, factors) for name, net in networks.items()}, max(rounds // 2, 1))
    rows = {
        name: {
            "parameters": Measure(sum(p.numel() for p in network.parameters()) / 1e6, "M"),
            "step": seconds(steps[name]),
            "step / CONV": ratio(steps[name], steps["conv"]),
            "memory": Measure(_step_bytes(network, images, labels) / 1e6, "MB", worse=HIGHER),
            "fit": seconds(fits[name]),
            "fit / CONV": ratio(fits[name], fits["conv"]),
            "factors": Measure(factors[name], "MB", worse=HIGHER),
        }
        for name, network in networks.items()
    }
    yield Table(f"every layer type beside CONV, batch {BATCH}, {CLASSES} classes", rows)


def _label(layer: str, learned: bool) -> str:
    return f"{layer}, {LEARNED}" if learned else layer


def _network(layer: str, learned: bool) -> Network:
    anchors = AnchorSettings(learn_omega=learned)
    return build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=_alpha(layer), anchors=anchors)


def _alpha(layer: str) -> int:
    return 2 if "group" in options_of(layer) else 10


def _step_bytes(network: Network, images: Tensor, labels: Tensor) -> int:
    """Bytes of parameters, gradients and momenta, and of distinct storages that the backward pass needs."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(network(images), labels)
    # The graph is alive, so no two of its storages have shared an address.
    activations = sum(size for address, size in kept.items() if address not in own)
    del loss
    return activations + 3 * sum(p.numel() * p.element_size() for p in network.parameters())


def _fit(name: str, network: Network, images: Tensor, factors: dict[str, float]) -> Callable[[], None]:
    def call() -> None:
        ggn = GGN(network, tolerance=0.0)
        ggn.update(images)
        factors[name] = factor_bytes(ggn.blocks(BATCH)) / 1e6

    return call
