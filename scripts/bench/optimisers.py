"""A training step by natural gradients and by SOAP beside one by Adam; what the evidence adds to a run of such steps.

Steps are taken as many at a time as natural gradients take one curvature in. Processor seconds.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from ellarepro.config.compose import compose
from ellarepro.data import Samples
from ellarepro.network import build_network
from scripts.bench.curvature import DATA_SIZE, one_pass
from scripts.bench.tables import Table
from scripts.bench.timing import measured, ratio, seconds, several, summary, trainer_of

CIFAR = ("conv", "f_fc", "f_fc_conv", "s_fc_s_conv")
CASES = (
    *((layer, 4, 3, 100) for layer in CIFAR),
    ("f_fc_conv_gconv", 1, 3, 100),
    *(("f_fc_conv", 3, 1, batch) for batch in (100, 50)),
    *((layer, 10, 3, 100) for layer in CIFAR),
)
"""Layer, alpha, channels of an image and images of a batch: as results/optimisers and `budget=wide` have them."""
NAMES = {"adam": "Adam", "soap": "SOAP", "kfac": "KFAC"}
CLASSES = 10


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    steps = compose(["optimiser=kfac"]).optimiser.arguments["every"]
    rows = {}
    for case in CASES:
        times = measured({name: _steps(*case, name, steps) for name in NAMES}, rounds, time.process_time)
        own = {f"{title}, a step": seconds([t / steps for t in times[name]]) for name, title in NAMES.items()}
        ratios = {f"{NAMES[name]} / Adam": ratio(times[name], times["adam"]) for name in ("soap", "kfac")}
        rows[row(case[0], case[1], case[3])] = own | ratios
    yield Table("a step beside Adam's, processor seconds", rows)
    yield _runs(steps, rounds)


def row(layer: str, alpha: int, batch: int) -> str:
    """The name of a row."""
    return f"{layer}, alpha {alpha}, batch {batch}"


def _runs(steps: int, rounds: int) -> Table:
    """What the fits of a Laplace run add to its training at `budget=wide`: those on the way, and one of all data."""
    run, rows = compose(["budget=wide", "dataset=cifar10_jpeg", "objective=laplace"]), {}
    on_the_way = len(range(run.objective.burn_in, run.epochs + 1, run.objective.frequency))
    images = torch.randn(run.objective.fit.batch_size, 3, 32, 32)
    batches = (on_the_way * run.objective.hyper_fit_size + DATA_SIZE) / len(images)
    for layer in CIFAR:
        network = build_network(layer, in_channels=3, num_classes=CLASSES, alpha=10)
        contenders = {
            "steps": _steps(layer, 10, 3, run.batch_size, "kfac", steps),
            "fit": partial(one_pass(network).update, images),
        }
        times = measured(contenders, rounds, time.process_time)
        training = [run.epochs * DATA_SIZE / run.batch_size * each / steps for each in times["steps"]]
        cost = [1 + batches * fit / whole for fit, whole in zip(times["fit"], training, strict=True)]
        rows[layer] = {f"a fit of {len(images)} images": seconds(times["fit"]), "Laplace / MAP": summary(cost)}
    return Table("a Laplace run beside its MAP run, budget=wide, processor seconds", rows)


def _steps(layer: str, alpha: int, channels: int, batch: int, optimiser: str, steps: int) -> Callable[[], None]:
    data = Samples(torch.randn(batch, channels, 32, 32), torch.arange(batch) % CLASSES)
    network = build_network(layer, in_channels=channels, num_classes=CLASSES, alpha=alpha, group="c4")
    still = replace(compose([f"optimiser={optimiser}"]).optimiser, lr=1e-30, min_lr=0.0)
    trainer = trainer_of(network, data, batch, optimiser=still)
    return several(lambda: trainer.step(data.inputs, data.targets), steps)
