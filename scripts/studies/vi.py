"""Where does variational inference disagree with Laplace? The toy tasks and moved digits, 26 networks by both.

The runs are those of configs/experiment/vi/: F-FC+CONV and CONV of alpha 1, `budget=demo` otherwise, three seeds; and
F-FC+CONV of alpha 2 with one seed. With them go the twelve networks of the symmetry study. A network is a task, a
width, a layer type and a seed; each objective trains it.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import cast

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ellarepro.layers.tensors import EVERYWHERE, WEIGHT
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table, mean_cell
from scripts.studies.study import Measure, Study, experiments, known

OBJECTIVES = {"laplace": "Laplace", "vi": "VI"}
RANKED, CORRELATED = 3, 4
"""Networks of one task that have a ranking, and a correlation, at least."""
PRUNED = 0.01
"""Share of a tensor's weights that are effective, below which it counts as pruned."""
Network = tuple[str, int, str, int]
"""Task, width (alpha), layer type and seed."""
Pairs = Mapping[Network, tuple[RunResult, RunResult]]


def evidence(result: RunResult) -> float | None:
    """Minus the evidence, or minus its lower bound, nats a datum."""
    return result.neg_log_marglik_per_datum


def predictive_nll(result: RunResult) -> float | None:
    """Test NLL of the prediction with the weights integrated out: linearised, or the mean of drawn networks."""
    return (result.linearised or result.sampled or {}).get("nll")


def predictive_accuracy(result: RunResult) -> float | None:
    """Its accuracy, in percent."""
    accuracy = (result.linearised or result.sampled or {}).get("accuracy")
    return None if accuracy is None else 100 * accuracy


def share(result: RunResult) -> float | None:
    """F-FC's relative effective number of parameters in percent, mean over layers; None without F-FC.

    Of two pruned factors that share a precision, VI's is a little above zero and a little below.
    """
    own = [paths["f_fc"] for paths in result.relative_effective_parameters.values() if "f_fc" in paths]
    return max(0.0, fmean(own)) if own else None


def lost_without(result: RunResult) -> float | None:
    """Points of test accuracy that are lost without F-FC in all layers, of the plug-in prediction."""
    used = result.path_use[EVERYWHERE]
    return -100 * used["f_fc"]["accuracy_change"] if "f_fc" in used else None


def variance_ratio(result: RunResult) -> float | None:
    """Prior variance of F-FC's outputs over that of CONV's, in the layer where it is largest: what precisions say."""
    layers = [own for layer, own in result.path_use.items() if layer != EVERYWHERE and "f_fc" in own]
    return max((own["f_fc"]["prior_variance_ratio"] or 0.0 for own in layers), default=None)


def effective(result: RunResult) -> float:
    """Effective number of weights, in thousands."""
    return sum(result.effective_parameters[name] for name in _weights(result)) / 1000


def pruned(result: RunResult) -> float:
    """Weight tensors of which less than `PRUNED` is effective, biases apart."""
    return sum(result.effective_parameters[n] < PRUNED * result.tensors[n].size for n in _weights(result))


def _weights(result: RunResult) -> list[str]:
    return [name for name, tensor in result.tensors.items() if tensor.role == WEIGHT]


def _loss(result: RunResult) -> float:
    return result.series("loss")[-1]


SCORES: dict[str, tuple[Measure, int]] = {
    "-evidence": (evidence, 3),
    "of it training loss": (_loss, 3),
    "test NLL": (lambda result: result.test_nll, 3),
    "of the posterior": (predictive_nll, 3),
    "test acc. %": (lambda result: 100 * cast(float, result.test_accuracy), 1),
    "of the posterior, %": (predictive_accuracy, 1),
    "minutes": (lambda result: result.wall_seconds / 60, 1),
}
LEARNED: dict[str, tuple[Measure, int]] = {
    "F-FC's share, %": (share, 0),
    "points lost without F-FC": (lost_without, 1),
    "prior variance, F-FC / CONV": (variance_ratio, 3),
    "effective weights, thousands": (effective, 2),
    "pruned tensors": (pruned, 1),
}


