"""From runs to a table's editions, filled in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ellarepro.results import RunResult, read_results, short_commit
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.cells import Cell, Grid, Row
from ellarepro.tables.chance import CHANCE_SHARE, stayed_at_chance
from ellarepro.tables.editions import Edition, editions, setting
from ellarepro.tables.orderings import summary
from ellarepro.tables.spec import MEASURED, MEASURES, Line, Spec, published

RUNS = Path("results/runs")
WORDS: dict[str, Callable[[str], str]] = {
    "budget.name": "budget {}".format,
    "dataset.name": str,
    "dataset.source": str,
    "dataset.augment": lambda value: "augmented" if value == "True" else "not augmented",
}
"""How the value of a key is said; others are said with the key."""


def build_grids(
    table: str, runs: Iterable[RunResult], budget: str | None = None, measures: str = "published"
) -> list[Grid]:
    """Return the editions of `table` that `runs` make up (of one budget if given); one empty grid if there are none.

    They are in the order of their budgets' names and, of one budget, the most complete comes first. `measures`, a key
    of `MEASURED`, says what they show.
    """
    # Runs that tune have no test scores.
    spec, runs = MEASURED[measures][table], [run for run in runs if run.tested_on == "test"]
    rows, columns = spec.expand(spec.rows, runs).values(), spec.columns.values()
    wanted = [run for run in runs if any(row.takes(run) for row in rows) and any(c.takes(run) for c in columns)]
    found = editions([run for run in wanted if budget in (None, run.budget)], spec.spans_datasets, spec.spans)
    if not found:
        others = sorted({run.budget for run in wanted})
        note = f"nothing has been run{f' with budget {budget}' if budget else ''}"
        note += f"; there are runs with budget {', '.join(others)}" if others else ""
        return [_grid(table, spec, Edition([]), note)]
    grids = [_grid(table, spec, edition, _protocol(edition.runs)) for edition in found]
    return sorted(grids, key=lambda grid: (grid.budget, -grid.coverage[0]))


def _heading(edition: Edition, keys: Sequence[str], differences: Mapping[str, str]) -> str:
    """Return what the runs of `edition` have under `keys`, and the `differences` that tell it from other editions."""
    if not edition.runs:
        return "nothing run"
    told = {key: setting(edition.runs[0], key) for key in keys} | dict(differences)
    return ", ".join(WORDS.get(key, f"{key} {{}}".format)(value) for key, value in told.items())


def _grid(table: str, spec: Spec, edition: Edition, note: str) -> Grid:
    heading, columns = _heading(edition, spec.heading, edition.differences), spec.columns.items()
    grid = Grid(
        table=table,
        title=f"{spec.caption} ({heading})",
        headers=[*spec.headers, *(line.labels[0] for _, line in columns)],
        rows=[
            Row(line.labels, [_cell((table, row, column), line, across, edition.runs) for column, across in columns])
            for row, line in spec.expand(spec.rows, edition.runs).items()
        ],
        notes=[
            "a cell is ours [published]; ± is the sample standard deviation over n seeds; – has not been run",
            note,
            _limits(edition.runs),
            *_bounds(edition.runs),
        ],
        budget=_several((run.budget for run in edition.runs), ", "),
        source=_several((setting(run, "dataset.source") for run in edition.runs), ", "),
        edition=heading,
        setting=_heading(edition, spec.heading, {}),
    )
    cells = [cell for row in grid.rows for cell in row.cells]
    protocol = f"published: {published()[table]['protocol']}" if any(cell.published for cell in cells) else ""
    notes = [*grid.notes, protocol, _sampling(cells), _left_out(cells), summary(grid)]
    return replace(grid, notes=list(filter(None, notes)))


def _sampling(cells: Sequence[Cell]) -> str:
    """What the numbers in brackets are; nothing where there are none."""
    sizes = _several(f"{cell.test_size:,}" for cell in cells if cell.sampling_error is not None)
    what = "the sampling error of an accuracy: one standard error, binomial, in points"
    return f"(…) is {what}; {sizes} test samples" if sizes else ""


def _cell(place: tuple[str, str, str], line: Line, across: Line, runs: Sequence[RunResult]) -> Cell:
    table, row, column = place
    name = line.measure or across.measure
    measure = MEASURES[name]
    taken = [run for run in runs if line.takes(run) and across.takes(run)]
    learned = [run for run in taken if not stayed_at_chance(run)] or taken
    readings = {run.run_id: measure.read(run) for run in learned}
    sizes = {run.test_size for run in learned} if measure.sampled else set()
    outcomes = [run.test_correct for run in learned] if measure.sampled else []
    number = published()[table]["rows"].get(line.published or row, {}).get(column, [])
    return Cell(
        row=row,
        column=column,
        measure=name,
        runs=[values for values in readings.values() if values],
        published=number if isinstance(number, list) else [number],
        digits=measure.digits,
        kind=measure.kind,
        better=measure.better,
        run_ids=[run_id for run_id, values in readings.items() if values],
        left_out=[run.run_id for run in taken if run.run_id not in readings],
        test_size=sizes.pop() if len(sizes) == 1 else None,
        outcomes=outcomes if all(outcomes) else [],
        data=_several(run.data_fingerprint for run in learned),
    )


def _limits(runs: Sequence[RunResult]) -> str:
    """Which networks trained with which limit of their steps; nothing where all have the same."""
    found: dict[str, set[str]] = {}
    for run in runs:
        found.setdefault(setting(run, "optimiser.kl_clip"), set()).add(layer_title(run.layer))
    said = "; ".join(f"{value} for {', '.join(sorted(layers))}" for value, layers in sorted(found.items()))
    return f"optimiser.kl_clip: {said}" if len(found) > 1 else ""


def _bounds(runs: Sequence[RunResult]) -> list[str]:
    """What the exact curvature makes of the evidence of `runs`, where they have bounds of it; one line or none."""
    found = [f"{r.dataset} {layer_title(r.layer)} {r.seed}{r.bounds_text()}" for r in runs if r.neg_log_marglik_bounds]
    return [f"-log marginal likelihood, by run: {'; '.join(found)}"] if found else []


def _left_out(cells: Sequence[Cell]) -> str:
    """Say which runs are in no mean; nothing where all are."""
    names = sorted({run_id for cell in cells for run_id in cell.left_out})
    if not names:
        return ""
    return f"in no mean, as their training loss never fell below {CHANCE_SHARE} of guessing's: {', '.join(names)}"


def _protocol(runs: Sequence[RunResult]) -> str:
    """Return in one line what `runs` have in common and how they spread: size, data, epochs, seeds, code."""

    def of(key: str) -> str:
        return _several(WORDS.get(key, str)(setting(run, key)) for run in runs)

    seeds = sorted({run.seed for run in runs})
    ours = [
        f"ours, {of('budget.name')}: alpha {of('alpha')}",
        f"{_several(f'{run.train_size:,}' for run in runs)} training images "
        f"({of('dataset.source')}, {of('dataset.augment')})",
        f"{_several(f'{run.epochs:,}' for run in runs)} epochs",
        f"optimiser {of('optimiser.name')}",
    ]
    repeated = [
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})",
        f"code {_several(short_commit(run.git_commit) for run in runs)}",
    ]
    return ". ".join(filter(None, ["; ".join(ours), _fit_sizes(runs), "; ".join(repeated)]))


def _fit_sizes(runs: Sequence[RunResult]) -> str:
    """What the curvature was taken from, and by which layers where they differ; nothing where all took all data."""
    layers: dict[str, list[str]] = {}
    for run in runs:
        if run.objective == "laplace":
            size = run.config["objective"]["fit_size"]
            layers.setdefault("all" if size is None else f"{size:,}", []).append(layer_title(run.layer))
    if layers.keys() <= {"all"}:
        return ""
    whose = [f"{size} ({', '.join(dict.fromkeys(names))})" for size, names in layers.items()]
    return f"Curvature from {', '.join(whose if len(layers) > 1 else layers)} images"


def _several(values: Iterable[str], joint: str = " or ") -> str:
    return joint.join(sorted(set(values)))


def load_runs(table: str, folders: Sequence[Path]) -> list[RunResult]:
    """Return the runs below `folders`, each once; without folders, below `results/runs` and `results/<table>`.

    Raises:
        UserError: a named folder is missing or a result in it is damaged.
    """
    if not folders:
        folders = [folder for folder in (RUNS, RUNS.with_name(table)) if folder.is_dir()]
    return unique_runs(folders)


def unique_runs(folders: Sequence[Path]) -> list[RunResult]:
    """Return the runs below `folders`, each once.

    Raises:
        UserError: a folder is missing or a result in it is damaged.
    """
    found: dict[tuple[str, str], RunResult] = {}
    for run in (run for folder in folders for run in read_results(folder)):
        found.setdefault((run.run_id, run.data_fingerprint), run)
    return list(found.values())
