"""One run of a sweep, as a process that carries it out sees it: it never raises, it tells how it ended."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ellarepro.config.schema import Config
from ellarepro.errors import Interrupted, RunFailure, UserError
from ellarepro.results import RunResult, read_result
from ellarepro.symmetry.labels import layer_title
from ellarepro.training.progress import Moment, clock


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        label: what was run.
        line: what came of it.
        status: 0; 1 for a run that failed, 2 for one that was refused, 128 + its number for a signal that stopped it.
    """

    label: str
    line: str
    status: int


def label(config: Config) -> str:
    """What a run is, in a few words, and the end of its id."""
    return (
        f"{config.dataset.name} {config.layer.name} prior {config.prior.name} {config.objective.name} "
        f"seed {config.seed} ({config.run_id.rpartition('-')[2]})"
    )


def names(configs: Sequence[Config]) -> list[str]:
    """What tells the runs of a sweep apart, in fewer words: data set, layer, and what else they differ in."""

    def told(config: Config) -> list[str]:
        parts = [config.dataset.name, layer_title(config.layer.name), f"prior {config.prior.name}"]
        return [*parts, config.objective.name, f"seed {config.seed}", config.run_id.rpartition("-")[2]]

    columns = list(zip(*map(told, configs), strict=True))
    shown = [column for number, column in enumerate(columns[:-1]) if number < 2 or len(set(column)) > 1]
    if len(set(zip(*shown, strict=True))) < len(configs):
        shown.append(columns[-1])
    return [" ".join(parts) for parts in zip(*shown, strict=True)]


class SweepRuns:
    """The runs of a sweep, composed when it was submitted: what waits in a queue runs as it was asked for.

    Hydra's launchers call it with a configuration of their own, of which only the number of the job is used.
    """

    def __init__(self, configs: Sequence[Config]):
        self.configs = list(configs)

    def __len__(self) -> int:
        return len(self.configs)

    def __call__(self, job: DictConfig) -> Ended:
        """Carry out the job that a Hydra launcher has set up, and print how it ended."""
        ended = self.run(HydraConfig.get().job.num)
        print(f"{ended.label}: {ended.line}", flush=True)
        return ended

    def run(
        self,
        index: int,
        say: Callable[[str], None] = print,
        watch: Callable[[Moment], None] | None = None,
        **changes: Any,
    ) -> Ended:
        """Carry out run `index`, with `changes` of keys that change no result, as the number of threads.

        Args:
            say: told what goes on, a line at a time.
            watch: told of each epoch that is over.
        """
        from ellarepro.run import run

        config = self.configs[index].changed(**changes)
        try:
            outcome = run(config, say, watch)
        except (UserError, RunFailure) as error:
            return Ended(label(config), f"failed: {error}", 2 if isinstance(error, UserError) else 1)
        except Interrupted as stop:
            return Ended(label(config), str(stop), stop.status)
        except Exception as error:  # What nobody foresaw ends this run, and the others go on.
            traceback.print_exc(file=sys.stderr)
            return Ended(label(config), f"failed: {type(error).__name__}: {error}", 1)
        return Ended(label(config), _line(outcome.result, outcome.was_finished), 0)

    def finished(self, index: int) -> Ended | None:
        """How run `index` ended where that is known already; None if it is still to be carried out."""
        config = self.configs[index]
        if config.is_asked:
            return None
        try:
            return Ended(label(config), _line(read_result(config.result_file), was_finished=True), 0)
        except UserError as error:
            return Ended(label(config), f"failed: {error}", 2)


def tell(run: Ended, done: int, total: int, seconds: float) -> None:
    """Print how a run ended, how many have, and how long the sweep has taken so far."""
    print(f"[{done}/{total}  {clock(seconds)}]  {run.label}: {run.line}", flush=True)


def _line(result: RunResult, was_finished: bool) -> str:
    evidence = result.neg_log_marglik_per_datum
    return (
        result.measured(2)
        + ("" if evidence is None else f", -log marginal likelihood {evidence:.3f} nats a datum")
        + (" (finished before)" if was_finished else f", {result.wall_seconds:.0f} s")
    )
