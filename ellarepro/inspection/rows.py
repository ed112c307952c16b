"""What a run learned, a row a layer and path, and what its precisions did on the way.

The factors of a path can trade scale (theta1 c, theta2 / c) without changing the function or the evidence, and so can
consecutive layers of a ReLU network. Of a factored path only the product of its precisions means anything, and that
only beside another path of the same layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from ellarepro.layers.tensors import HEAD, LENGTHSCALE, WEIGHT, by_path
from ellarepro.results import UNTRAINED, RunResult
from ellarepro.symmetry.labels import is_equivariant, layer_title, path_title
from ellarepro.symmetry.shares import ByPath, effective_share, relative_effective_parameters

Curves = dict[tuple[str, str, str], list[float | None]]
"""{(layer, path, part): value at each fit}; None where one was not finite."""


@dataclass(frozen=True)
class PathRow:
    """What one path of one layer learned; the head is a layer of its own, with its linear layers for paths.

    Attributes:
        layer: "1", "2", … from the image on, then "head".
        path: as in `layer=`: "f_fc", "conv", …
        part: what the path calls its weights, factors joined: "weight", "theta1·theta2".
        precision: prior precision of the weights, of factors their product; None: not recorded, or not finite.
        lengthscales: prior precision of each learned lengthscale, by what the path calls it.
        effective: effective number of weights; None without curvature.
        relative: relative effective number of parameters in percent (`shares.py`); None without curvature and for the
            head.
        share: of the layer's effective number of weights, in percent; None as `relative`.
        ratio: `precision` over that of the layer's equivariant path, the first one it has; None for that path itself,
            where there is none, and where the precisions of the weights were not learned.
        nll_change: of the test predictions, in nats a datum, when the path's output is replaced by its mean over the
            training data (`ablation.py`); None for the head and in results of earlier versions.
        accuracy_change: likewise, a fraction of 1.
        nll_change_constant, accuracy_change_constant: as the two above, with the mean over training data and positions.
        variance_ratio: prior variance of the output over that of the layer's equivariant path, 1 for that path itself;
            None as `nll_change`, and where there is no such path.
    """

    layer: str
    path: str
    part: str
    precision: float | None
    lengthscales: dict[str, float | None]
    effective: float | None
    relative: float | None
    share: float | None
    ratio: float | None = None
    nll_change: float | None = None
    accuracy_change: float | None = None
    nll_change_constant: float | None = None
    accuracy_change_constant: float | None = None
    variance_ratio: float | None = None


@dataclass(frozen=True)
class ShownCurves:
    """Curves of precisions for a figure: `is_scaled` where layers are not to be compared, as scale is arbitrary."""

    title: str
    quantity: str
    curves: Curves
    is_scaled: bool = False


def path_rows(result: RunResult) -> list[PathRow]:
    """Return a row for each layer and path of `result`, in the network's order, the head last.

    A run without curvature (MAP) has rows too, with its fixed precisions.
    """
    scales = by_path(result.tensors, LENGTHSCALE)
    rows = []
    for (layer, path), names in by_path(result.tensors, WEIGHT).items():
        numbers = [result.effective_parameters[name] for name in names if name in result.effective_parameters]
        lengthscales = {result.tensors[name].part: result.prior_precision.get(name) for name in scales[layer, path]}
        used = result.path_use.get(layer, {}).get(path, {})
        rows.append(
            PathRow(
                layer,
                path,
                part=_joined(result, names),
                precision=_product([result.prior_precision.get(name) for name in names]),
                lengthscales=dict(sorted(lengthscales.items())),
                effective=sum(numbers) if numbers else None,
                relative=result.relative_effective_parameters.get(layer, {}).get(path),
                share=result.effective_share.get(layer, {}).get(path),
                nll_change=used.get("nll_change"),
                accuracy_change=used.get("accuracy_change"),
                nll_change_constant=used.get("nll_change_constant"),
                accuracy_change_constant=used.get("accuracy_change_constant"),
                variance_ratio=used.get("prior_variance_ratio"),
            )
        )
    if not is_learned(result, WEIGHT):
        return rows
    precisions = {(row.layer, row.path): row.precision for row in rows}
    compared = {place: precisions[reference] for place, reference in references(result).items()}
    return [replace(row, ratio=_ratio(row.precision, compared.get((row.layer, row.path)))) for row in rows]


def has_curvature(result: RunResult) -> bool:
    """Return whether the run fitted a curvature, so that it has effective numbers of parameters; MAP runs do not."""
    return bool(result.effective_parameters)


def is_learned(result: RunResult, role: str) -> bool:
    """Return whether the precision of any tensor in this `role`, the head's apart, has left its start."""
    start = result.config["prior"]["precision"]
    tensors = [name for name, tensor in result.tensors.items() if tensor.role == role and tensor.layer != HEAD]
    return any(not math.isclose(result.prior_precision.get(name) or math.inf, start) for name in tensors)


