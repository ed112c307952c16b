"""The three tables from committed runs alone, with what each run learned, what it took and where it came from.

    python -m scripts.results_page

Reads results/table1 to table3 and runs nothing; writes results/tables.md and the tables of results/README.md.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ellarepro.errors import command
from ellarepro.inspection import untrained_shares
from ellarepro.inspection.rendering import MISSING
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.results import RunResult, read_results, short_commit
from ellarepro.resume.files import write_atomically
from ellarepro.symmetry.labels import layer_title, path_order, path_title
from ellarepro.symmetry.shares import has_choice
from ellarepro.tables import RENDERERS, SPECS, build_grids, plain
from ellarepro.tables.chance import stayed_at_chance
from ellarepro.tables.markdown import markdown_table, mean_cell, sections

RESULTS = Path(__file__).parents[1] / "results"
ACCURACY = "test acc. % (sampling error)"
WITHOUT = ("nll_change", "nll_change_constant")
HEADERS = ("run", "seed", ACCURACY, "test NLL", "calibration", "-marglik", "minutes", "GB", "hardware", "code")


@command("results_page")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    style = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser("python -m scripts.results_page", None, __doc__, formatter_class=style).parse_args(
        arguments
    )
    reading = RESULTS / "README.md"
    for page, text in ((RESULTS / "tables.md", text_of(RESULTS)), (reading, quoted(reading.read_text(), RESULTS))):
        write_atomically(page, text.encode())
        print(page)
    return 0


def text_of(results: Path) -> str:
    """The page of the runs in `results`/<table>, table by table."""
    return sections(
        "# Tables 1 to 3, run by run",
        "Made by `python -m scripts.results_page` from the committed `result.json` files alone. [README.md](README.md) "
        "says what they show. The name of a run leads to its result, with configuration and versions. "
        "`make verify RUN=…` repeats it.",
        *(section for table in SPECS if (results / table).is_dir() for section in _table(results / table)),
    )


def quoted(page: str, results: Path) -> str:
    """Return `page` with the tables below its marks made anew: `<!-- table1 cpu -->`, `<!-- table1 cpu scores -->`.

    Rows of which nothing has been run are left out.
    """

    def made(mark: re.Match[str]) -> str:
        table, budget, scores = mark.group("table", "budget", "scores")
        runs = read_results(results / table)
        (grid,) = build_grids(table, runs, budget)
        grid = replace(grid, rows=[row for row in grid.rows if any(cell.runs for cell in row.cells)])
        return f"{mark['mark']}\n\n{_scores(runs, budget) if scores else plain(grid)}\n"

    mark = r"(?P<mark><!-- (?P<table>table\d) (?P<budget>\w+)(?P<scores> scores)? -->)\n(\n(\|.*\n)+)?"
    return re.sub(mark, made, page)


def _scores(runs: Sequence[RunResult], budget: str) -> str:
    """NLL and evidence of the cells of a table of accuracies."""
    cells: dict[tuple[str, str], dict[str, list[RunResult]]] = {}
    for run in (run for run in runs if run.budget == budget):
        cells.setdefault((run.dataset, layer_title(run.layer)), {}).setdefault(run.objective, []).append(run)
    lines = [["task", "layer", "MAP NLL ↓", "Laplace NLL ↓", "Laplace -marglik ↓"]]
    for labels, cell in cells.items():
        numbers = [[run.test_nll for run in cell.get(name, [])] for name in ("map", "laplace")]
        numbers.append([run.neg_log_marglik_per_datum for run in cell["laplace"]])
        known = [[number for number in own if number is not None] for own in numbers]
        lines.append([*labels, *(mean_cell(own, ".3f", MISSING) for own in known)])
    return markdown_table(lines, labels=2)


def _table(folder: Path) -> Iterator[str]:
    runs = read_results(folder)
    for budget in sorted({run.budget for run in runs}):
        yield from _of_one_budget(folder.name, [run for run in runs if run.budget == budget])


def _of_one_budget(table: str, runs: Sequence[RunResult]) -> Iterator[str]:
    yield RENDERERS["md"](build_grids(table, runs))
    shares = [run for run in runs if run.relative_effective_parameters and has_choice(run.tensors)]
    if learned := [run for run in shares if not stayed_at_chance(run)]:
        yield "### Learned: relative effective numbers of parameters, %; test NLL without the path; by a constant"
        yield markdown_table(list(_learned(learned)), labels=2)
    yield "### Runs: nats a datum, expected calibration error, wall time, peak memory"
    links = (f"[{_name(run)}, {run.objective}]({table}/{run.run_id}/result.json)" for run in runs)
    yield markdown_table([HEADERS, *([link, *_facts(run)] for link, run in zip(links, runs, strict=True))], labels=1)


def _learned(runs: Sequence[RunResult]) -> Iterator[list[str]]:
    layers = list(runs[0].relative_effective_parameters)
    yield ["run", "path", "untrained mean", "mean", *layers, "NLL without"]
    for run in runs:
        shares = [run.relative_effective_parameters[layer] for layer in layers]
        untrained, _ = untrained_shares(run)
        for path in sorted(shares[0], key=path_order):
            own = [share[path] for share in shares]
            use = run.path_use.get(EVERYWHERE, {}).get(path, {})
            yield [
                f"{_name(run)}, {run.seed}",
                path_title(path),
                f"{fmean(share[path] for share in untrained.values()):.0f}" if untrained else MISSING,
                *(f"{share:.0f}" for share in [fmean(own), *own]),
                "; ".join(f"{use[change]:+.3f}" for change in WITHOUT if change in use) or MISSING,
            ]


def _name(run: RunResult) -> str:
    return f"{run.dataset}, {layer_title(run.layer)}, {run.prior}"


def _facts(run: RunResult) -> list[str]:
    optional = (run.test_nll, run.expected_calibration_error, run.neg_log_marglik_per_datum)
    return [
        str(run.seed),
        run.accuracy_text(),
        *(MISSING if number is None else f"{number:.3f}" for number in optional),
        f"{run.wall_seconds / 60:.1f}",
        f"{max(run.peak_memory.values()) / 1e9:.1f}" if run.peak_memory else MISSING,
        run.hardware or run.device,
        short_commit(run.git_commit),
    ]


if __name__ == "__main__":
    sys.exit(main())
