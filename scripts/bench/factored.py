"""F-FC at alpha 10, batch 128: one training step and one curvature fit, beside the released route."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.structures import factor_bytes
from ellarepro.network import build_network
from scripts.bench.released import released_network
from scripts.bench.timing import alternate, row, training_step

BATCH, CLASSES, ALPHA = 128, 10, 10


def main(rounds: int) -> Iterator[str]:
    """Lines of the report."""
    ours = build_network("f_fc", in_channels=3, num_classes=CLASSES, alpha=ALPHA)
    theirs = released_network(_copy(ours))
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(CLASSES, (BATCH,))
    with torch.no_grad():
        difference = (ours(images) - theirs(images)).abs().max() / ours(images).abs().max()
    yield f"\nF-FC, alpha {ALPHA}, batch {BATCH}, {CLASSES} classes (outputs agree to {difference:.0e} relative)"
    yield row("", "ours", "released", "ratio")
    yield from _steps(ours, theirs, images, labels, rounds)
    yield from _fits(ours, theirs, images)


def _copy(network: nn.Module) -> nn.Module:
    twin = build_network("f_fc", in_channels=3, num_classes=CLASSES, alpha=ALPHA)
    twin.load_state_dict(network.state_dict())
    return twin


def _steps(ours: nn.Module, theirs: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> Iterator[str]:
    contenders = {"ours": ours, "released": theirs}
    seconds = alternate({name: training_step(net, images, labels) for name, net in contenders.items()}, rounds)
    yield _line("training step, ms", seconds["ours"] * 1e3, seconds["released"] * 1e3)


def _fits(ours: nn.Module, theirs: nn.Module, images: Tensor) -> Iterator[str]:
    sizes = {}

    def fit_ours() -> None:
        ggn = GGN(ours, tolerance=0.0)
        ggn.update(images)
        sizes["ours"] = factor_bytes(ggn.blocks(len(images)))

    def fit_theirs() -> None:
        factors = stock_kfac(theirs, images)
        sizes["released"] = sum(f.numel() * f.element_size() for f in factors)

    # One round each: the released route takes minutes, and the ratio is far from the mark.
    seconds = alternate({"ours": fit_ours, "released": fit_theirs}, rounds=1)
    yield _line("curvature fit of a batch, s", seconds["ours"], seconds["released"])
    yield _line("memory of the factors, MB", sizes["ours"] / 1e6, sizes["released"] / 1e6)


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


def _line(what: str, ours: float, theirs: float) -> str:
    return row(what, f"{ours:.4g}", f"{theirs:.4g}", f"{theirs / ours:.1f}x")
