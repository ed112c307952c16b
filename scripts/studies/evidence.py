"""Does the evidence rank runs as the test does? All pairs of committed Laplace runs on the same task, by what differs.

It runs nothing: it reads what tables and other studies have run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, cycle, pairwise
from math import ceil, inf

from matplotlib.figure import Figure

from ellarepro.results import RunResult, counted
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.chance import stayed_at_chance
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
COUNTED = ["pairs", "of runs", "as test NLL", "as test accuracy"]
GAPS = (0.03, 0.1, 0.3, inf)
"""Upper ends, nats, of how far apart two seeds' test NLLs are."""
Pair = tuple[RunResult, RunResult]


def compared(runs: Iterable[RunResult]) -> list[RunResult]:
    """Those of `runs` that have an evidence, of networks that do not only guess."""
    return [run for run in runs if run.neg_log_marglik_per_datum is not None and not stayed_at_chance(run)]


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
    head = ["data set", "what differs", *COUNTED]
    yield markdown_table([head, *lines, *_lines("all", by_task.values())], labels=2)
    pairs = _pairs(by_task.values())
    if seeds := pairs.get(SEEDS):
        yield "Pairs of seeds by how far apart their test NLLs are, in nats. By chance, half of them would agree:"
        yield markdown_table([["apart", *COUNTED], *_by_gap(seeds)], labels=1)
    if others := Counter(_names(pair) for pair in pairs.get(LAYERS, ()) if not by_accuracy(pair)):
        yield "Pairs of layer types and priors that evidence and test accuracy order differently:"
        yield markdown_table([["between", "pairs"], *([names, str(n)] for names, n in others.most_common())], labels=1)
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


def by_nll(pair: Pair) -> bool:
    """Whether the run of the better evidence has the lower test NLL."""
    return same_order(*pair, [run.test_nll for run in pair])


def by_accuracy(pair: Pair) -> bool:
    """Whether the run of the better evidence has the higher test accuracy."""
    return same_order(*pair, [-run.test_accuracy for run in pair])


def _pairs(groups: Iterable[Sequence[RunResult]]) -> dict[str, list[Pair]]:
    """The pairs within each of `groups` by what they differ in, in the order of `KINDS`."""
    found: dict[str, list[Pair]] = {name: [] for name in KINDS}
    for pair in (pair for group in groups for pair in combinations(group, 2)):
        if differs := kind(*pair):
            found[differs].append(pair)
    return {name: pairs for name, pairs in found.items() if pairs}


def _lines(name: str, groups: Iterable[Sequence[RunResult]]) -> Iterator[list[str]]:
    for differs, pairs in _pairs(groups).items():
        yield [name, differs, *_counts(pairs)]


def _by_gap(pairs: Sequence[Pair]) -> Iterator[list[str]]:
    """How many of `pairs` agree, by how far apart their test NLLs are."""
    for low, high in pairwise((0.0, *GAPS)):
        own = [pair for pair in pairs if low <= abs(pair[0].test_nll - pair[1].test_nll) < high]
        if own:
            yield [f"{low:g} to {high:g}" if high < inf else f"{low:g} or more", *_counts(own)]


def _counts(pairs: Sequence[Pair]) -> list[str]:
    """As `COUNTED`: how many pairs, how many runs they share, and in how many evidence and test agree."""
    runs = {run.run_id for pair in pairs for run in pair}
    return [str(number) for number in (len(pairs), len(runs), sum(map(by_nll, pairs)), sum(map(by_accuracy, pairs)))]


def _names(pair: Pair) -> str:
    return " and ".join(sorted(map(_name, pair)))


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
    about="Of those under Laplace that learned, all pairs on one data set at one budget are compared. The table "
    "counts in how many the run of the better evidence (a datum, with its final precisions) has the lower test NLL "
    "and the higher test accuracy. By chance, half would. Pairs share runs and are not independent.",
    body=body,
    draw=draw,
    elsewhere=FOLDERS,
    select=compared,
)
