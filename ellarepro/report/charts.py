"""The charts of a run, as Plotly figures: they show values under the pointer, and fit a phone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from plotly import graph_objects
from plotly.basedatatypes import BaseTraceType

from ellarepro.inspection import has_curvature, shown_curves, untrained_shares
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import (
    EVIDENCE_COLOUR,
    TRAINING_COLOUR,
    UNTRAINED_COLOUR,
    UNTRAINED_LABEL,
    path_colour,
    path_marker,
    path_order,
    path_shade,
    path_title,
)
from ellarepro.symmetry.shares import ByPath, boundaries

SYMBOLS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "p": "pentagon"},
    **{"<": "triangle-left", ">": "triangle-right", "P": "cross", "X": "x", "d": "diamond-tall", "*": "star"},
}
"""Plotly's names of matplotlib's markers."""
NO_CURVATURE = "no curvature was fitted"
TEST = {"mode": "markers", "marker": {"symbol": "star", "size": 11, "color": EVIDENCE_COLOUR}}


@dataclass(frozen=True)
class Chart:
    """A chart: its title, what a reader must know of it, and the figure as JSON; without it `note` stands alone."""

    title: str
    note: str
    figure: str = ""


def run_charts(result: RunResult) -> list[Chart]:
    """Return the charts of `result`: evidence and NLL, accuracy, learned ranges or noise, precisions, shares, use."""
    by_path: tuple[Callable[[RunResult], Chart], ...] = (_precisions, _relative, _raw)
    found = [_nats(result), _measured(result), *_hyperparameters(result), *(draw(result) for draw in by_path)]
    return [*found, *_uses(result)]


def _nats(result: RunResult) -> Chart:
    lines = [_training("training NLL", result, result.series("loss"))]
    if result.neg_log_marglik_per_datum is not None:
        fits = [*result.series("fit_epoch"), result.epochs]
        evidence = [*result.series("neg_log_marglik_per_datum"), result.neg_log_marglik_per_datum]
        label, line = "−log marginal likelihood", {"color": EVIDENCE_COLOUR}
        lines.append(graph_objects.Scatter(x=fits, y=evidence, name=label, mode="lines+markers", line=line))
    if result.test_nll is not None:
        lines.append(graph_objects.Scatter(x=[result.epochs], y=[result.test_nll], name="test NLL", **TEST))
    return _chart("evidence and NLL", "", lines, xaxis={"title": "epoch"}, yaxis=_from_zero("nats a datum"))


def _measured(result: RunResult) -> Chart:
    if result.test_accuracy is None:
        lines = [_training("training", result, result.series("train_rmse"))]
        lines.append(graph_objects.Scatter(x=[result.epochs], y=[result.test_rmse], name="test", **TEST))
        return _chart("RMSE", "", lines, xaxis={"title": "epoch"}, yaxis=_from_zero("unit of the targets"))
    lines = [_training("training", result, [100 * value for value in result.series("train_accuracy")])]
    lines.append(graph_objects.Scatter(x=[result.epochs], y=[100 * result.test_accuracy], name="test", **TEST))
    return _chart("accuracy", "", lines, xaxis={"title": "epoch"}, yaxis={"title": "%", "range": [0, 102]})


def _hyperparameters(result: RunResult) -> list[Chart]:
    """What the evidence learned beside the precisions; no chart of a run that learned nothing of it."""
    values = cast(dict[str, list[float]], result.history.get("hyperparameters") or {})
    fits = result.series("fit_epoch")
    lines = [graph_objects.Scatter(x=fits, y=own, name=name.replace("_", " ")) for name, own in values.items()]
    axis = {"title": "as docs/objectives.md has it"}
    return [_chart("hyperparameters", "", lines, xaxis={"title": "epoch"}, yaxis=axis)] if lines else []


def _training(name: str, result: RunResult, values: Sequence[float]) -> BaseTraceType:
    line = {"color": TRAINING_COLOUR}
    return graph_objects.Scatter(x=result.series("epoch"), y=values, name=name, mode="lines", line=line)


def _precisions(result: RunResult) -> Chart:
    shown = shown_curves(result)
    if not has_curvature(result):
        return Chart(shown.title, NO_CURVATURE)
    layers = list(dict.fromkeys(layer for layer, *_ in shown.curves))
    last = {path: layer for layer, path, _ in shown.curves}
    lines = []
    for (layer, path, part), values in shown.curves.items():
        shade = path_shade(path, layers.index(layer) / max(len(layers) - 1, 1))
        is_first = not any(key[:2] == (layer, path) and key[2] < part for key in shown.curves)
        lines.append(
            graph_objects.Scatter(
                x=result.series("fit_epoch"),
                y=values,
                name=path_title(path),
                mode="lines+markers",
                line={"color": shade, "dash": "solid" if is_first else "dash"},
                marker={"symbol": SYMBOLS.get(path_marker(path), "circle")},
                legendgroup=path,
                showlegend=layer == last[path] and is_first,
                hovertemplate=f"layer {layer}, epoch %{{x}}: %{{y:.3g}}",
            )
        )
    note = "pale to full colour from the first layer to the last"
    note += "; the scale of each ReLU layer is arbitrary" if shown.is_scaled else ""
    axis = {"title": shown.quantity, "type": "log", "exponentformat": "power"}
    return _chart(shown.title, note, lines, xaxis={"title": "epoch"}, yaxis=axis)


def _relative(result: RunResult) -> Chart:
    note = "effective over actual number of weights, mean over a path's tensors (the paper's measure)"
    return _shares("relative effective number", note, result.relative_effective_parameters, untrained_shares(result)[0])


def _raw(result: RunResult) -> Chart:
    title, note = "share of the raw effective number", "favours paths with many weights"
    return _shares(title, note, result.effective_share, untrained_shares(result)[1])


def _shares(title: str, note: str, shares: ByPath, untrained: ByPath) -> Chart:
    paths = _in_order(shares)
    if len(paths) < 2:
        return Chart(title, f"{path_title(*paths)} alone: nothing to share" if paths else NO_CURVATURE)
    bars = _bars_of_paths(shares)
    if marks := boundaries(untrained, paths):
        layers, heights = zip(*marks, strict=True)
        line = {"color": UNTRAINED_COLOUR, "width": 3}
        marker = {"symbol": "line-ew", "size": 20, "line": line}
        hover = f"layer %{{x}}, {UNTRAINED_LABEL}: %{{y:.3g}}"
        bars.append(
            graph_objects.Scatter(
                x=layers, y=heights, name=UNTRAINED_LABEL, mode="markers", marker=marker, hovertemplate=hover
            )
        )
    return _chart(title, note, bars, barmode="stack", xaxis=_layers(), yaxis={"title": "%", "range": [0, 100]})


def _uses(result: RunResult) -> list[Chart]:
    """A chart for each of the two ablations that the result knows; one that says so where it knows none."""
    title = "use: change of test NLL without the path"
    charts: list[Chart] = []
    means = {"nll_change": "the training data", "nll_change_constant": "the training data and all positions"}
    for measure, over in means.items():
        note = f"its output replaced by the mean over {over}"
        changes = {
            layer: {path: used[measure] for path, used in own.items() if measure in used}
            for layer, own in result.path_use.items()
        }
        if any(changes.values()):
            if EVERYWHERE in changes:
                note += f"; {EVERYWHERE}: in all layers at once"
            bars, axis = _bars_of_paths(changes), {"title": "nats a datum"}
            name = f"{title}, constant" if charts else title
            charts.append(_chart(name, note, bars, barmode="group", xaxis=_layers(), yaxis=axis))
    return charts or [Chart(title, "not recorded in this result")]


def _bars_of_paths(numbers: ByPath) -> list[BaseTraceType]:
    """Bars of each path of `numbers` {layer: {path: number}}."""
    hover, bars = "layer %{x}: %{y:.3g}", []
    for path in _in_order(numbers):
        own = {layer: paths[path] for layer, paths in numbers.items() if path in paths}
        marker, layers, heights = {"color": path_colour(path)}, list(own), list(own.values())
        bars.append(graph_objects.Bar(x=layers, y=heights, name=path_title(path), marker=marker, hovertemplate=hover))
    return bars


def _layers() -> dict[str, str]:
    return {"title": "layer", "type": "category"}


def _from_zero(title: str) -> dict[str, str]:
    return {"title": title, "rangemode": "tozero"}


def _in_order(numbers: ByPath) -> list[str]:
    """The paths of `numbers`, free ones first."""
    return sorted({path for own in numbers.values() for path in own}, key=path_order)


def _chart(title: str, note: str, traces: Sequence[BaseTraceType], **layout: object) -> Chart:
    if not any(trace.x for trace in traces):
        return Chart(title, "nothing was learned before the end")
    figure = graph_objects.Figure(traces, graph_objects.Layout(template="none", **layout))
    return Chart(title, note, figure.to_json())
