"""The two forms of what a run learned: Markdown, CSV."""

import csv
import io

from ellarepro.inspection.rows import EQUIVARIANT, PathRow, by_path, has_curvature, heading
from ellarepro.markdown import markdown_table
from ellarepro.results import RunResult

MISSING = "–"


def markdown(result: RunResult) -> str:
    """Return the table of `result` as Markdown: a heading, a line a layer and path, notes."""
    headers = ["layer", "path", "prior precision", "effective number", "share (%)", "precision ratio"]
    table = markdown_table([headers, *(_texts(row) for row in by_path(result))], labels=3)
    listed = "\n".join(f"- {note}" for note in notes(result))
    return f"## {heading(result)}\n\n{table}\n\n{listed}\n"


def comma_separated(result: RunResult) -> str:
    """Return the table of `result` as CSV: a line a layer and path, a column `precision.<tensor>` for each kind."""
    rows = by_path(result)
    parts = list(dict.fromkeys(part for row in rows for part in row.precisions))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    named = [f"precision.{part}" for part in parts]
    writer.writerow(["run_id", "layer", "path", *named, "effective_number", "share_percent", "precision_ratio"])
    for row in rows:
        numbers = [*(row.precisions.get(part) for part in parts), row.effective, row.share, row.ratio]
        writer.writerow([result.run_id, row.layer, row.path, *("" if n is None else f"{n:.6g}" for n in numbers)])
    return stream.getvalue()


RENDERERS = {"md": markdown, "csv": comma_separated}


def _texts(row: PathRow) -> list[str]:
    precisions = {part: MISSING if value is None else f"{value:.1e}" for part, value in row.precisions.items()}
    return [
        row.layer,
        row.path,
        precisions["weight"] if list(precisions) == ["weight"] else ", ".join(map(" ".join, precisions.items())),
        _number(row.effective, 1),
        _number(row.share, 1),
        _number(row.ratio, 2),
    ]


def _number(value: float | None, digits: int) -> str:
    """`value` with `digits` decimals, in scientific notation where that shows nothing of it or too much."""
    if value is None:
        return MISSING
    return f"{value:.{digits}f}" if value == 0 or 10**-digits <= value < 1e6 else f"{value:.1e}"


def notes(result: RunResult) -> list[str]:
    if not has_curvature(result):
        return [
            f"objective={result.objective}: no curvature was fitted. The precisions are fixed, not learned, and there "
            "are no effective numbers of parameters."
        ]
    notes = [
        "Weights only; biases are left out.",
        "effective number: sum of lambda / (lambda + precision) over the curvature's eigenvalues lambda; share: of the "
        "layer's.",
    ]
    if result.prior == "omega":
        return [*notes, "prior=omega: the precisions of u are fixed, those of omega are learned; so there is no ratio."]
    return [
        *notes,
        f"precision ratio: over the layer's equivariant path (the first it has of {', '.join(EQUIVARIANT)}). Of a path "
        "with two factors the larger precision counts: a product is switched off when one of its factors is.",
    ]
