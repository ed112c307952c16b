"""The page: what it shows of tables and runs, and its template filled in."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ellarepro.inspection import ablation_lines, heading, learned_lines, notes
from ellarepro.report.cards import Card
from ellarepro.report.charts import Chart, run_charts
from ellarepro.results import RunResult, flatten
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables import SPECS, build_grids
from ellarepro.tables.cells import Cell, Grid

LESS, MORE = "▽", "▲"


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run."""

    result: RunResult
    title: str
    charts: Sequence[Chart]
    learned: Sequence[Sequence[str]]
    ablation: Sequence[Sequence[str]]
    notes: Sequence[str]
    facts: dict[str, str]
    config: dict[str, object]


def render_page(runs: Sequence[RunResult], cards: Sequence[Card] = (), noether: Sequence[Card] = ()) -> str:
    """Return the page of `runs` as HTML that needs nothing else: the tables, and each run and card by itself."""
    environment = Environment(loader=PackageLoader("ellarepro.report"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"verdict": verdict, "difference": difference, "coverage": coverage}
    environment.filters |= {"in_script": _in_script, "breakable": _breakable}
    environment.globals |= {"layer_title": layer_title}
    return environment.get_template("page.html").render(
        grids={table: build_grids(table, runs) for table in SPECS},
        runs=[_view(run) for run in runs],
        cards={"GPUs": cards, "Noether's razor": noether},
        plotly=Markup(get_plotlyjs()),
    )


def verdict(cell: Cell) -> str:
    """Return how `cell` stands beside the published: "missing", "better", "worse", "equal", or "" if it cannot."""
    if cell.mean is None:
        return "missing"
    if cell.difference is None or not cell.better:
        return ""
    lead = round(cell.difference, cell.digits) * cell.better
    return "equal" if not lead else "better" if lead > 0 else "worse"


def difference(cell: Cell) -> str:
    """Return our number less the published one, with a mark for more and less; "" where one of them is missing."""
    if cell.difference is None or cell.kind == "count":
        return ""
    number = round(cell.difference, cell.digits)
    mark = MORE if number > 0 else LESS if number < 0 else "="
    return f"{mark} {abs(number):.{cell.digits}f}"


def coverage(grid: Grid) -> str:
    """Return how many of the published numbers have ours beside them, or that there are none."""
    if not grid.coverage[1]:
        return "no numbers were published"
    return "{} of {} published numbers have been run".format(*grid.coverage)


def _in_script(text: str) -> Markup:
    """`text`, JSON, so that nothing in it ends the script that holds it."""
    return Markup(text.replace("<", "\\u003c"))


def _breakable(name: str) -> Markup:
    """`name`, which a narrow screen may break after underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _view(result: RunResult) -> RunView:
    return RunView(
        result,
        heading(result),
        run_charts(result),
        learned_lines(result),
        ablation_lines(result),
        notes(result),
        _facts(result),
        dict(flatten(result.config)),
    )


def _facts(result: RunResult) -> dict[str, str]:
    """Where the numbers come from, and what else was measured; what a result does not know is left out."""
    minutes, seconds = divmod(round(result.wall_seconds), 60)
    memory = [f"{bytes_ / 1e9:.2f} GB ({where})" for where, bytes_ in result.peak_memory.items()]
    error, linearised = result.expected_calibration_error, result.linearised or {}
    known = {
        "hardware": f"{result.hardware or 'not recorded'} ({result.device})",
        "wall time": f"{minutes} min {seconds} s",
        "peak memory": ", ".join(memory),
        "code": result.git_commit,
        "code changed on the way": ", ".join(result.code_changes),
        "packages": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "data fingerprint": result.data_fingerprint,
        "calibration error": "" if error is None else f"{error:.4f}",
        "linearised predictive": ", ".join(f"{name} {value:.4f}" for name, value in linearised.items()),
        "eigendecompositions and fits": ", ".join(f"{what}: {times}" for what, times in result.fallbacks.items()),
    }
    return {name: text for name, text in known.items() if text}