def body(results: Sequence[RunResult]) -> Iterator[str]:
    """What each objective reaches, what it learns, and how the two rank the networks."""
    yield from ("## What is reached", _table(results, SCORES))
    yield from ("## What is learned", _table(results, LEARNED))
    pairs = paired(results)
    if groups := _rivals(pairs, RANKED):
        yield from ("## Ranking", _ranks(groups))
    if groups := _rivals(pairs, CORRELATED):
        yield _correlations(groups)
    yield "![Evidence, bound and test NLL of each network](study.png)"


def _cell(result: RunResult) -> tuple[str, int, str]:
    return result.dataset, result.config["alpha"], result.layer


def _table(results: Sequence[RunResult], measures: Mapping[str, tuple[Measure, int]]) -> str:
    lines = [["task", "alpha", "layers", "objective", "seeds", *measures]]
    for cell in sorted({_cell(result) for result in results}):
        for objective, title in OBJECTIVES.items():
            own = [result for result in results if (_cell(result), result.objective) == (cell, objective)]
            cells = [mean_cell(known(own, of), f".{digits}f", "–") for of, digits in measures.values()]
            task, alpha, layer = cell
            lines.append([task, str(alpha), layer_title(layer), title, str(len(own)), *cells])
    return markdown_table(lines, labels=4)


def paired(results: Sequence[RunResult]) -> Pairs:
    """The networks that both objectives have trained: the Laplace run, then that of VI."""
    runs = {(r.objective, (*_cell(r), r.seed)): r for r in results}
    networks = sorted({network for _, network in runs})
    both = {network: [runs.get((objective, network)) for objective in OBJECTIVES] for network in networks}
    return {network: (one, other) for network, (one, other) in both.items() if one and other}


def _rivals(pairs: Pairs, fewest: int) -> dict[str, Pairs]:
    """The networks by task, of tasks that have at least so many."""
    groups = {task: {name: own for name, own in pairs.items() if name[0] == task} for task, *_ in pairs}
    return {task: own for task, own in groups.items() if len(own) >= fewest}


def _ranks(groups: Mapping[str, Pairs]) -> str:
    """A line a network; the rank is within its task."""
    head = ["task", "alpha", "layers", "seed", "-evidence", "rank", "-bound", "error", "rank"]
    lines = [[*head, "test NLL, Laplace", "test NLL, VI"]]
    for task, pairs in groups.items():
        for (_, alpha, layer, seed), runs in pairs.items():
            first, second = (
                1 + sum(_bound(rival[side]) < _bound(run) for rival in pairs.values()) for side, run in enumerate(runs)
            )
            laplace, vi = runs
            numbers = [f"{_bound(laplace):.3f}", str(first), f"{_bound(vi):.3f}", f"{vi.neg_log_marglik_error:.3f}"]
            nlls = [f"{run.test_nll:.3f}" for run in runs]
            lines.append([task, str(alpha), layer_title(layer), str(seed), *numbers, str(second), *nlls])
    return markdown_table(lines, labels=3)


def _bound(result: RunResult) -> float:
    return cast(float, evidence(result))


def correlations(pairs: Sequence[tuple[RunResult, RunResult]]) -> dict[str, float]:
    """Spearman's rank correlation of the networks by two numbers each."""
    laplace, vi = zip(*pairs, strict=True)
    compared = {
        "-evidence and -bound": ((laplace, evidence), (vi, evidence)),
        "-evidence and Laplace's test NLL": ((laplace, evidence), (laplace, _nll)),
        "-bound and VI's test NLL": ((vi, evidence), (vi, _nll)),
        "-bound and test NLL of VI's posterior": ((vi, evidence), (vi, predictive_nll)),
    }
    return {
        name: float(spearmanr(*([of(run) for run in runs] for runs, of in sides)).statistic)
        for name, sides in compared.items()
    }


