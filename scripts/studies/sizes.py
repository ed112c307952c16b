"""Where does Laplace pay? Five networks on CIFAR-10 as it is, MAP beside Laplace, by training size.

The runs are those of configs/experiment/sizes/, the smallest first; `dataset=cifar10_jpeg dataset.root=PATH` takes the
JPEG copy.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title, path_colour
from ellarepro.tables.markdown import markdown_table, mean_cell
from scripts.studies.study import Measure, Study, experiments, known

MEASURES: dict[str, tuple[Measure, int]] = {
    "test accuracy, %": (lambda result: 100 * result.test_accuracy, 1),
    "test NLL, nats": (lambda result: result.test_nll, 2),
    "calibration error, %": (lambda result: 100 * result.expected_calibration_error, 1),
    "-evidence, nats a datum": (lambda result: result.neg_log_marglik_per_datum, 2),
}
"""Name to what it is of a run and its digits."""
COLOURS = {
    "conv": path_colour("conv"),
    "f_fc": path_colour("f_fc"),
    "f_fc_conv": "black",
    "s_fc_s_conv": "#CC79A7",
    "f_fc_conv_gconv": "#56B4E9",
}
"""By network, of Okabe and Ito's colours."""
OBJECTIVES = {"map": ("MAP", "--"), "laplace": ("Laplace", "-")}


def body(results: Sequence[RunResult]) -> Iterator[str]:
    """A table a network."""
    yield f"Images of {', '.join(sorted({result.dataset for result in results}))} as they are."
    for layer in _layers(results):
        yield f"## {layer_title(layer)}"
        lines = _lines([result for result in results if result.layer == layer])
        yield markdown_table(list(lines), labels=1)


def draw(results: Sequence[RunResult]) -> Figure:
    """The figure: a panel a measure over training size, a colour a network, MAP dashed."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    sizes = sorted({result.train_size for result in results})
    for axes, (name, (of, _)) in zip(grid.flat, MEASURES.items(), strict=True):
        for layer, objective in ((layer, objective) for layer in _layers(results) for objective in OBJECTIVES):
            points = [(size, _values(results, layer, objective, size, of)) for size in sizes]
            points = [(size, fmean(values)) for size, values in points if values]
            title, style = OBJECTIVES[objective]
            look = {"color": COLOURS[layer], "linestyle": style, "marker": "o" if style == "-" else "x"}
            if points:
                axes.plot(*zip(*points, strict=True), label=f"{layer_title(layer)}, {title}", **look)
        axes.set(title=name, xscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        if "NLL" in name:
            axes.set_yscale("log")
            # Less than a decade: without these no line of the axis would have its number.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    for axes in grid[-1]:
        axes.set_xlabel("training images")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _layers(results: Sequence[RunResult]) -> list[str]:
    return list(dict.fromkeys(result.layer for result in results))


def _values(results: Sequence[RunResult], layer: str, objective: str, size: int, of: Measure) -> list[float]:
    return known((r for r in results if (r.layer, r.objective, r.train_size) == (layer, objective, size)), of)


def _lines(results: Sequence[RunResult]) -> Iterator[list[str]]:
    columns = [(measure, objective) for measure in MEASURES for objective in OBJECTIVES]
    columns.remove(("-evidence, nats a datum", "map"))
    yield ["images", *(f"{OBJECTIVES[objective][0]}: {measure}" for measure, objective in columns)]
    for size in sorted({result.train_size for result in results}):
        cells = []
        for measure, objective in columns:
            of, digits = MEASURES[measure]
            cells.append(mean_cell(_values(results, results[0].layer, objective, size, of), f".{digits}f", "not run"))
        yield [f"{size:,}", *cells]


STUDY = Study(
    name="sizes",
    question="Where does Laplace pay?",
    about="Mean over seeds, and standard deviation.",
    body=body,
    draw=draw,
    sweeps=(experiments("sizes"),),
    order=lambda config: (config.train_size or 0, config.seed),
)
