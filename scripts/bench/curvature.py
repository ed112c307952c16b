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
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import Network, build_network
from scripts.bench.plain import LAYERS, plain_largest_phase
from scripts.bench.tables import HIGHER, Measure, Table
from scripts.bench.timing import matrix_rate, measured, ratio, seconds, summary, training_step

BATCH, CLASSES, ALPHA, CHANNELS = 128, 10, 10, 3
FLOOR_PASSES = 10
FREQUENCY = 5
"""Epochs between fits, as published."""
HYPER_STEPS, DATA_SIZE = 20, 50_000


def main(rounds: int) -> Iterator[Table]:
    """The tables of this benchmark."""
    images, labels = torch.randn(BATCH, CHANNELS, 32, 32), torch.randint(CLASSES, (BATCH,))
    yield _peers(images, labels, rounds)
    yield _floors(images, rounds)
    yield _schedule(images, labels, rounds)
    yield _decomposition(images)
    yield _hyper_steps(images)


def _network(layer: str) -> Network:
    return build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=ALPHA)


def _peers(images: Tensor, labels: Tensor, rounds: int) -> Table:
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
        "ours, one sampled pass": lambda: one_pass(ours).update(images),
        "AsdlGGN": peer(AsdlGGN),
        "CurvlinopsGGN": peer(CurvlinopsGGN),
    }
    found = measured(contenders, rounds)
    exact, sampled = found["ours"], found["ours, one sampled pass"]
    rows = {
        name: {"a batch": seconds(times), "one pass / it": ratio(sampled, times), "ours / it": ratio(exact, times)}
        for name, times in found.items()
    }
    return Table(f"CONV with zero padding, exact fit, alpha {ALPHA}, batch {BATCH}, {CLASSES} classes", rows)


def one_pass(network: nn.Module) -> GGN:
    """A fit by one sampled pass a batch."""
    return GGN(network, passes=1, generator=torch.Generator().manual_seed(0))


def _schedule(images: Tensor, labels: Tensor, rounds: int) -> Table:
    """What fits add to training where each takes all data: 1 + a batch's fit / (`FREQUENCY` steps on it)."""
    rows = {}
    for layer in LAYERS:
        network = _network(layer)
        contenders = {
            "step": training_step(network, images, labels),
            "exact": lambda network=network: GGN(network).update(images),
            "sampled": lambda network=network: one_pass(network).update(images),
        }
        found = measured(contenders, rounds)
        rows[layer] = {"a step": seconds(found["step"])}
        for fit in ("exact", "sampled"):
            times = zip(found["step"], found[fit], strict=True)
            rows[layer][f"Laplace / MAP, {fit}"] = summary([1 + each / (FREQUENCY * step) for step, each in times])
    return Table(f"a run whose fits take all data every {FREQUENCY} epochs, alpha {ALPHA}, batch {BATCH}", rows)


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
        return plain_largest_phase(features)


def _floors(images: Tensor, rounds: int) -> Table:
    rate = matrix_rate()
    rows = {}
    for layer in LAYERS:
        network = _network(layer)

        def fit(network: Network = network) -> None:
            GGN(network, tolerance=0.0).update(images)

        found = measured({"fit": fit, "passes": lambda network=network: _passes(network, images)}, rounds)
        products = factor_multiplications(network, images) / rate
        floor = [passes + products for passes in found["passes"]]
        ggn = GGN(network, tolerance=0.0)
        ggn.update(images)
        size = Measure(factor_bytes(ggn.blocks(BATCH)) / 1e6, "MB", worse=HIGHER)
        rows[layer] = {"fit": seconds(found["fit"]), "fit / floor": ratio(found["fit"], floor), "factors": size}
    return Table(f"exact fit beside the floor, alpha {ALPHA}, batch {BATCH} ({2 * rate / 1e9:.0f} GFLOP/s)", rows)


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


def _decomposition(images: Tensor) -> Table:
    """Eigenvalues of all `f_fc_conv` factors, beside the dense factor that a stock `Kron` would hold."""
    ggn = GGN(_network("f_fc_conv"), tolerance=0.0)
    ggn.update(images)
    blocks = ggn.blocks(BATCH)
    dense = 2048
    matrix = torch.randn(dense, dense)
    matrix = matrix @ matrix.T
    found = measured(
        {
            "blocks": lambda: SpectralCurvature.from_blocks(blocks),
            "dense": lambda: torch.linalg.eigvalsh(matrix),
        },
        rounds=3,
    )
    shapes = [factor.shape for block in blocks.values() for factor in block.factors]
    cubes = sum((groups * width / dense) ** 3 for groups, width, _ in shapes)
    extrapolated = [one * cubes for one in found["dense"]]
    row = {
        "by blocks": seconds(found["blocks"]),
        f"dense, from one of {dense}": seconds(extrapolated),
        "ratio": ratio(found["blocks"], extrapolated),
    }
    return Table(f"eigenvalues of all factors after a batch, alpha {ALPHA}", {"f_fc_conv": row})


def _hyper_steps(images: Tensor) -> Table:
    """Twenty hyper-steps beside the fit of 50,000 images that they follow, extrapolated from that of one batch."""
    rows = {}
    for layer in LAYERS:
        network = _network(layer)
        ggn = GGN(network, tolerance=0.0)
        ggn.update(images)
        prior = LayerwisePrior(network)
        curvature = SpectralCurvature.from_blocks(ggn.blocks(BATCH))
        evidence = MarginalLikelihood(curvature, 1.0, prior.squared_norms(), BATCH)
        optimiser = torch.optim.Adam([prior.log_precision], lr=0.1)

        def steps(evidence=evidence, prior=prior, optimiser=optimiser) -> None:
            evidence.ascend(prior.log_precision, optimiser, HYPER_STEPS)

        found = measured({"steps": steps, "batch": lambda ggn=ggn: ggn.update(images)}, rounds=3)
        fit = [one * DATA_SIZE / BATCH for one in found["batch"]]
        rows[layer] = {"steps": seconds(found["steps"]), "fit": seconds(fit), "steps / fit": ratio(found["steps"], fit)}
    return Table(f"{HYPER_STEPS} hyper-steps, alpha {ALPHA}, beside a fit of {DATA_SIZE:,} images, from a batch", rows)