def precision_curves(result: RunResult, role: str = WEIGHT) -> Curves:
    """Return the precisions in this `role` at each of `history["fit_epoch"]`, the head left out.

    One curve a path for weights, the product over its factors; one a tensor for lengthscales.
    """
    history = cast(dict[str, list[float]], result.history.get("prior_precision") or {})
    curves: Curves = {}
    for (layer, path), names in by_path(result.tensors, role).items():
        for group in [names] if role == WEIGHT else [[name] for name in sorted(names)]:
            if layer != HEAD and group and all(name in history for name in group):
                values = zip(*(history[name] for name in group), strict=True)
                curves[layer, path, _joined(result, group)] = [_product(value) for value in values]
    return curves


def ratio_curves(result: RunResult) -> Curves:
    """Return `precision_curves` of the weights over those of the layer's equivariant path, which has none itself."""
    curves = precision_curves(result)
    measure, found = references(result), {key[:2]: values for key, values in curves.items()}
    return {
        key: [_ratio(*pair) for pair in zip(values, found[measure[key[:2]]], strict=True)]
        for key, values in curves.items()
        if key[:2] in measure
    }


def shown_curves(result: RunResult) -> "ShownCurves":
    """Return the precisions of `result` that mean something as curves: over the equivariant path's, if there is one.

    Those of lengthscales where the precisions of the weights were not learned; empty where nothing was learned.
    """
    if not is_learned(result, WEIGHT):
        curves = precision_curves(result, LENGTHSCALE)
        return ShownCurves("learned precision of ω" if curves else "learned precision", "prior precision", curves)
    if ratios := ratio_curves(result):
        measure = " or ".join(sorted({path_title(path) for _, path in references(result).values()}))
        return ShownCurves(f"learned precision over that of {measure}", "precision ratio", ratios)
    return ShownCurves("learned precision of the weights", "prior precision", precision_curves(result), is_scaled=True)


def untrained_shares(result: RunResult) -> tuple[ByPath, ByPath]:
    """Return the relative effective numbers and the raw shares that the network had before any training, in percent.

    As `result.relative_effective_parameters` and `result.effective_share` are after it; empty where not recorded.
    """
    history = cast(dict[str, list[float]], result.history.get(UNTRAINED) or {})
    effective = {name: number for name, (number,) in history.items()}
    return relative_effective_parameters(effective, result.tensors), effective_share(effective, result.tensors)


def references(result: RunResult) -> dict[tuple[str, str], tuple[str, str]]:
    """Return {(layer, path): (layer, its equivariant path)}: what each path is measured against, if there is such."""
    places = list(by_path(result.tensors, WEIGHT))
    first: dict[str, str] = {}
    for layer, path in places:
        if is_equivariant(path):
            first.setdefault(layer, path)
    return {(layer, path): (layer, first[layer]) for layer, path in places if path != first.get(layer, path)}


def heading(result: RunResult) -> str:
    """Return one line that names the run and its test measure."""
    return (
        f"{result.dataset} · {layer_title(result.layer)} · prior {result.prior} · {result.objective} · "
        f"budget {result.budget} · seed {result.seed} · {result.tested_on} {result.measured()}"
    )


def _joined(result: RunResult, names: Sequence[str]) -> str:
    return "·".join(sorted(result.tensors[name].part for name in names))


def _product(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.prod(known) if len(known) == len(values) else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
