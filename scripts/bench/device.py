"""F-FC+CONV at alpha 10 on a CUDA device: absolute times, and their share of the matrix rate of the same run."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product

import torch

from ellarepro.config.compose import compose
from ellarepro.curvature.ggn import GGN
from ellarepro.network import build_network
from ellarepro.runs.preparing import choose_arithmetic
from scripts.bench.flops import flops_of
from scripts.bench.tables import LOWER, Measure, Table
from scripts.bench.timing import STILL, matrix_rate, measured, seconds, several, summary, training_step

BATCH, FIT_BATCH, CLASSES, CHANNELS, ALPHA, DATA_SIZE = 128, 1000, 10, 3, 10, 50_000
STEPS = 30
"""Steps a measurement takes, as within an epoch the host does not wait for the device after each.

Twice as many as natural gradients take one curvature in.
"""


def main(rounds: int) -> Iterator[Table]:
    """The table of this benchmark; none without a device."""
    if torch.cuda.is_available():
        yield device_table("cuda", ALPHA, rounds)


def device_table(device: str, alpha: int, rounds: int, width: int = 4096, fit_batch: int = FIT_BATCH) -> Table:
    """An epoch of steps and a full exact fit, both extrapolated from a batch, and its decomposition, on `device`.

    Arithmetic is that of a run, and the matrix rate that of square matrices of `width`.
    """
    choose_arithmetic(tf32=False)
    network = build_network("f_fc_conv", in_channels=CHANNELS, num_classes=CLASSES, alpha=alpha).to(device)
    fitted = torch.randn(fit_batch, CHANNELS, 32, 32, device=device)
    images = fitted[:BATCH]
    labels = torch.randint(CLASSES, (len(images),), device=device)
    ggn = GGN(network, tolerance=0.0)
    calls: dict[str, Callable[[], object]] = {"exact fit": lambda: ggn.update(fitted)}
    times, work = {"exact fit": DATA_SIZE / fit_batch}, {"exact fit": flops_of(calls["exact fit"])}
    natural = replace(compose(["optimiser=kfac"]).optimiser, lr=STILL.lr, min_lr=STILL.min_lr)
    rules = {"": STILL, "natural-gradient ": natural}
    for (rule, optimiser), replay in product(rules.items(), (False, True) if images.is_cuda else (False,)):
        plain, name = f"epoch of {rule}steps", f"epoch of {'replayed ' * replay}{rule}steps"
        calls[name] = several(training_step(deepcopy(network), images, labels, replay, optimiser), STEPS)
        times[name] = DATA_SIZE / BATCH / STEPS
        # What a replay does is not seen from outside.
        work[name] = work[plain] if replay else flops_of(calls[name])
    rate = 2 * matrix_rate(width, device=device)
    found = measured(calls | {"decomposition of a fit": lambda: ggn.curvature(DATA_SIZE)}, rounds)
    rows = {}
    for name in calls:
        shares = [100 * work[name] / time / rate for time in found[name]]
        rows[name] = {
            f"{DATA_SIZE:,} images": seconds([time * times[name] for time in found[name]]),
            "share of the matrix rate": summary(shares, "%", LOWER),
        }
    rows["decomposition of a fit"] = {f"{DATA_SIZE:,} images": seconds(found["decomposition of a fit"])}
    rows["matrix rate"] = {"TFLOP/s": Measure(rate / 1e12)}
    title = f"F-FC+CONV on the device, alpha {alpha}, batch {BATCH} (fit {fit_batch}), {CLASSES} classes"
    return Table(title, rows)
