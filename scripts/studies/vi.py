"""Where does variational inference disagree with Laplace? The toy tasks by both, twelve networks each.

The runs are those of configs/experiment/vi/: F-FC+CONV of alpha 2 and 1, `budget=demo` otherwise, three seeds. A
network is a task, a width and a seed; each objective trains it anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import cast

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ellarepro.layers.tensors import EVERYWHERE, WEIGHT
from ellarepro.results import RunResult
from ellarepro.tables.markdown import markdown_table, mean_cell
from scripts.studies.study import Measure, Study, experiments, known

OBJECTIVES = {"laplace": "Laplace", "vi": "VI"}
PRUNED = 0.01
"""Share of a tensor's weights that are effective, below which it counts as pruned."""
Network = tuple[str, int, int]
"""Task, width (alpha) and seed."""


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


def share(result: RunResult) -> float:
    """F-FC's relative effective number of parameters in percent, mean over layers.

    Of two pruned factors that share a precision, VI's is a little above zero and a little below.
    """
    return max(0.0, fmean(own["f_fc"] for own in result.relative_effective_parameters.values()))


def lost_without(result: RunResult) -> float:
    """Points of test accuracy that are lost without F-FC in all layers, of the plug-in prediction."""
    return -100 * result.path_use[EVERYWHERE]["f_fc"]["accuracy_change"]


def variance_ratio(result: RunResult) -> float:
    """Prior variance of F-FC's outputs over that of CONV's, in the layer where it is largest: what precisions say."""
    layers = (own for layer, own in result.path_use.items() if layer != EVERYWHERE)
    return max(own["f_fc"]["prior_variance_ratio"] or 0.0 for own in layers)


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
    "prior variance, F-FC / CONV": (variance_ratio, 2),
    "effective weights, thousands": (effective, 2),
    "pruned tensors": (pruned, 1),
}


def body(results: Sequence[RunResult]) -> Iterator[str]:
    """What each objective reaches, what it learns, and how the two rank the networks."""
    yield from ("## What is reached", _table(results, SCORES))
    yield from ("## What is learned", _table(results, LEARNED))
    pairs = paired(results)
    if len(pairs) > 2:
        yield from ("## Ranking", _ranks(pairs), _correlations(pairs))
    yield "![Evidence, bound and test NLL of each network](study.png)"


def _table(results: Sequence[RunResult], measures: Mapping[str, tuple[Measure, int]]) -> str:
    lines = [["task", "alpha", "objective", "seeds", *measures]]
    for task, alpha in sorted({(r.dataset, _alpha(r)) for r in results}):
        for objective, title in OBJECTIVES.items():
            own = [r for r in results if (r.dataset, _alpha(r), r.objective) == (task, alpha, objective)]
            cells = [mean_cell(known(own, of), f".{digits}f", "–") for of, digits in measures.values()]
            lines.append([task, str(alpha), title, str(len(own)), *cells])
    return markdown_table(lines, labels=3)


def _alpha(result: RunResult) -> int:
    return result.config["alpha"]


def paired(results: Sequence[RunResult]) -> dict[Network, tuple[RunResult, RunResult]]:
    """The networks that both objectives have trained: the Laplace run, then that of VI."""
    runs = {(r.objective, (r.dataset, _alpha(r), r.seed)): r for r in results}
    networks = sorted({network for _, network in runs})
    both = {network: [runs.get((objective, network)) for objective in OBJECTIVES] for network in networks}
    return {network: (one, other) for network, (one, other) in both.items() if one and other}


