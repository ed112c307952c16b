"""The page and the figure of the study of learned invariance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from ellarepro.symmetry.affine import GENERATORS
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables.markdown import markdown_table, sections
from scripts.lila.runs import (
    ARMS,
    BESIDE,
    CONTROLS,
    COPIES,
    EPOCHS,
    HIDDEN,
    LOSSES,
    MAIN,
    OTHERS,
    RANGES,
    SEEDS,
    SIDES,
    SIZES,
    STARTS,
    Case,
)

MOVED_BY = {"shifted_digits": 0.5 / 180, "scaled_digits": 1 / 180}
"""The right range of a case, over its `degrees`."""
PARTS = {"FC": "fc", "CONV": "conv", "copies": "copies"}
"""What is taken away from a network, by title."""
Table = Callable[[Sequence[dict[str, Any]]], str]


def degrees_of(record: dict[str, Any]) -> float | None:
    """The range of the rotation at the end; None without copies."""
    values = record["ranges"].get("range_rotation")
    if values is None:
        return record["start"] if record["arm"] == "fixed" else None
    return math.degrees(values[-1])


def page(records: Sequence[dict[str, Any]], taken: dict[str, dict[str, float]]) -> str:
    """study.md."""
    gradients = {name: part["gradient"] / part["exact fit"] for name, part in taken.items() if name != "run"}
    return sections(
        "# Does the evidence find how far digits are turned?",
        f"Made by `python -m scripts.lila`: {len(records)} records. A perceptron of {HIDDEN} tanh units on digits "
        f"of 16x16 pixels averages over {COPIES} copies. It trains for {EPOCHS} epochs. Ranges are in degrees. "
        "*Evidence* is the negative log marginal likelihood a digit: less is better.",
        "## Learned ranges, from both sides",
        "Each data range has a run from each start, for each seed. *Chosen* is the run with the better evidence.",
        _recovered(records),
        "## Controls",
        _controls(records),
        *_if_run("## Labels that a rotation changes", SIDES, _sides, records),
        *_if_run("## All six transformations", OTHERS, _all_six, records),
        *_if_run("## Few data", SIZES, _by_size, records),
        *_if_run("## Learned layers beside learned invariance", BESIDE, _beside, records),
        "## Cost",
        f"One gradient in the ranges takes {_times(gradients)} an exact fit. A run of the perceptron with {COPIES} "
        f"learned copies takes {taken['run']['learned'] / taken['run']['map'] / COPIES:.2f} x {COPIES} times its MAP "
        "run. These are ratios of processor time on a loaded machine.",
    )


def _times(ratios: dict[str, float]) -> str:
    return " and ".join(f"{ratio:.2f} times (of {name})" for name, ratio in ratios.items())


def _if_run(title: str, cases: Sequence[Case], table: Table, records: Sequence[dict[str, Any]]) -> list[str]:
    """The section of a table, where any of its cases were run."""
    return [title, table(records)] if any(_is(r, case) for case in cases for r in records) else []


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
        own = _alike(records, case)
        copies = str(case.start) if case.arm in ("fixed", *LOSSES) else "–"
        ends = _mean([degrees_of(r) for r in own], 0)
        lines.append([str(case.degrees), case.arm, copies, ends, *_scores(own, 3)])
    about = (
        "*map* and *none* have no copies, *map* no learned precisions. A *fixed* range stays as it starts. *loss* "
        "learns it by the training loss. *reward* and *large_reward* take {reward} and {large_reward} nats a radian "
        "from that loss (Augerino)."
    )
    return about.format(**LOSSES) + "\n\n" + markdown_table(lines, labels=2)


def _sides(records: Sequence[dict[str, Any]]) -> str:
    lines = [["seed", "arm", "start", "range at the end", "evidence (nats)", "accuracy (%)", "NLL"]]
    for case in SIDES:
        for record in (r for r in records if _is(r, case)):
            start = str(case.start) if case.arm == "learned" else "–"
            lines.append([str(case.seed), case.arm, start, _mean([degrees_of(record)], 1), *_scores([record], 3)])
    about = "Each digit is turned by 20 degrees to a side. Labels are digit and side, so the right range is zero."
    return f"{about}\n\n{markdown_table(lines, labels=2)}"


def _all_six(records: Sequence[dict[str, Any]]) -> str:
    names = list(GENERATORS)
    lines = [["data", "moved by", *names]]
    for case in (c for c in OTHERS if c.seed == SEEDS[0]):
        own = _alike(records, case)
        moved = (
            f"{case.degrees} degrees" if case.data == "turned_digits" else f"{MOVED_BY[case.data] * case.degrees:.1f}"
        )
        ranges = ([r["ranges"][f"range_{name}"][-1] for r in own] for name in names)
        lines.append([case.data, moved, *(_mean(last, 2) for last in ranges)])
    about = "Shifts in half images, the rotation in radians, scales as logarithms. Means over seeds, and ends."
    return f"{about}\n\n{markdown_table(lines, labels=2)}"


def _by_size(records: Sequence[dict[str, Any]]) -> str:
    lines = [["images", "arm", "evidence (nats)", "accuracy (%)", "NLL"]]
    for case in (c for c in SIZES if c.seed == SEEDS[0]):
        own = _alike(records, case)
        lines.append([str(case.size), case.arm, *_scores(own, 3)])
    about = "Digits that are not turned, without copies and with six learned ranges. Means over seeds, and ends."
    return f"{about}\n\n{markdown_table(lines, labels=2)}"


def _beside(records: Sequence[dict[str, Any]]) -> str:
    """Scores with what is lost without a part, and ranges; a row an arm of a data set, over its seeds."""
    learned = {"map": "nothing", "laplace": "precisions", "lila": "precisions, ranges"}
    scores = [["data", "layer", "learned", "evidence (nats)", "accuracy (%)", "NLL", *map("without {}".format, PARTS)]]
    ranges = [["data", "layer", *GENERATORS]]
    for case in (c for c in BESIDE if c.seed == SEEDS[0]):
        own = _alike(records, case)
        arm = ARMS[case.arm]
        labels = [case.data, layer_title("_".join(arm.paths))]
        lost = [_mean([r["lost"][part] for r in own if part in r["lost"]], 1) for part in PARTS.values()]
        scores.append([*labels, learned[arm.objective], *_scores(own, 2), *lost])
        if arm.objective == "lila":
            ranges.append(
                [*labels, *(_mean([r["ranges"][f"range_{name}"][-1] for r in own], 2) for name in GENERATORS)]
            )
    about = (
        "One layer on 4x4 patches of 4x4 pixels, GELU, a mean over positions, and a linear readout. FC, CONV or their "
        "mean, trained on 1,000 digits. *Without* a part: the points of test accuracy that are then lost. Ranges start "
        "at 0.1. The digits are turned by 1.57 radians, or shifted by 0.5 half images. Means over seeds, and ends."
    )
    return "\n\n".join((about, markdown_table(scores, labels=3), markdown_table(ranges, labels=2)))


def _scores(records: Sequence[dict[str, Any]], digits: int) -> list[str]:
    """Evidence, accuracy and NLL."""
    evidence, nll = (_mean([r[name] for r in records], digits) for name in ("evidence", "nll"))
    return [evidence, _mean([100 * r["accuracy"] for r in records], 1), nll]


def _mean(values: Sequence[float | None], digits: int) -> str:
    """Mean of those that there are, and the range over seeds in brackets."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = f" ({min(known):.{digits}f} to {max(known):.{digits}f})" if len(known) > 1 else ""
    return f"{sum(known) / len(known):.{digits}f}{ends}"


def _alike(records: Sequence[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """The records of a case, one a seed."""
    return [r for r in records if _is(r | {"seed": case.seed}, case)]


def _is(record: dict[str, Any], case: Case) -> bool:
    return all(record[key] == value for key, value in asdict(case).items())


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """Ranges over training, a panel a range of the data."""
    figure = Figure(figsize=(11.0, 3.2), layout="constrained")
    figure.suptitle(
        f"Learned range of rotations; dashed: that of the data; a line a run, from {STARTS[0]} degrees (blue), from "
        f"{STARTS[1]} (orange)"
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
