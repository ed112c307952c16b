"""F-FC at alpha 10, batch 128: one training step and one curvature fit, beside the released route."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.structures import factor_bytes
from ellarepro.network import build_network
from scripts.bench.released import released_network
from scripts.bench.tables import HIGHER, Measure, Table
from scripts.bench.timing import measured, ratio, seconds, training_step

BATCH, CLASSES, ALPHA = 128, 10, 10


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    ours = build_network("f_fc", in_channels=3, num_classes=CLASSES, alpha=ALPHA)
    theirs = released_network(_copy(ours))
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(CLASSES, (BATCH,))
    with torch.no_grad():
        difference = (ours(images) - theirs(images)).abs().max() / ours(images).abs().max()
    contenders = {"ours": ours, "released": theirs}
    steps = measured({name: training_step(net, images, labels) for name, net in contenders.items()}, rounds)
    fits, sizes = _fits(ours, theirs, images)
    rows = {"training step": _beside(steps), "curvature fit of a batch": _beside(fits)}
    rows["bytes of the factors"] = {"ours / released": Measure(sizes["ours"] / sizes["released"], worse=HIGHER)}
    rows["outputs, largest relative difference"] = {"ours / released": Measure(difference.item())}
    yield Table(f"F-FC beside the released route, alpha {ALPHA}, batch {BATCH}, {CLASSES} classes", rows)


def _beside(found: dict[str, list[float]]) -> dict[str, Measure]:
    both = {name: seconds(times) for name, times in found.items()}
    return both | {"ours / released": ratio(found["ours"], found["released"])}


def _copy(network: nn.Module) -> nn.Module:
    twin = build_network("f_fc", in_channels=3, num_classes=CLASSES, alpha=ALPHA)
    twin.load_state_dict(network.state_dict())
    return twin


def _fits(ours: nn.Module, theirs: nn.Module, images: Tensor) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds and bytes, of one round each: the released route takes minutes, and is far from the mark."""
    ggn = GGN(ours, tolerance=0.0)
    factors: list[Tensor] = []
    found = measured({"ours": lambda: ggn.update(images)}, rounds=1)
    started = time.perf_counter()
    factors += stock_kfac(theirs, images)
    found["released"] = [time.perf_counter() - started]
    sizes = {"ours": factor_bytes(ggn.blocks(BATCH)), "released": sum(factor.nbytes for factor in factors)}
    return found, sizes


def stock_kfac(network: nn.Module, images: Tensor) -> list[Tensor]:
    """KFAC factors of all linear layers as asdl computes them, by asdl itself, on block-diagonal inputs."""
    from asdl.fisher import FisherConfig, get_fisher_maker
    from asdl.grad_maker import LOSS_CROSS_ENTROPY
    from asdl.matrices import FISHER_EXACT, SHAPE_KRON

    config = FisherConfig(FISHER_EXACT, [SHAPE_KRON], LOSS_CROSS_ENTROPY, data_size=1)
    maker = get_fisher_maker(network, config)
    maker.setup_model_call(network, images)
    maker.forward_and_backward()
    statistics = [m.fisher.kron for m in network.modules() if getattr(m, "fisher", None) is not None]
    factors = [factor for kron in statistics for factor in (kron.A, kron.B)]
    for module in network.modules():
        if hasattr(module, "fisher"):
            del module.fisher
    return factors
