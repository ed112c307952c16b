"""One cell of a table for two minutes, stopped and continued, and how long its whole table will take."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from tempfile import TemporaryDirectory

from ellarepro.config.schema import Config
from ellarepro.data.batches import ordered_batches
from ellarepro.errors import Interrupted
from ellarepro.resume.checkpoint import load_checkpoint
from ellarepro.run import run
from ellarepro.runs.preparing import prepare
from scripts.bench.tables import HIGHER, LOWER, Measure, Table
from scripts.bench.timing import capture
from scripts.estimate import run_seconds
from scripts.gpu.plan import Plan
from scripts.make_table import parse, sweep_of

HOUR = 3600.0
_BATCHES = 3
"""Batches that steps are taken on, again and again."""
_STEPS = 20
"""Steps that are taken before the clock is looked at, as the host does not wait for the device after each."""
ESTIMATED, SEEN, WHOLE = "the cell, estimated", "the cell, from its first minutes", "the whole table, one at a time"


@dataclass(frozen=True)
class Place:
    """How far a run is: epochs, with the part of the one it stands in, of how many, and its seconds so far."""

    epochs: float
    of: int
    seconds: float

    @property
    def whole(self) -> float:
        """Seconds of the whole run, as it went so far."""
        return self.seconds * self.of / self.epochs


def cell(table: str, plan: Plan) -> Iterator[Table]:
    """F-FC+CONV by Laplace, run for `plan.seconds` and stopped halfway; then the estimate of all cells of its table.

    Raises:
        UserError: the data are not there, or the configuration is refused.
    """
    with TemporaryDirectory() as folder:
        configs = _configs(table, plan, folder)
        config = _learned(configs)
        places = [_further(config, plan.seconds / 2) for _ in range(2)]
    estimates = {each.run_id: _estimate(each) for each in configs}
    row = {
        "epochs in the first half": Measure(places[0].epochs),
        "epochs in both": Measure(places[1].epochs),
        ESTIMATED: Measure(estimates[config.run_id] / HOUR, "h", worse=HIGHER),
        SEEN: Measure(places[1].whole / HOUR, "h", worse=HIGHER),
        WHOLE: Measure(sum(estimates.values()) / HOUR, "h", worse=HIGHER),
    }
    yield Table(
        f"{table}, budget {plan.budget}, {len(configs)} cells",
        {f"f_fc_conv, laplace, {config.dataset.name}": row},
    )


def _configs(table: str, plan: Plan, folder: str) -> list[Config]:
    keys = [f"budget={plan.budget}", f"device={plan.device}", "progress=false", f"output_dir={folder}"]
    return sweep_of(parse([table, *keys, *plan.keys.get(table, ())])).configs


def _estimate(config: Config) -> float:
    gc.collect()  # The networks of the cells before refer to themselves, and would stay on the device.
    return run_seconds(config)


def _learned(configs: Sequence[Config]) -> Config:
    """The first cell of F-FC+CONV by Laplace."""
    return next(c for c in configs if (c.layer.name, c.objective.name) == ("f_fc_conv", "laplace"))


def _further(config: Config, seconds: float) -> Place:
    """Let a run go on for so long, and say how far it has come since its first start."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))

    def say(line: str) -> None:
        print(line, flush=True)
        if timer.ident is None:  # A signal before the run heeds them would end this process.
            timer.start()

    try:
        result = run(config, say=say).result
        return Place(result.epochs, result.epochs, result.wall_seconds)
    except Interrupted as stop:
        print(stop, flush=True)
    finally:
        timer.cancel()
    checkpoint = load_checkpoint(config.folder / "checkpoint.pt")
    assert checkpoint is not None, "an interrupted run has kept its place"
    kept = checkpoint["state"]
    place = kept["place"]
    begun = place["step"] / place["steps"] if place else 0.0
    return Place(max(kept["epoch"] + begun, 1e-9), config.epochs, kept["seconds"])


def side_by_side(plan: Plan) -> Iterator[Table]:
    """Steps a second of Table 1's F-FC+CONV, one run alone and several beside each other.

    Raises:
        UserError: the data are not there, or the configuration is refused.
    """
    with TemporaryDirectory() as folder:
        configs = _configs("table1", plan, folder)
    config = _learned(configs)
    rows: dict[str, dict[str, Measure]] = {}
    alone = 0.0
    for jobs in plan.jobs:
        with plan.pool(jobs) as pool:
            at = time.time() + plan.start
            futures = [pool.submit(steps_a_second, config, at, plan.together) for _ in range(jobs)]
            rates, begun = zip(*(future.result() for future in futures), strict=True)
        total = sum(rates)
        alone = alone or total
        rows[f"JOBS={jobs}"] = {
            "steps a second, all together": Measure(total, worse=LOWER),
            "gain": Measure(total / alone, worse=LOWER),
            "began apart by": Measure(max(begun) - min(begun), "s"),
        }
    yield Table("runs side by side", rows)


def steps_a_second(config: Config, at: float, seconds: float) -> tuple[float, float]:
    """Steps of a run from the time `at` on, for so many seconds, and when it began; it is made ready before."""
    trainer = prepare(config)[0]
    batches = list(islice(ordered_batches(trainer.objective.data, trainer.data.batch_size), _BATCHES))
    capture(trainer, *batches[0])
    trainer.step(*batches[0])[0].item()
    time.sleep(max(at - time.time(), 0.0))
    begun, started = time.time(), time.perf_counter()
    for steps, (images, labels) in enumerate(cycle(batches), 1):
        loss, _ = trainer.step(images, labels)
        if steps % _STEPS == 0:
            loss.item()  # Only now have the steps been taken.
            if (passed := time.perf_counter() - started) >= seconds:
                return steps / passed, begun
    raise AssertionError("batches have no end")
