"""Exact curvature fits of one batch at alpha 10, batch 128, 10 classes: beside laplace-torch, and beside the floor.

The floor is what no implementation of KFAC with K class passes goes below: one forward pass, ten backward passes to the
layers' outputs only, and the multiplications of the factor products, counted, at the matrix rate of the same run.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.hooks import forward_hooks
from ellarepro.curvature.spectra import SpectralCurvature
from ellarepro.curvature.structures import factor_bytes
from ellarepro.marglik import MarginalLikelihood
from ellarepro.network import Network, build_network
from ellarepro.prior import LayerwisePrior
from scripts.bench.timing import alternate, matrix_rate, row

BATCH, CLASSES, ALPHA, CHANNELS = 128, 10, 10, 3
FLOOR_PASSES = 10
HYPER_STEPS, DATA_SIZE = 20, 50_000


def main(rounds: int) -> Iterator[str]:
    """Lines of the report."""
    images, labels = torch.randn(BATCH, CHANNELS, 32, 32), torch.randint(CLASSES, (BATCH,))
    yield from _peers(images, labels, rounds)
    yield from _floors(images, rounds)
    yield from _decomposition(images)
    yield from _hyper_steps(images)


def _network(layer: str) -> Network:
    return build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=ALPHA)


def _peers(images: Tensor, labels: Tensor, rounds: int) -> Iterator[str]:
    """`conv` with zero padding, where the peers are right, so that the work is the same."""
    from laplace.curvature import AsdlGGN, CurvlinopsGGN

    ours = _network("conv")
    for module in ours.modules():
        if hasattr(module, "padding_mode"):
            module.padding_mode = "zeros"
    stock = _stock_convolutions(ours)

    def peer(backend: type) -> Callable[[], object]:
        def call() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                backend(stock, "classification").kron(images, labels, N=BATCH)

        return call

    contenders = {
        "ours": lambda: GGN(ours, tolerance=0.0).update(images),
        "AsdlGGN": peer(AsdlGGN),
        "CurvlinopsGGN": peer(CurvlinopsGGN),
    }
    seconds = alternate(contenders, rounds)
    yield f"\nCONV, zero padding, alpha {ALPHA}, batch {BATCH}, {CLASSES} classes, exact: seconds a batch"
    yield row("", "seconds", "ours / it")
    for name, value in seconds.items():
        yield row(name, f"{value:.3f}", f"{seconds['ours'] / value:.2f}")


def _stock_convolutions(network: Network) -> nn.Module:
    """The same network of stock layers, which is all that the peers can see."""
    layers: list[nn.Module] = []
    for block in network.blocks:
        path = block.paths["conv"]
        stock = nn.Conv2d(path.in_channels, path.out_channels, 3, padding=1)
        stock.load_state_dict(path.state_dict())
        layers += [stock, _LargestPhase() if path.subsamples else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *network.head)


class _LargestPhase(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        from ellarepro.layers.subsample import keep_largest_phase

        return keep_largest_phase(features)


def _floors(images: Tensor, rounds: int) -> Iterator[str]:
    rate = matrix_rate()
    yield f"\nbeside the floor, alpha {ALPHA}, batch {BATCH} (matrix rate {2 * rate / 1e9:.0f} GFLOP/s)"
    yield row("", "fit, s", "floor, s", "fit / floor", "factors, MB", widths=(44, 14, 14, 14, 14))
    for layer in ("conv", "f_fc", "f_fc_conv"):
        network = _network(layer)
        sizes: dict[str, float] = {}

        def fit(network: Network = network, sizes: dict = sizes) -> None:
            ggn = GGN(network, tolerance=0.0)
            ggn.update(images)
            sizes["factors"] = factor_bytes(ggn.blocks(BATCH))

        seconds = alternate({"fit": fit, "passes": lambda network=network: _passes(network, images)}, rounds)
        floor = seconds["passes"] + factor_multiplications(network, images) / rate
        cells = (
            f"{seconds['fit']:.3f}",
            f"{floor:.3f}",
            f"{seconds['fit'] / floor:.2f}",
            f"{sizes['factors'] / 1e6:.0f}",
        )
        yield row(layer, *cells, widths=(44, 14, 14, 14, 14))


def _passes(network: Network, images: Tensor) -> None:
    """One forward pass and ten backward passes to the inputs only."""
    for p in network.parameters():
        p.requires_grad_(False)
    inputs = images.clone().requires_grad_()
    logits = network(inputs)
    for index in range(FLOOR_PASSES):
        torch.autograd.grad(logits[:, index].sum(), inputs, retain_graph=True)
    for p in network.parameters():
        p.requires_grad_(True)


def factor_multiplications(network: Network, images: Tensor) -> float:
    """Multiply-adds of all factor products as plain products of rows: R d^2 for R rows of width d in each group."""
    ggn = GGN(network, tolerance=0.0)
    total = 0.0
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def keep(name: str, inputs: Tensor, output: Tensor) -> None:
        rule = ggn.parts[name].rule
        shapes[name] = rule.input_rows(inputs).shape, rule.output_rows(output).shape

    with forward_hooks(ggn.layers, keep), torch.no_grad():
        network(images)
    for inputs, outputs in shapes.values():
        total += inputs.numel() * inputs[-1] + FLOOR_PASSES * outputs.numel() * outputs[-1]
    return total


def _decomposition(images: Tensor) -> Iterator[str]:
    """Eigenvalues of all `f_fc_conv` factors, beside the dense factor that a stock `Kron` would hold."""
    ggn = GGN(_network("f_fc_conv"), tolerance=0.0)
    ggn.update(images)
    blocks = ggn.blocks(BATCH)
    dense = 2048
    matrix = torch.randn(dense, dense)
    matrix = matrix @ matrix.T
    seconds = alternate(
        {
            "blocks": lambda: SpectralCurvature.from_blocks(blocks),
            "dense": lambda: torch.linalg.eigvalsh(matrix),
        },
        rounds=2,
    )
    shapes = [factor.shape for block in blocks.values() for factor in block.factors]
    extrapolated = sum(seconds["dense"] * (g * d / dense) ** 3 for g, d, _ in shapes)
    yield "\neigenvalues of all f_fc_conv factors, alpha 10"
    yield row("blocks, measured, s", f"{seconds['blocks']:.2f}")
    yield row("dense, extrapolated from one of 2048, s", f"{extrapolated:.0f}")


def _hyper_steps(images: Tensor) -> Iterator[str]:
    """Twenty hyper-steps beside the fit of 50,000 images that they follow, extrapolated from that of one batch."""
    yield f"\n{HYPER_STEPS} hyper-steps, alpha {ALPHA}; a fit of {DATA_SIZE:,} images is extrapolated from one batch"
    yield row("", "steps, s", "fit, s", "share")
    for layer in ("conv", "f_fc", "f_fc_conv"):
        network = _network(layer)
        ggn = GGN(network, tolerance=0.0)
        ggn.update(images)
        prior = LayerwisePrior(network)
        curvature = SpectralCurvature.from_blocks(ggn.blocks(BATCH))
        evidence = MarginalLikelihood(curvature, 1.0, prior.squared_norms(), BATCH)
        optimiser = torch.optim.Adam([prior.log_precision], lr=0.1)

        def steps(evidence=evidence, prior=prior, optimiser=optimiser) -> None:
            evidence.ascend(prior.log_precision, optimiser, HYPER_STEPS)

        seconds = alternate({"steps": steps, "batch": lambda ggn=ggn: ggn.update(images)}, rounds=3)
        fit = seconds["batch"] * DATA_SIZE / BATCH
        yield row(layer, f"{seconds['steps']:.2f}", f"{fit:.0f}", f"{100 * seconds['steps'] / fit:.2f}%")
