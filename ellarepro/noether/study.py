"""The runs of a budget as tables."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ellarepro.figures.generators import main_records
from ellarepro.tables.markdown import markdown_table

PUBLISHED = {
    ("oscillators", "plain"): (-6.77, 2.14e-5),
    ("oscillators", "learned"): (-9.63, 9.9e-6),
    ("oscillators", "oracle"): (-9.94, 9.0e-6),
    ("bodies", "plain"): (-9.52, 1.6e-3),
    ("bodies", "learned"): (-12.81, 6e-4),
    ("bodies", "oracle"): (-11.32, 6e-4),
}
"""-ELBO/N in nats and test MSE, at the published size."""
SYMMETRIES = ("plain", "learned", "oracle")
Records = Mapping[str, Any]


def study(records: Records) -> str:
    """The page of all runs of a budget."""
    blocks = [
        "# Noether's razor: the runs",
        *_algebras(records),
        *_controls(records),
        *_closed(records),
        *_bounded(records),
    ]
    return "\n\n".join(blocks) + "\n"


def _algebras(records: Records) -> Iterator[str]:
    lines = [
        (
            "",
            "seeds",
            "largest angle, degrees: median",
            "worst",
            "within 1",
            "gap of singular values",
            "asymmetry",
            "CPU s a run",
        )
    ]
    for n in range(1, 6):
        own = main_records(records, n)
        if own:
            lines.append(
                (
                    f"U({n})",
                    str(len(own)),
                    *_angle_cells(own),
                    _mean(own, "asymmetry", ".4f"),
                    _mean(own, "cpu_seconds", ".1f"),
                )
            )
    yield "## The algebra of n oscillators"
    yield markdown_table(lines, labels=1)


def _angle_cells(own: Sequence[Any]) -> tuple[str, ...]:
    """Median and worst largest angle, how many are within a degree, and the smallest ratio of singular values."""
    largest = sorted(max(record["angles"]) for record in own)
    gaps = [record["singular_values"][len(record["angles"]) - 1 :] for record in own]
    within = sum(angle <= 1 for angle in largest)
    gap = min(values[0] / values[1] for values in gaps)
    return f"{largest[len(largest) // 2]:.2f}", f"{largest[-1]:.2f}", f"{within} of {len(own)}", f"{gap:.0f}"


def _controls(records: Records) -> Iterator[str]:
    lines = [("control", "seeds", "largest angle: median", "worst", "within 1", "gap of singular values")]
    for label, part in (
        ("two oscillators, q and p stretched by 1.5 and 1 / 1.5", "-stretch1.5-"),
        ("one oscillator, noise of variance 0.001 as published", "-noise0.0316228-"),
        ("two oscillators, the evidence of each step's flows in place of the bound", "-drawsinf-"),
    ):
        own = [record for name, record in records.items() if part in name]
        if own:
            lines.append((label, str(len(own)), *_angle_cells(own)))
    if len(lines) > 1:
        yield "## Controls"
        yield markdown_table(lines, labels=1)


def _closed(records: Records) -> Iterator[str]:
    lines = [("", "seeds", "minus the bound, nats a datum", "minus the log evidence", "test MSE", "asymmetry")]
    for symmetry in SYMMETRIES:
        own = [r for name, r in records.items() if name.startswith(f"u3-{symmetry}-") and r["config"]["seed"] < 3]
        if own:
            keys = ("neg_bound_per_datum", "neg_log_evidence_per_datum", "test_mse", "asymmetry")
            lines.append((symmetry, str(len(own)), *(_mean(own, key, ".3g") for key in keys)))
    if len(lines) > 1:
        yield "## Three oscillators, the evidence in closed form"
        yield markdown_table(lines, labels=1)


def _bounded(records: Records) -> Iterator[str]:
    for system, title in (("oscillators", "Three oscillators"), ("bodies", "Three bodies")):
        lines = [
            (
                "",
                "seeds",
                "-ELBO/N",
                "NLL/N",
                "KL/N",
                "test MSE",
                "asymmetry",
                "published -ELBO/N",
                "published test MSE",
            )
        ]
        for symmetry in SYMMETRIES:
            own = [record for name, record in records.items() if name.startswith(f"vi-{system}-{symmetry}-")]
            if own:
                keys = ("neg_elbo_per_datum", "nll_per_datum", "kl_per_datum", "test_mse", "asymmetry")
                bound, error = PUBLISHED[system, symmetry]
                cells = (_mean(own, key, ".3g") for key in keys)
                lines.append((symmetry, str(len(own)), *cells, f"{bound}", f"{error:.2g}"))
        if len(lines) > 1:
            yield f"## {title}, variational inference"
            yield markdown_table(lines, labels=1)


def _mean(records: Sequence[Any], key: str, form: str) -> str:
    """Mean ± standard deviation over seeds."""
    values = [record[key] for record in records]
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
