"""Does it find the symmetry that is there? Four labels of the same moved digits, each with a known symmetry.

The data are those of `ellarepro/data/moved_digits.py`, the runs those of configs/experiment/study/, by default with
three seeds: measures of the paths of F-FC+CONV+GCONV beside the truth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellarepro.data.moved_digits import SYMMETRIES
from ellarepro.inspection import untrained_shares
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import UNTRAINED_COLOUR, UNTRAINED_LABEL, path_colour, path_marker, path_title
from ellarepro.tables.markdown import markdown_table
from scripts.studies.study import Study, experiments

PATHS = ("f_fc", "conv", "gconv")
STRICTEST = {"none": "f_fc", "translation": "conv", "rotation": "f_fc", "both": "gconv"}
"""Symmetry of the label to the strictest path that can tell it."""
ByPath = dict[str, float]
Measure = Callable[[RunResult], ByPath]


def symmetry_of(result: RunResult) -> str:
    """The symmetry of the label of a run's task, one of `SYMMETRIES`."""
    return result.dataset.removeprefix("moved_digits_")


def strength_of(result: RunResult) -> float:
    """The share of images that its task moves."""
    return result.config["dataset"]["strength"]


def relative(result: RunResult) -> ByPath:
    """Relative effective number of parameters, the paper's, in percent: mean over layers."""
    return _over_layers(result.relative_effective_parameters, fmean)


def raw(result: RunResult) -> ByPath:
    """Share of a layer's effective number of weights, in percent: mean over layers."""
    return _over_layers(result.effective_share, fmean)


def ablation(result: RunResult) -> ByPath:
    """Change of test NLL without the path, in nats a datum, in the layer where it is largest: one is enough."""
    return _over_layers(_used(result, "nll_change"), max)


def ablation_everywhere(result: RunResult) -> ByPath:
    """Change of test NLL without the path in any layer, in nats a datum."""
    return {path: own["nll_change"] for path, own in result.path_use.get(EVERYWHERE, {}).items()}


def prior_ratio(result: RunResult) -> ByPath:
    """Prior variance over that of CONV, in the layer where it is largest."""
    return _over_layers(_used(result, "prior_variance_ratio"), max)


SHARES = {"relative effective number (%)": relative, "raw share (%)": raw}
UNTRAINED_SHARES: dict[str, Measure] = {
    name: lambda result, which=which: _over_layers(untrained_shares(result)[which], fmean)
    for which, name in enumerate(SHARES)
}
MEASURES: dict[str, Measure] = {
    **SHARES,
    "NLL without it (nats)": ablation,
    "NLL without it in all layers (nats)": ablation_everywhere,
    "prior variance ratio": prior_ratio,
}
DRAWN = [name for name in MEASURES if name != "prior variance ratio"]


def body(results: Sequence[RunResult]) -> Iterator[str]:
    """What was found beside the truth: each objective's scores and measures, then which measures name the truth."""
    laplace, controls = ([r for r in results if r.objective == name] for name in ("laplace", "map"))
    for title, own in (("Laplace: the precisions are learned", laplace), ("MAP: the control", controls)):
        if own:
            yield from (f"## {title}", _scores(own), *_by_seed(own))
            yield from (_table(own, name, of) for name, of in MEASURES.items())
    yield from ("## Is F-FC used where it is needed, and only there?", _named(laplace, controls))


def contrast(results: Sequence[RunResult], of: Measure, path: str = "f_fc") -> dict[int, float]:
    """{seed: what `path` has at least where place matters, less what it has at most where it does not}.

    Positive where the measure alone tells the ones from the others. Of one strength; incomplete seeds are left out.
    """
    gaps = {}
    for seed in sorted({result.seed for result in results}):
        own = {symmetry_of(r): of(r)[path] for r in results if r.seed == seed and path in of(r)}
        if own.keys() == SYMMETRIES.keys():
            needed, not_needed = ([own[name] for name in own if SYMMETRIES[name][0] == kept] for kept in (False, True))
            gaps[seed] = min(needed) - max(not_needed)
    return gaps


def draw(results: Sequence[RunResult]) -> Figure:
    """The figure of the runs under Laplace: a dot a seed, a panel a measure, for each share of moved images."""
    laplace = [result for result in results if result.objective == "laplace"]
    strengths = sorted({strength_of(result) for result in laplace}, reverse=True)
    panels = list(product(strengths, DRAWN))
    figure = Figure(figsize=(11.0, 3.2 * len(panels) / 2 + 0.8), layout="constrained")
    figure.suptitle("Does it find the symmetry that is there? Four labels of the same moved digits; a dot a seed")
    grid = figure.subplots(len(panels) // 2, 2, squeeze=False)
    for axes, (strength, name) in zip(grid.flat, panels, strict=True):
        own = [result for result in laplace if strength_of(result) == strength]
        _draw_dots(axes, own, MEASURES[name], UNTRAINED_SHARES.get(name))
        axes.set_title(name if len(strengths) == 1 else f"{name}, {strength:.0%} of images moved")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_dots(axes: Axes, results: Sequence[RunResult], of: Measure, untrained: Measure | None) -> None:
    """A dot a run, paths side by side, the mean share before training as a line; what the label needs is under it."""
    for index, path in enumerate(PATHS):
        for where, symmetry in enumerate(SYMMETRIES):
            own = [result for result in results if symmetry_of(result) == symmetry]
            place, first = where + (index - 1) * 0.25, where == 0
            values = [value[path] for result in own if (value := of(result))]
            look = {"color": path_colour(path), "marker": path_marker(path), "linestyle": "none", "alpha": 0.7}
            axes.plot([place] * len(values), values, label=path_title(path) if first else None, **look)
            before = [value[path] for result in own if untrained and (value := untrained(result))]
            if before:
                label = UNTRAINED_LABEL if first and index == len(PATHS) - 1 else None
                axes.hlines(fmean(before), place - 0.1, place + 0.1, UNTRAINED_COLOUR, linewidth=2, label=label)
    names = [f"{name}\n(needs {path_title(STRICTEST[name])})" for name in SYMMETRIES]
    axes.set_xticks(range(len(SYMMETRIES)), names)
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)


