"""A step of `objective=vi` beside one of MAP by layer type, at the size of `budget=demo`: alpha 3, batch 100.

The steps are taken as many at a time as the posterior's factors take one of their own in. Processor seconds.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ellarepro.data import Samples
from ellarepro.network import build_network, options_of
from ellarepro.settings.parts import FitSettings, VariationalSettings
from scripts.bench.tables import Table
from scripts.bench.timing import measured, ratio, seconds, several, trainer_of

LAYERS = ("conv", "f_fc", "s_fc", "s_conv", "gconv", "f_fc_conv", "s_fc_s_conv", "f_fc_conv_gconv")
BATCH, CLASSES = 100, 40
SETTINGS = VariationalSettings(fit=FitSettings(passes=1))
OBJECTIVES: dict[str, tuple[str, Any]] = {"MAP": ("map", None), "VI": ("vi", SETTINGS)}


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark."""
    data = Samples(torch.randn(BATCH, 1, 32, 32), torch.arange(BATCH) % CLASSES)
    rows = {}
    for layer in LAYERS:
        blocks = {name: _steps(layer, data, objective) for name, objective in OBJECTIVES.items()}
        times = measured(blocks, rounds, time.process_time)
        own = {f"{name}, a step": seconds([t / SETTINGS.every for t in times[name]]) for name in OBJECTIVES}
        rows[layer] = own | {"VI / MAP": ratio(times["VI"], times["MAP"])}
    yield Table(f"a step of objective=vi beside MAP, alpha 3 (with groups 1), batch {BATCH}, processor seconds", rows)


def _steps(layer: str, data: Samples, objective: tuple[str, Any]) -> Callable[[], None]:
    alpha = 1 if "group" in options_of(layer) else 3
    network = build_network(layer, in_channels=1, num_classes=CLASSES, alpha=alpha)
    trainer = trainer_of(network, data, BATCH, objective=objective)
    trainer.run()  # After its one epoch the weights have a posterior.
    return several(lambda: trainer.step(data.inputs, data.targets), SETTINGS.every)
