"""What an epoch takes beside its steps: the order of the data, augmentation, learning rates, counting, a check."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ellarepro.data import Samples
from ellarepro.network import build_network
from scripts.bench.plain import ALPHA, BATCH, CHANNELS, CLASSES, LAYERS
from scripts.bench.tables import HIGHER, Table
from scripts.bench.timing import seconds, summary, trainer_of

STEPS = 100


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    size = STEPS * BATCH
    data = Samples(torch.randn(size, CHANNELS, 32, 32), torch.randint(CLASSES, (size,)))
    rows = {}
    for layer in LAYERS:
        network = build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=ALPHA)
        for augment in (False, True):
            epochs = [epoch_seconds(network, data, augment) for _ in range(rounds + 1)][1:]
            rows[f"{layer}, augmented" if augment else layer] = {
                "an epoch": seconds([whole for whole, _ in epochs]),
                "beside its steps": summary([100 * (1 - steps / whole) for whole, steps in epochs], "%", HIGHER),
            }
    yield Table(f"an epoch of {STEPS} steps, alpha {ALPHA}, batch {BATCH}", rows)


def epoch_seconds(network: torch.nn.Module, data: Samples, augment: bool) -> tuple[float, float]:
    """Seconds of an epoch on the CPU, and of the steps in it."""
    trainer = trainer_of(network, data, BATCH, augment)
    take, within = trainer.step, [0.0]

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        outcome = take(images, labels)
        within[0] += time.perf_counter() - started
        return outcome

    trainer.step = step  # type: ignore[method-assign]
    started = time.perf_counter()
    trainer.run()
    return time.perf_counter() - started, within[0]
