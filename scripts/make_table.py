"""Run every cell of a table that has not been run yet, then print the table: what `make table1` calls.

Cells are those of configs/experiment/<table>/*.yaml; each is the same run as `python -m ellarepro experiment=…` makes,
and keys are written as there.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ellarepro.config.compose import compose_all
from ellarepro.config.explain import CONFIGS, choices_of
from ellarepro.config.resolve import check_combination
from ellarepro.config.sweep import Sweep, expand
from ellarepro.errors import Interrupted, UserError
from ellarepro.files import write_atomically
from ellarepro.launching.launch import failures, launch
from ellarepro.launching.local import default_jobs, share
from ellarepro.results import RESULT_FILE, run_id
from ellarepro.tables import RENDERERS, build_grids, load_runs
from scripts.estimate import as_text, run_seconds

JPEG_COPIES = {"cifar10": "cifar10_jpeg", "rotated_cifar10": "rotated_cifar10_jpeg"}
TABLES = sorted(path.name for path in (CONFIGS / "experiment").glob("table*"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where a cell failed, 2 for a mistake in the command, 128 + the number of a signal that stopped it."""
    options = _parse(arguments)
    try:
        sweep = _sweep(options)
        left = _left(sweep)
        ended = launch(left, sweep.hydra) if left else []
    except UserError as error:
        print(f"make_table: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"make_table: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("make_table: interrupted; the same command goes on", file=sys.stderr)
        return 130
    lines, status = failures(ended)
    _print_table(options.table, sweep.configs[0])
    for line in lines:
        print(f"make_table: {line}", file=sys.stderr)
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.make_table", description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for all cells, as for python -m ellarepro")
    parser.add_argument("--only", metavar="NAME", help="the cells of configs/experiment/<table>/NAME.yaml only")
    parser.add_argument("--cifar", choices=("torchvision", "jpeg"), default="torchvision", help="copy of CIFAR-10")
    parser.add_argument("--augment", choices=("true", "false"), help="dataset.augment of CIFAR-10: flips and crops")
    return parser.parse_intermixed_args(arguments)


def _sweep(options: argparse.Namespace) -> Sweep:
    """All cells of the table, checked before anything runs.

    Raises:
        UserError: a mistake in the command.
    """
    experiments = [name for name in choices_of("experiment") if name.startswith(f"{options.table}/")]
    if options.only:
        experiments = [f"{options.table}/{options.only}"]
    launcher = [] if any(key.startswith("hydra/launcher=") for key in options.keys) else ["hydra/launcher=local"]
    sweep = expand([f"experiment={','.join(experiments)}", *launcher, *options.keys], multirun=True)
    points = [_with_copy(p, c, options) for p, c in zip(sweep.points, sweep.configs, strict=True)]
    configs = compose_all(points)
    for config in configs:
        check_combination(config)
    return Sweep(points, configs, sweep.hydra, is_multirun=True)


def _with_copy(point: list[str], config: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """`point` with the copy of CIFAR-10 and the augmentation that were asked for."""
    if config["dataset"]["name"] not in JPEG_COPIES:
        return point
    copy = [f"dataset={JPEG_COPIES[config['dataset']['name']]}"] if options.cifar == "jpeg" else []
    return [*point, *copy, *([f"dataset.augment={options.augment}"] if options.augment else [])]


def _left(sweep: Sweep) -> list[dict[str, Any]]:
    """The cells that are not finished; where they run here, longest first, as measured.

    Raises:
        UserError: a cell cannot run, for want of its data say: better now than after hours.
    """
    left = [
        config for config in sweep.configs if not (Path(config["output_dir"]) / run_id(config) / RESULT_FILE).exists()
    ]
    budget, folder = sweep.configs[0]["budget"]["name"], sweep.configs[0]["output_dir"]
    print(
        f"budget {budget}: {len(sweep.configs)} runs, {len(sweep.configs) - len(left)} finished before, to {folder}",
        flush=True,
    )
    launcher = sweep.hydra.hydra.launcher
    if not left or not launcher._target_.endswith(".LocalLauncher"):
        return left
    jobs = min(launcher.jobs or default_jobs(), len(left))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_seconds, config | share(config, jobs)) for config in left]
        try:
            seconds = [future.result() for future in futures]
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    total = as_text(max(sum(seconds) / jobs, *seconds))
    print(f"{jobs} at a time; estimated time: up to {total} (the same command, given again, goes on)", flush=True)
    order = sorted(range(len(left)), key=seconds.__getitem__, reverse=True)
    return [left[index] for index in order]


def _print_table(table: str, cell: Mapping[str, Any]) -> None:
    runs = Path(cell["output_dir"])
    runs.mkdir(parents=True, exist_ok=True)
    page = runs / f"{table}-{cell['budget']['name']}.md"
    text = RENDERERS["md"](build_grids(table, load_runs(table, [runs]), cell["budget"]["name"]))
    write_atomically(page, text.encode())
    print(f"\n{text}\nThis table as a page: {page}")
    print(f"Each run's result.json, resolved config.yaml and effective_parameters.png: {runs}/<run_id>/")


if __name__ == "__main__":
    sys.exit(main())
