"""The page and the figure of the study of learned invariance."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from ellarepro.symmetry.affine import GENERATORS
from ellarepro.tables.markdown import markdown_table, sections
from scripts.lila.runs import CONTROLS, COPIES, EPOCHS, HIDDEN, MAIN, OTHERS, RANGES, SEEDS, SIZES, STARTS, Case


def degrees_of(record: dict[str, Any]) -> float | None:
    """The range of the rotation at the end; None without copies."""
    values = record["ranges"].get("range_rotation")
    if values is None:
        return record["start"] if record["arm"] == "fixed" else None
    return math.degrees(values[-1])


def page(records: Sequence[dict[str, Any]], taken: dict[str, float]) -> str:
    """study.md."""
    seconds = {arm: median([r["seconds"] for r in records if r["arm"] == arm]) for arm in ("learned", "map")}
    return sections(
        "# Does the evidence find how far digits are turned?",
        f"Made by `python -m scripts.lila`: {len(records)} records. A perceptron of {HIDDEN} tanh units on digits "
        f"of 16x16 pixels averages over {COPIES} copies. It trains for {EPOCHS} epochs. Ranges are in degrees.",
        "## Learned ranges, from both sides",
        "Each data range has a run from each start, for each seed. *Chosen* is the run with the better evidence.",
        _recovered(records),
        "## Controls",
        _controls(records),
        "## All six transformations",
        _all_six(records),
        "## Few data",
        "Digits that are not turned, without copies and with six learned ranges. One seed.",
        _by_size(records),
        "## Cost",
        f"One gradient in the ranges takes {taken['gradient'] / taken['exact fit']:.2f} times an exact fit. A run with "
        f"{COPIES} learned copies takes {seconds['learned'] / seconds['map'] / COPIES:.2f} x {COPIES} times a MAP run. "
        "Both are ratios of processor time on a loaded machine.",
    )


def _recovered(records: Sequence[dict[str, Any]]) -> str:
    lines = [
        ["data", "seed", *(f"from {start}" for start in STARTS), "chosen", "evidence (nats)", "accuracy (%)", "NLL"]
    ]
    for degrees in RANGES:
        for seed in SEEDS:
            cases = [c for c in MAIN if (c.degrees, c.seed) == (degrees, seed)]
            own = [r for c in cases for r in records if _is(r, c)]
            if len(own) == len(STARTS):
                best = min(own, key=lambda r: r["evidence"])
                numbers = [f"{degrees_of(r):.0f}" for r in (*own, best)]
                scores = [f"{best['evidence']:.3f}", f"{100 * best['accuracy']:.1f}", f"{best['nll']:.3f}"]
                lines.append([str(degrees), str(seed), *numbers, *scores])
    return markdown_table(lines, labels=2)


def _controls(records: Sequence[dict[str, Any]]) -> str:
    lines = [["data", "arm", "start", "range at the end", "evidence (nats)", "accuracy (%)", "NLL"]]
    for case in (c for c in CONTROLS if c.seed == SEEDS[0]):
        own = [r for c in CONTROLS if (c.arm, c.degrees, c.start) == (case.arm, case.degrees, case.start)
               for r in records if _is(r, c)]  # fmt: skip
        ranges = [degree for r in own if (degree := degrees_of(r)) is not None]
        evidence = [r["evidence"] for r in own if r["evidence"] is not None]
        scores = [_mean([100 * r["accuracy"] for r in own], 1), _mean([r["nll"] for r in own], 3)]
        copies = str(case.start) if case.arm in ("fixed", "loss") else "–"
        lines.append([str(case.degrees), case.arm, copies, _mean(ranges, 0), _mean(evidence, 3), *scores])
    return markdown_table(lines, labels=2)


def _all_six(records: Sequence[dict[str, Any]]) -> str:
    names = list(GENERATORS)
    lines = [["data", "strength", *names]]
    for case in OTHERS:
        for record in (r for r in records if _is(r, case)):
            last = {name: record["ranges"][f"range_{name}"][-1] for name in names}
            moved = f"{case.degrees}" if case.data == "turned_digits" else "0.5"
            lines.append([case.data, moved, *(f"{last[name]:.2f}" for name in names)])
    return "Shifts in half images, the rotation in radians.\n\n" + markdown_table(lines, labels=2)


def _by_size(records: Sequence[dict[str, Any]]) -> str:
    lines = [["images", "arm", "evidence (nats)", "accuracy (%)", "NLL"]]
    for case in SIZES:
        for record in (r for r in records if _is(r, case)):
            evidence = "–" if record["evidence"] is None else f"{record['evidence']:.3f}"
            scores = [evidence, f"{100 * record['accuracy']:.1f}", f"{record['nll']:.3f}"]
            lines.append([str(case.size), case.arm, *scores])
    return markdown_table(lines, labels=2)


def _mean(values: Sequence[float], digits: int) -> str:
    """Mean, and the range over seeds in brackets."""
    if not values:
        return "–"
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{ends}"


def _is(record: dict[str, Any], case: Case) -> bool:
    return all(record[key] == value for key, value in asdict(case).items())


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """Ranges over training, a panel a range of the data."""
    figure = Figure(figsize=(11.0, 3.2), layout="constrained")
    figure.suptitle(
        "The learned range of rotations over training; a line a seed and start; dashed: the range of the data"
    )
    panels = figure.subplots(1, len(RANGES), sharey=True)
    for axes, degrees in zip(panels, RANGES, strict=True):
        for record in (r for c in MAIN if c.degrees == degrees for r in records if _is(r, c)):
            colour = "#0072B2" if record["start"] == STARTS[0] else "#D55E00"
            axes.plot([math.degrees(value) for value in record["ranges"]["range_rotation"]], color=colour, alpha=0.7)
        axes.axhline(degrees, color="#333333", linestyle="--", linewidth=1)
        axes.set_title(f"digits turned by ±{degrees}°")
        axes.set_xlabel("fit")
    panels[0].set_ylabel("range in degrees")
    return figure
