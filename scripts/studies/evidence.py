"""Does the evidence rank runs as the test does? All pairs of committed Laplace runs on the same task, by what differs.

It runs nothing: it reads what tables and other studies have run.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, cycle
from math import ceil

from matplotlib.figure import Figure

from ellarepro.results import RunResult, counted
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.guessing import only_guesses
from ellarepro.tables.markdown import markdown_table
from scripts.studies.study import Study

FOLDERS = (
    *("table1", "table2", "table3", "sizes/runs", "symmetry/runs"),
    *("budgets/runs", "ascent/cifar10_jpeg", "ascent/start"),
)
SEEDS, LAYERS, FIT_SIZES, SIZES, SETTING, SETTINGS = KINDS = (
    "seeds",
    "layer types and priors",
    "layer types, fitted on different numbers of images",
    "training sizes",
    "one setting of width, curvature, start or optimisation",
    "several of these settings",
)
"""What two runs can differ in."""
CHOSEN = ("layer.", "prior.", "anchors.", "group", "alpha")
"""Keys that come with a layer type and its prior."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's."""
MARKERS = "osD^v<>PX*"
HEAD = ["data set", "what differs", "pairs", "as test NLL", "as test accuracy"]


def compared(runs: Iterable[RunResult]) -> list[RunResult]:
    """Those of `runs` that have an evidence, of networks that do not only guess."""
    return [run for run in runs if run.neg_log_marglik_per_datum is not None and not only_guesses(run)]


def kind(one: RunResult, other: RunResult) -> str | None:
    """What two runs on one task differ in, of `KINDS`; None where that is more than one of them, or nothing."""
    settings, others = ({**counted(run.config), "train_size": run.train_size} for run in (one, other))
    apart = {key for key in settings.keys() | others.keys() if settings.get(key) != others.get(key)}
    if apart in ({"seed"}, {"train_size"}):
        return SEEDS if apart == {"seed"} else SIZES
    if not apart or apart & {"seed", "train_size"}:
        return None
    layers = {key for key in apart if key.startswith(CHOSEN)}
    if layers <= {"alpha"}:
        return SETTING if len(apart) == 1 else SETTINGS
    return {frozenset(): LAYERS, frozenset({"objective.fit_size"}): FIT_SIZES}.get(frozenset(apart - layers))


def same_order(one: RunResult, other: RunResult, test: Sequence[float]) -> bool:
    """Whether the run of the better evidence has the lower of the two numbers in `test`; not where they are equal."""
    evidence = [run.neg_log_marglik_per_datum for run in (one, other)]
    return (evidence[0] - evidence[1]) * (test[0] - test[1]) > 0


def body(runs: Sequence[RunResult]) -> Iterator[str]:
    """In how many pairs evidence and test agree, by data set and by what differs."""
    by_task = tasks(runs)
    lines = [line for name, task in by_task.items() for line in _lines(name, [task])]
    yield markdown_table([HEAD, *lines, *_lines("all", by_task.values())], labels=2)
    yield "![Evidence and test NLL, a panel a data set](study.png)"


def tasks(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """The runs by data set, as the table calls it."""
    found: dict[str, list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: (run.budget, run.dataset)):
        augmented = ", augmented" if run.config["dataset"].get("augment") else ""
        strength = run.config["dataset"].get("strength")
        part = f", {strength:.0%} moved" if strength is not None else ""
        found.setdefault(f"{run.dataset}{augmented}{part} ({run.budget})", []).append(run)
    return found


def _lines(name: str, groups: Iterable[Sequence[RunResult]]) -> Iterator[list[str]]:
    pairs = [(pair, kind(*pair)) for group in groups for pair in combinations(group, 2)]
    for differs in KINDS:
        own = [pair for pair, what in pairs if what == differs]
        if own:
            nll = sum(same_order(*pair, [run.test_nll for run in pair]) for pair in own)
            accuracy = sum(same_order(*pair, [-run.test_accuracy for run in pair]) for pair in own)
            yield [name, differs, str(len(own)), str(nll), str(accuracy)]


def draw(runs: Sequence[RunResult]) -> Figure:
    """The figure: a panel a data set of two runs or more, a dot a run, colour and marker by layer type and prior."""
    panels = {title: task for title, task in tasks(runs).items() if len(task) > 1}
    columns = 3
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    names = sorted({_name(run) for task in panels.values() for run in task})
    looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    for axes, (title, task) in zip(grid.flat, panels.items(), strict=False):
        for name in names:
            own = [run for run in task if _name(run) == name]
            colour, marker = looks[name]
            axes.scatter(
                [run.neg_log_marglik_per_datum for run in own],
                [run.test_nll for run in own],
                color=colour,
                marker=marker,
                label=name,
            )
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="-evidence, nats a datum", ylabel="test NLL, nats")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _name(run: RunResult) -> str:
    return layer_title(run.layer) + (f" ({run.prior})" if run.prior != "theta" else "")


STUDY = Study(
    name="evidence",
    question="Does the evidence rank as the test does?",
    about="Those under Laplace that learned: all pairs on one data set at one budget by what they differ in, and in "
    "how many of them the run of the better evidence (a datum, with its final precisions) has the lower test NLL and "
    "the higher test accuracy. By chance, half would.",
    body=body,
    draw=draw,
    elsewhere=FOLDERS,
    select=compared,
)
