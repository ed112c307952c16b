"""A training step by natural gradients and by SOAP beside one by Adam, batch 100, as `budget=wide` takes them.

Steps are taken as many at a time as natural gradients take one curvature in. Processor seconds.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ellarepro.config.compose import compose
from ellarepro.data import Samples
from ellarepro.network import build_network
from scripts.bench.tables import Table
from scripts.bench.timing import measured, ratio, seconds, several, trainer_of

LAYERS = ("conv", "f_fc_conv", "s_fc_s_conv")
ALPHAS = (4, 10)
NAMES = {"adam": "Adam", "soap": "SOAP", "kfac": "KFAC"}
BATCH, CLASSES = 100, 10


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    data = Samples(torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % CLASSES)
    steps = compose(["optimiser=kfac"]).optimiser.arguments["every"]
    rows = {}
    for alpha in ALPHAS:
        for layer in LAYERS:
            times = measured({n: _steps(layer, alpha, data, n, steps) for n in NAMES}, rounds, time.process_time)
            own = {f"{title}, a step": seconds([t / steps for t in times[name]]) for name, title in NAMES.items()}
            ratios = {f"{NAMES[name]} / Adam": ratio(times[name], times["adam"]) for name in ("soap", "kfac")}
            rows[f"{layer}, alpha {alpha}"] = own | ratios
    yield Table(f"a step beside Adam's, batch {BATCH}, processor seconds", rows)


def _steps(layer: str, alpha: int, data: Samples, optimiser: str, steps: int) -> Callable[[], None]:
    network = build_network(layer, in_channels=3, num_classes=CLASSES, alpha=alpha)
    still = replace(compose([f"optimiser={optimiser}"]).optimiser, lr=1e-30, min_lr=0.0)
    trainer = trainer_of(network, data, BATCH, optimiser=still)
    return several(lambda: trainer.step(data.inputs, data.targets), steps)
