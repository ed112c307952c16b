"""Run every cell of a table that has not been run yet, then print the table: what `make table1` calls.

Cells are those of configs/experiment/<table>/*.yaml; each is the same run as `python -m ellarepro experiment=…` makes,
and keys are written as there.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from ellarepro.config.compose import Sweep, compose_all, expand
from ellarepro.config.explain import choices_of
from ellarepro.config.resolve import check_combination
from ellarepro.config.schema import Config
from ellarepro.errors import RunFailure, UserError, command
from ellarepro.launching.launch import failures, launch
from ellarepro.launching.local import KILLED, default_jobs, share
from ellarepro.launching.sweep_runs import Ended
from ellarepro.resume.files import write_atomically
from ellarepro.tables import RENDERERS, SPECS, build_grids, load_runs, plain
from ellarepro.tables.cells import Grid
from scripts.estimate import as_text, run_seconds

JPEG_COPIES = {"cifar10": "cifar10_jpeg", "rotated_cifar10": "rotated_cifar10_jpeg"}
TABLES = list(SPECS)


@command("make_table")
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where a cell failed, 2 for a mistake, 128 + the number of a signal that came."""
    options = parse(arguments)
    sweep = sweep_of(options)
    return carry_out(options.table, sweep, _longest_first(sweep, unfinished(sweep)))


def carry_out(table: str, sweep: Sweep, left: Sequence[Config]) -> int:
    """Carry out the runs `left` of `sweep`, printing the table as its cells arrive and at the end; the exit status.

    Raises:
        UserError: the launcher cannot work here.
        Interrupted: by a signal; the runs under way have kept their places.
    """
    arrived, columns = 0, _columns(table, sweep)

    def on_end(run: Ended) -> None:
        nonlocal arrived
        arrived += 1
        if run.status == 0 and arrived < len(left):
            print(f"\n{plain(_grids(table, sweep)[0], columns)}\n", flush=True)

    lines, status = failures(launch(left, sweep.hydra, on_end) if left else [])
    _print_table(table, sweep)
    for line in lines:
        print(f"make_table: {line}", file=sys.stderr)
    return status


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_table", description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for all cells, as for python -m ellarepro")
    parser.add_argument("--only", metavar="NAME", help="the cells of configs/experiment/<table>/NAME.yaml only")
    parser.add_argument(
        "--cifar", choices=("torchvision", "jpeg"), default="torchvision", help="which copy of CIFAR-10"
    )
    parser.add_argument("--augment", choices=("true", "false"), help="dataset.augment of CIFAR-10: flips and crops")
    return parser.parse_intermixed_args(arguments)


def sweep_of(options: argparse.Namespace) -> Sweep:
    """All cells of the table, each once, checked before anything runs.

    Raises:
        UserError: a mistake in the command.
    """
    experiments = [name for name in choices_of("experiment") if name.startswith(f"{options.table}/")]
    if options.only:
        experiments = [f"{options.table}/{options.only}"]
    launcher = [] if any(key.startswith("hydra/launcher=") for key in options.keys) else ["hydra/launcher=local"]
    sweep = expand([f"experiment={','.join(experiments)}", *launcher, *options.keys], multirun=True)
    points = [_with_copy(p, c, options) for p, c in zip(sweep.points, sweep.configs, strict=True)]
    cells = {config.run_id: (point, config) for point, config in zip(points, compose_all(points), strict=True)}
    for _, config in cells.values():
        check_combination(config)
    return Sweep(*map(list, zip(*cells.values(), strict=True)), sweep.hydra, is_multirun=True)


def _with_copy(point: list[str], config: Config, options: argparse.Namespace) -> list[str]:
    """`point` with the copy of CIFAR-10 and the augmentation that were asked for."""
    if config.dataset.name not in JPEG_COPIES:
        return point
    copy = [f"dataset={JPEG_COPIES[config.dataset.name]}"] if options.cifar == "jpeg" else []
    return [*point, *copy, *([f"dataset.augment={options.augment}"] if options.augment else [])]


def unfinished(sweep: Sweep) -> list[Config]:
    """The cells that are not finished; says how many."""
    left = [config for config in sweep.configs if config.is_asked]
    budget, folder = sweep.configs[0].budget.name, sweep.configs[0].output_dir
    print(
        f"budget {budget}: {len(sweep.configs)} runs, {len(sweep.configs) - len(left)} finished before, to {folder}",
        flush=True,
    )
    return left


def _longest_first(sweep: Sweep, left: list[Config]) -> list[Config]:
    """The cells `left`; where they run here, longest first, as measured.

    Raises:
        UserError: a cell cannot run, for want of its data say: better now than after hours.
        RunFailure: a process that measures was killed.
    """
    launcher = sweep.hydra.hydra.launcher
    if not left or not launcher._target_.endswith(".LocalLauncher"):
        return left
    jobs = min(launcher.jobs or default_jobs(), len(left))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_seconds, config.changed(**share(config, jobs))) for config in left]
        try:
            seconds = [future.result() for future in futures]
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
        except BrokenProcessPool as error:
            raise RunFailure(f"a process that measured how long a run takes was {KILLED}") from error
    total = as_text(max(sum(seconds) / jobs, *seconds))
    print(f"{jobs} at a time; estimated time: up to {total} (the same command, given again, goes on)", flush=True)
    order = sorted(range(len(left)), key=seconds.__getitem__, reverse=True)
    return [left[index] for index in order]


def _columns(table: str, sweep: Sweep) -> set[str]:
    """The columns of the table that the sweep fills."""
    groups = ("dataset", "layer", "prior", "objective")
    chosen = [{group: getattr(config, group).name for group in groups} for config in sweep.configs]
    columns = SPECS[table].columns.items()
    return {key for key, line in columns if any(all(c[g] in v for g, v in line.match.items()) for c in chosen)}


def _grids(table: str, sweep: Sweep) -> list[Grid]:
    """The table as the runs below the sweep's folder make it up, of its budget."""
    runs = Path(sweep.configs[0].output_dir)
    return build_grids(table, load_runs(table, [runs]), sweep.configs[0].budget.name)


def _print_table(table: str, sweep: Sweep) -> None:
    runs = Path(sweep.configs[0].output_dir)
    runs.mkdir(parents=True, exist_ok=True)
    page = runs / f"{table}-{sweep.configs[0].budget.name}.md"
    text = RENDERERS["md"](_grids(table, sweep))
    write_atomically(page, text.encode())
    print(f"\n{text}\nThis table as a page: {page}")
    print(f"Each run's result.json, resolved config.yaml and effective_parameters.png: {runs}/<run_id>/")


if __name__ == "__main__":
    sys.exit(main())
