"""What a run learned, a row a layer and path, and what its precisions did on the way."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ellarepro.results import RunResult

HEAD = "head"
EQUIVARIANT = ("conv", "s_conv", "gconv")
"""Paths that a layer's other paths are measured against; the first of these that the layer has."""
TENSOR = re.compile(r"blocks\.(?P<block>\d+)\.paths\.(?P<path>\w+)\.(?P<name>.+)")


@dataclass(frozen=True)
class PathRow:
    """What one path of one layer learned; the head is a layer of its own with the one path "head".

    Attributes:
        layer: "1", "2", … from the image on, then "head".
        path: as in `layer=`: "f_fc", "conv", …
        precisions: prior precision by tensor, without biases: "weight"; "theta1", "theta2"; "u", "u1", "u2" and, where
            learned, "omega", "omega1", "omega2"; "head.0", "head.2". None: not recorded, or not finite.
        effective: sum over the weights of lambda / (lambda + delta); None without curvature.
        share: of the layer's effective number of weights, in percent; None without curvature and for the head.
        ratio: `precision` over that of the layer's equivariant path; None for that path itself, where there is none,
            and where the precisions of the weights were not learned.
    """

    layer: str
    path: str
    precisions: dict[str, float | None]
    effective: float | None
    share: float | None
    ratio: float | None

    @property
    def precision(self) -> float | None:
        """Largest precision of the weights (not omega): a product is switched off when one of its factors is."""
        return _largest([value for part, value in self.precisions.items() if not _is_omega(part)])


def by_path(result: RunResult) -> list[PathRow]:
    """Return a row for each layer and path of `result`: layers in order, paths in the network's order, then the head.

    A run without curvature (MAP) has rows too, with its fixed precisions.
    """
    rows = []
    for (layer, path), tensors in _places([*result.prior_precision, *result.effective_parameters]).items():
        weights = [result.effective_parameters.get(name) for part, name in tensors.items() if not _is_omega(part)]
        parts = sorted(tensors, key=lambda part: (_is_omega(part), part))
        precisions = {part: result.prior_precision.get(tensors[part]) for part in parts}
        effective = None if None in weights else sum(weights)
        share = result.relative_effective_parameters.get(layer, {}).get(path)
        rows.append(PathRow(layer, path, precisions, effective, share, ratio=None))
    if not has_curvature(result) or result.prior == "omega":
        return rows
    return [replace(row, ratio=_ratio(row, rows)) for row in rows]


def has_curvature(result: RunResult) -> bool:
    """Return whether the run fitted a curvature, so that it has effective numbers of parameters; MAP runs do not."""
    return bool(result.effective_parameters)


def precision_curves(result: RunResult) -> dict[tuple[str, str], list[float | None]]:
    """Return {(layer, path): precision at each of `history["fit_epoch"]`}, the head left out.

    The largest over the tensors whose precisions are learned: the path's weights, or with `prior=omega` its
    lengthscales. None where one was not finite.
    """
    history = result.history.get("prior_precision") or {}
    curves = {}
    for (layer, path), tensors in _places(history).items():
        learned = [history[name] for part, name in tensors.items() if _is_omega(part) == (result.prior == "omega")]
        if layer != HEAD and learned:
            curves[layer, path] = [_largest(values) for values in zip(*learned, strict=True)]
    return curves


def heading(result: RunResult) -> str:
    """Return one line that names the run and its test accuracy."""
    return (
        f"{result.dataset} · {result.layer} · prior {result.prior} · {result.objective} · budget {result.budget} · "
        f"seed {result.seed} · test accuracy {100 * result.test_accuracy:.1f} %"
    )


def _places(tensors: Iterable[str]) -> dict[tuple[str, str], dict[str, str]]:
    """{(layer, path): {part: tensor}} of parameter names, layers in order; biases and unknown names are left out."""
    places: dict[tuple[str, str], dict[str, str]] = {}
    for tensor in tensors:
        if found := _place(tensor):
            *place, part = found
            places.setdefault(tuple(place), {})[part] = tensor
    return dict(sorted(places.items(), key=lambda item: sys.maxsize if item[0][0] == HEAD else int(item[0][0])))


def _place(tensor: str) -> tuple[str, str, str] | None:
    """(layer, path, part) of a tensor's name, None for a bias and what is in no layer."""
    if tensor.endswith("bias"):
        return None
    if tensor.startswith(f"{HEAD}."):
        return HEAD, HEAD, tensor.removesuffix(".weight")
    if not (found := TENSOR.fullmatch(tensor)):
        return None
    stage, _, kind = found["name"].rpartition(".")
    part = {"weight": stage or "weight", "omega": f"omega{stage.removeprefix('u')}"}.get(kind, found["name"])
    return str(int(found["block"]) + 1), found["path"], part


def _ratio(row: PathRow, rows: Sequence[PathRow]) -> float | None:
    """Precision of `row` over that of its layer's equivariant path, None for that path itself and without one."""
    layer = {other.path: other.precision for other in rows if other.layer == row.layer}
    reference = next((path for path in EQUIVARIANT if path in layer), row.path)
    known = row.path != reference and row.precision and layer[reference]
    return row.precision / layer[reference] if known else None


def _is_omega(part: str) -> bool:
    return part.startswith("omega")


def _largest(values: Sequence[float | None]) -> float | None:
    return None if None in values or not values else max(values)
