"""The two forms of what a run learned: Markdown, CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ellarepro.inspection.rows import PathRow, has_curvature, heading, is_learned, path_rows
from ellarepro.layers.tensors import EVERYWHERE, LENGTHSCALE, WEIGHT
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import path_title
from ellarepro.tables.markdown import markdown_table

MISSING = "–"
HEADERS = ("layer", "path", "prior precision", "precision ratio", "effective number", "relative (%)", "share (%)")
COLUMNS = ("precision_ratio", "effective_number", "relative_percent", "share_percent")
CHANGES = ("nll_change", "accuracy_change", "nll_change_constant", "accuracy_change_constant")
USE_HEADERS = (
    "layer",
    "path",
    "NLL change",
    "accuracy change (points)",
    "NLL change, constant",
    "accuracy change, constant (points)",
    "prior variance ratio",
)
USE_COLUMNS = (*CHANGES, "prior_variance_ratio")

USE_NOTES = (
    "NLL change (nats a datum), accuracy change: of the test predictions, when the path's output is replaced by its "
    "mean over the training data, a map of positions; layer all: in all layers at once.",
    "constant: the same, when the output is replaced by its mean over the training data and all positions. A path that "
    "only tells the position loses nothing to the map, and all to the constant.",
    "prior variance ratio: variance of the path's output under the prior, over that of the layer's equivariant path.",
)


def markdown(result: RunResult) -> str:
    """Return the table of `result` as Markdown: a heading, a line a layer and path, notes."""
    table = markdown_table(learned_lines(result), labels=3)
    lines = ablation_lines(result)
    ablation = f"{markdown_table(lines, labels=2)}\n\n" if lines else ""
    listed = "\n".join(f"- {note}" for note in notes(result))
    return f"## {heading(result)}\n\n{table}\n\n{ablation}{listed}\n"


def comma_separated(result: RunResult) -> str:
    """Return the table of `result` as CSV: a line a layer and path; `precision.<omega>` is that of a lengthscale."""
    rows = path_rows(result)
    scales = list(dict.fromkeys(part for row in rows for part in row.lengthscales))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    learned = ("precision", *(f"precision.{part}" for part in scales), *COLUMNS)
    writer.writerow(["run_id", "layer", "path", *learned, *USE_COLUMNS])
    for row in rows:
        precisions = [row.precision, *(row.lengthscales.get(part) for part in scales)]
        numbers = [*precisions, row.ratio, row.effective, row.relative, row.share]
        numbers += [*(getattr(row, change) for change in CHANGES), row.variance_ratio]
        writer.writerow([result.run_id, row.layer, row.path, *("" if n is None else f"{n:.6g}" for n in numbers)])
    return stream.getvalue()


RENDERERS = {"md": markdown, "csv": comma_separated}


def learned_lines(result: RunResult) -> list[Sequence[str]]:
    """Return headers and a line a layer and path: precisions, effective numbers and shares."""
    return [HEADERS, *(_texts(row) for row in path_rows(result))]


def ablation_lines(result: RunResult) -> list[Sequence[str]]:
    """Return headers and a line a layer and path: what paths are used for; nothing where the result does not know."""
    lines = [
        (row.layer, path_title(row.path), *_changes(vars(row)), _number(row.variance_ratio, 2))
        for row in path_rows(result)
        if row.nll_change is not None
    ]
    lines += [
        (EVERYWHERE, path_title(path), *_changes(own), MISSING)
        for path, own in result.path_use.get(EVERYWHERE, {}).items()
    ]
    return [USE_HEADERS, *lines] if lines else []


def notes(result: RunResult) -> list[str]:
    """Return what a reader must know of the columns."""
    used = USE_NOTES if result.path_use else ()
    if not has_curvature(result):
        return [
            f"objective={result.objective}: no curvature was fitted. The precisions are fixed, not learned, and there "
            "are no effective numbers of parameters.",
            *used,
        ]
    if is_learned(result, WEIGHT):
        ratio = "precision ratio: over the layer's equivariant path, the first it has; means something within a layer."
    else:
        ratio = "The precisions of the weights were not learned, so there is no ratio."
    lines = [
        "Weights only; biases are left out.",
        "prior precision: of the factors of a path their product, as factors can trade scale; layers of a ReLU network "
        "can, too, so it is not to be compared between layers.",
        ratio,
        "effective number: sum of lambda / (lambda + precision) over the curvature's eigenvalues lambda.",
        "relative: relative effective number of parameters, the paper's: effective over actual number, mean over the "
        "path's weight tensors, in percent of the sum over the layer's paths. It favours paths with few weights.",
        "share: of the layer's effective number of weights. It favours paths with many.",
    ]
    if is_learned(result, LENGTHSCALE):
        lines.append("omega: prior precision of a lengthscale; where it is high, weights hardly vary over positions.")
    return [*lines, *used]


def _texts(row: PathRow) -> list[str]:
    precisions = {row.part: row.precision, **row.lengthscales}
    shown = [f"{part} {_scientific(value)}" for part, value in precisions.items()]
    numbers = [_number(row.ratio, 2), _number(row.effective, 1), _number(row.relative, 1), _number(row.share, 1)]
    return [row.layer, path_title(row.path), ", ".join(shown), *numbers]


def _scientific(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1e}"


def _changes(numbers: Mapping[str, Any]) -> list[str]:
    """Each of `CHANGES`: nats, or points where `numbers` has a fraction of 1. A regression has no accuracy."""
    known = ((name, numbers.get(name)) for name in CHANGES)
    return [
        MISSING if own is None else f"{100 * own:+.1f}" if "accuracy" in name else f"{own:+.3f}" for name, own in known
    ]


def _number(value: float | None, digits: int) -> str:
    """`value` with `digits` decimals, in scientific notation where that shows nothing of it or too much."""
    if value is None:
        return MISSING
    return f"{value:.{digits}f}" if value == 0 or 10**-digits <= value < 1e6 else f"{value:.1e}"