def _nll(result: RunResult) -> float | None:
    return result.test_nll


def _correlations(groups: Mapping[str, Pairs]) -> str:
    found = {task: correlations(list(pairs.values())) for task, pairs in groups.items()}
    lines = [["Spearman's rank correlation", *(f"{task}, {len(own)} networks" for task, own in groups.items())]]
    lines += [[name, *(f"{own[name]:+.2f}" for own in found.values())] for name in next(iter(found.values()))]
    errors = [f"{(len(own) - 1) ** -0.5:.2f}" for own in groups.values()]
    return markdown_table([*lines, ["standard deviation of unrelated rankings", *errors]], labels=1)


PANELS = {
    "two estimates of the evidence": ("-evidence (Laplace)", "-bound (VI)"),
    "Laplace": ("-evidence (Laplace)", "test NLL, Laplace"),
    "VI": ("-bound (VI)", "test NLL, VI"),
}
COLOURS = ("#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#0072B2", "#D55E00")
MARKERS = "os^"


def draw(results: Sequence[RunResult]) -> Figure:
    """The figure: a dot a network, colour by task and marker by layer type; alpha 2 is not filled."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    grid = figure.subplots(1, len(PANELS))
    groups: dict[tuple[str, int, str], list[tuple[RunResult, RunResult]]] = {}
    for network, runs in paired(results).items():
        groups.setdefault(network[:3], []).append(runs)
    tasks, _, layers = (sorted({group[place] for group in groups}, key=str) for place in range(3))
    for axes, (title, (across, up)) in zip(grid, PANELS.items(), strict=True):
        for (task, alpha, layer), own in groups.items():
            numbers = [_drawn(*runs) for runs in own]
            look = {"color": COLOURS[-len(tasks) :][tasks.index(task)], "marker": MARKERS[layers.index(layer)]}
            look |= {"fillstyle": "none" if alpha > 1 else "full", "linestyle": "none"}
            label = f"{task}, {layer_title(layer)}, alpha {alpha}"
            axes.plot([n[across] for n in numbers], [n[up] for n in numbers], label=label, **look)
        axes.set(title=title, xlabel=f"{across}, nats a datum", ylabel=f"{up}, nats a datum")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _drawn(laplace: RunResult, vi: RunResult) -> dict[str, float | None]:
    numbers = {"-evidence (Laplace)": evidence(laplace), "-bound (VI)": evidence(vi)}
    return numbers | {"test NLL, Laplace": laplace.test_nll, "test NLL, VI": vi.test_nll}


STUDY = Study(
    name="vi",
    question="Where does variational inference disagree with Laplace?",
    about="Toy tasks: 4,000 images, 40 epochs. Moved digits: the runs of the symmetry study, and the same by VI. Each "
    "objective trains the network. -evidence is minus the Laplace evidence, or minus the lower bound of VI, in nats a "
    "datum. The training loss is that of the last epoch, for VI at drawn weights. The posterior's prediction is the "
    "linearised one under Laplace, and the mean of drawn networks under VI, 20 draws each. A tensor counts as pruned "
    "where less than 1% of its weights are effective. Mean over seeds, and standard deviation.",
    body=body,
    draw=draw,
    sweeps=(
        (*experiments("vi"), "seed=711,712,713"),
        (*experiments("vi"), "seed=711", "layer=f_fc_conv", "alpha=2"),
        ("experiment=study/laplace", "seed=711,712,713"),
        ("experiment=study/laplace", "seed=711,712,713", "objective=vi", "objective.burn_in=10", "objective.draws=20"),
    ),
    elsewhere=("symmetry/runs",),
    order=lambda config: (config.alpha, config.seed, config.layer.name == "conv"),
)
