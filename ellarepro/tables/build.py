"""From runs to a table's editions, filled in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ellarepro.results import RunResult, flatten, read_results
from ellarepro.tables.cells import Cell, Grid, Row
from ellarepro.tables.editions import SETTINGS, Edition, augmentation, editions, source
from ellarepro.tables.spec import MEASURES, SPECS, Line, published

RUNS = Path("results/runs")


def build_grids(table: str, runs: Iterable[RunResult], budget: str | None = None) -> list[Grid]:
    """Return the editions of `table` that `runs` make up (of one budget if given); one empty grid if there are none."""
    spec = SPECS[table]
    runs = list(runs)
    rows, columns = spec.expand(spec.rows, runs).values(), spec.columns.values()
    wanted = [run for run in runs if any(row.takes(run) for row in rows) and any(c.takes(run) for c in columns)]
    chosen = [run for run in wanted if budget in (None, run.budget)]
    found = editions(chosen, spec.apart)
    if not found:
        others = sorted({run.budget for run in wanted})
        note = f"nothing has been run{f' with budget {budget}' if budget else ''}"
        note += f"; there are runs with budget {', '.join(others)}" if others else ""
        return [_grid(table, Edition({"budget": budget or "none"}, []), "nothing run", note)]
    return [_grid(table, edition, _heading(edition, found), _protocol(edition.runs)) for edition in found]


def _heading(edition: Edition, among: Sequence[Edition]) -> str:
    """Return what tells `edition` from the others; its scale, which a note gives in any case, only where it must."""
    same_budget = [other.settings for other in among if other.settings["budget"] == edition.settings["budget"]]
    several_scales = len({settings.get("scale") for settings in same_budget}) > 1
    return _describe({k: v for k, v in edition.settings.items() if k != "scale" or several_scales})


def _describe(settings: Mapping[str, str]) -> str:
    return ", ".join(
        value if name in SETTINGS and name != "budget" else f"{name} {value}" for name, value in settings.items()
    )


def _grid(table: str, edition: Edition, heading: str, note: str) -> Grid:
    spec = SPECS[table]
    return Grid(
        table=table,
        title=f"{spec.caption} ({heading})",
        headers=[*spec.headers, *(line.labels[0] for line in spec.columns.values())],
        rows=[
            Row(line.labels, [_cell(table, row, column, line, edition.runs) for column in spec.columns])
            for row, line in spec.expand(spec.rows, edition.runs).items()
        ],
        notes=[
            "a cell is ours [published]; ± is the sample standard deviation over n seeds; – has not been run",
            note,
            f"published: {published()[table]['protocol']}",
        ],
        budget=edition.settings["budget"],
        source=", ".join(sorted({source(run) for run in edition.runs})),
        edition=_describe(edition.settings),
    )


def _cell(table: str, row: str, column: str, line: Line, runs: Sequence[RunResult]) -> Cell:
    across = SPECS[table].columns[column]
    measure = MEASURES[line.measure or across.measure or ""]
    readings = [measure.read(run) for run in runs if line.takes(run) and across.takes(run)]
    number = published()[table]["rows"].get(line.published or row, {}).get(column, [])
    return Cell(
        row=row,
        column=column,
        runs=[values for values in readings if values and None not in values],
        published=number if isinstance(number, list) else [number],
        digits=measure.digits,
        kind=measure.kind,
    )


def _protocol(runs: Sequence[RunResult]) -> str:
    """Return in one line what `runs` have in common and how they spread: size, data, epochs, seeds, code."""

    def several(values: Iterable[Any], form: Callable[[Any], str] = str) -> str:
        return " or ".join(form(value) for value in sorted(set(values)))

    configs = [dict(flatten(run.config)) for run in runs]
    seeds = sorted({run.seed for run in runs})
    fit_sizes = {config.get("objective.fit_size") for config in configs} - {None}
    parts = [
        f"alpha {several(config.get('alpha', 'unknown') for config in configs)}",
        f"{several((run.train_size for run in runs), '{:,}'.format)} training images "
        f"({several(map(source, runs))}, {several(map(augmentation, runs))})",
        f"{several((run.epochs for run in runs), '{:,}'.format)} epochs",
        f"optimiser {several(config.get('optimiser.name', 'unknown') for config in configs)}",
        f"curvature from {several(fit_sizes)} images" if fit_sizes else "",
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})",
        f"code {several((run.git_commit for run in runs), _short_commit)}",
    ]
    return f"ours, budget {several(run.budget for run in runs)}: {'; '.join(filter(None, parts))}"


def _short_commit(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return f"{name[:8]}{dash}{dirty}"


def load_runs(table: str, folders: Sequence[Path]) -> list[RunResult]:
    """Return the runs below `folders`, each once; without folders, below `results/runs` and `results/<table>`.

    Raises:
        UserError: a named folder is missing or a result in it is damaged.
    """
    if not folders:
        folders = [folder for folder in (RUNS, RUNS.with_name(table)) if folder.is_dir()]
    found: dict[tuple[str, str], RunResult] = {}
    for run in (run for folder in folders for run in read_results(folder)):
        found.setdefault((run.run_id, run.data_fingerprint), run)
    return list(found.values())