def _ranks(pairs: Mapping[Network, tuple[RunResult, RunResult]]) -> str:
    """A line a network; the rank is within its task."""
    head = ["task", "alpha", "seed", "-evidence", "rank", "-bound", "error", "rank"]
    lines = [[*head, "test NLL, Laplace", "test NLL, VI"]]
    for (task, alpha, seed), runs in pairs.items():
        rivals = [both for network, both in pairs.items() if network[0] == task]
        first, second = (
            1 + sum(evidence(rival[side]) < evidence(run) for rival in rivals) for side, run in enumerate(runs)
        )
        laplace, vi = runs
        numbers = [f"{evidence(laplace):.3f}", str(first), f"{evidence(vi):.3f}", f"{vi.neg_log_marglik_error:.3f}"]
        nlls = [f"{run.test_nll:.3f}" for run in runs]
        lines.append([task, str(alpha), str(seed), *numbers, str(second), *nlls])
    return markdown_table(lines, labels=2)


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


def _correlations(pairs: Mapping[Network, tuple[RunResult, RunResult]]) -> str:
    groups = {task: [own for network, own in pairs.items() if network[0] == task] for task in {n[0] for n in pairs}}
    columns = {task: own for task, own in sorted(groups.items()) if len(own) > 2}
    found = {title: correlations(own) for title, own in columns.items()}
    lines = [["Spearman's rank correlation", *(f"{task}, {len(own)} networks" for task, own in columns.items())]]
    lines += [[name, *(f"{own[name]:+.2f}" for own in found.values())] for name in next(iter(found.values()))]
    lines.append(
        ["standard deviation of unrelated rankings", *(f"{(len(o) - 1) ** -0.5:.2f}" for o in columns.values())]
    )
    return markdown_table(lines, labels=1)


PANELS = {
    "two estimates of the evidence": ("-evidence (Laplace)", "-bound (VI)"),
    "Laplace": ("-evidence (Laplace)", "test NLL, Laplace"),
    "VI": ("-bound (VI)", "test NLL, VI"),
}
COLOURS = ("#0072B2", "#D55E00")
MARKERS = "os"


def draw(results: Sequence[RunResult]) -> Figure:
    """The figure: a dot a network, colour by task and marker by width."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    grid = figure.subplots(1, len(PANELS))
    pairs = paired(results)
    tasks, widths = (sorted({network[place] for network in pairs}) for place in (0, 1))
    for axes, (title, labels) in zip(grid, PANELS.items(), strict=True):
        for (task, alpha), own in _drawn(pairs).items():
            points = [(numbers[labels[0]], numbers[labels[1]]) for numbers in own]
            look = {"color": COLOURS[tasks.index(task) % 2], "marker": MARKERS[widths.index(alpha) % 2]}
            axes.plot(*zip(*points, strict=True), linestyle="none", label=f"{task}, alpha {alpha}", **look)
        axes.set(title=title, xlabel=f"{labels[0]}, nats a datum", ylabel=f"{labels[1]}, nats")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _drawn(pairs: Mapping[Network, tuple[RunResult, RunResult]]) -> dict[tuple[str, int], list[dict[str, float]]]:
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for (task, alpha, _), (laplace, vi) in pairs.items():
        numbers = {"-evidence (Laplace)": evidence(laplace), "-bound (VI)": evidence(vi)}
        numbers |= {"test NLL, Laplace": laplace.test_nll, "test NLL, VI": vi.test_nll}
        found.setdefault((task, alpha), []).append(cast(dict[str, float], numbers))
    return found


STUDY = Study(
    name="vi",
    question="Where does variational inference disagree with Laplace?",
    about="F-FC+CONV of alpha 2 and 1 (74,000 and 22,000 parameters) on 4,000 images, 40 epochs. -evidence is minus "
    "the Laplace evidence, or minus the lower bound of VI, in nats a datum. The training loss is that of the last "
    "epoch, for VI at drawn weights. The posterior's prediction is the linearised one under Laplace, and the mean of "
    "drawn networks under VI, 20 draws each. A tensor counts as pruned where less than 1% of its weights are "
    "effective. Mean over seeds, and standard deviation.",
    body=body,
    draw=draw,
    sweeps=((*experiments("vi"), "seed=711,712,713"),),
    order=lambda config: (-config["alpha"], config["seed"], config["objective"]["name"]),
)