def _over_layers(measure: Mapping[str, Mapping[str, float]], reduce: Callable[[list[float]], float]) -> ByPath:
    return {path: reduce([own[path] for own in measure.values()]) for path in PATHS} if measure else {}


def _used(result: RunResult, key: str) -> dict[str, dict[str, float]]:
    """A measure by layer and path; zero where there is nothing to measure, above a dead layer."""
    layers = ((layer, paths) for layer, paths in result.path_use.items() if layer != EVERYWHERE)
    return {layer: {path: own[key] or 0.0 for path, own in paths.items()} for layer, paths in layers}


def _cells(results: Sequence[RunResult]) -> list[tuple[float, str, list[RunResult]]]:
    """(strength, symmetry, runs of all seeds), the strongest first."""
    strengths = sorted({strength_of(result) for result in results}, reverse=True)
    grouped = [
        (strength, name, [r for r in results if (strength_of(r), symmetry_of(r)) == (strength, name)])
        for strength, name in product(strengths, SYMMETRIES)
    ]
    return [cell for cell in grouped if cell[2]]


def _scores(results: Sequence[RunResult]) -> str:
    lines = [["moved", "symmetry", "strictest path", "test accuracy (%)", "test NLL", "evidence (nats)", "seeds"]]
    for strength, symmetry, own in _cells(results):
        numbers = [
            _text([100 * r.test_accuracy for r in own], 1),
            _text([r.test_nll for r in own], 2),
            _text([r.neg_log_marglik_per_datum for r in own], 2),
        ]
        lines.append([f"{strength:.0%}", symmetry, path_title(STRICTEST[symmetry]), *numbers, str(len(own))])
    return markdown_table(lines, labels=3)


def _by_seed(results: Sequence[RunResult]) -> Iterator[str]:
    """Evidence and test of each run, the best evidence of a label first; nothing where there is no evidence."""
    lines = [["moved", "symmetry", "seed", "evidence (nats)", "test NLL", "test accuracy (%), sampling error"]]
    for strength, symmetry, own in _cells([r for r in results if r.neg_log_marglik_per_datum is not None]):
        for run in sorted(own, key=lambda run: run.neg_log_marglik_per_datum):
            numbers = [f"{number:.3f}" for number in (run.neg_log_marglik_per_datum, run.test_nll)]
            lines.append([f"{strength:.0%}", symmetry, str(run.seed), *numbers, run.accuracy_text()])
    if len(lines) > 1:
        yield f"**Does the evidence choose the seed?** The best evidence first\n\n{markdown_table(lines, labels=3)}"


def _table(results: Sequence[RunResult], name: str, of: Measure) -> str:
    """The table of one measure; nothing for one that these runs do not have."""
    lines = [["moved", "symmetry", *map(path_title, PATHS)]]
    for strength, symmetry, own in _cells(results):
        values = [of(result) for result in own if of(result)]
        if values:
            numbers = [_text([value[path] for value in values], 0 if "%" in name else 3) for path in PATHS]
            lines.append([f"{strength:.0%}", symmetry, *numbers])
    if len(lines) == 1:
        return f"**{name}**: these runs fitted no curvature."
    where = ", mean over layers" if "%" in name else "" if "all" in name else ", in the layer where it is largest"
    return f"**{name}**{where}\n\n{markdown_table(lines, labels=2)}"


def _named(laplace: Sequence[RunResult], controls: Sequence[RunResult]) -> str:
    """F-FC where place matters less where not, by measure and seed, under both objectives."""
    lines = [["moved", "objective", *MEASURES]]
    for results, strength in product((laplace, controls), sorted({strength_of(r) for r in laplace}, reverse=True)):
        own = [r for r in results if strength_of(r) == strength]
        gaps = [contrast(own, of) for of in MEASURES.values()]
        texts = [", ".join(f"{gap:+.3g}" for gap in seeds.values()) or "–" for seeds in gaps]
        lines += [[f"{strength:.0%}", own[0].objective, *texts]] if own else []
    explained = (
        "Two labels tell the place and need F-FC, two do not. Each number is a seed's: the least that F-FC has where "
        "it is needed, less the most that it has where it is not. It is positive where the measure names the truth."
    )
    return f"{explained}\n\n{markdown_table(lines, labels=2)}"


def _text(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = f" ({min(known):.{digits}f} to {max(known):.{digits}f})" if len(known) > 1 else ""
    return f"{fmean(known):.{digits}f}{ends}"


STUDY = Study(
    name="symmetry",
    question="Does it find the symmetry that is there?",
    about="The data are described in `ellarepro/data/moved_digits.py`. Every task has four classes: guessing is right "
    "in 25% and has 1.39 nats. Means over seeds, range in brackets; docs/measures.md says what each measure tells.",
    body=body,
    draw=draw,
    sweeps=((*experiments("study"), "seed=711,712,713"),),
    # What says most comes first: each seed is complete before the next one begins.
    order=lambda config: (-(config.dataset.strength or 0), config.seed),
)
