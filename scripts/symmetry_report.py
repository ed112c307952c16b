"""What the symmetry study found, beside the truth: as a page and as a figure."""

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from ellarepro.figures import draw_shares
from ellarepro.labels import path_title

PATHS = ("f_fc", "conv", "gconv")
TRUTHS = {"none": (False, False), "translation": (True, False), "rotation": (False, True), "both": (True, True)}
"""Symmetry to whether the label is unchanged by (translation to the other place, quarter turns)."""
STRICTEST = {"none": "f_fc", "translation": "conv", "rotation": "f_fc", "both": "gconv"}


def mean_shares(record: dict[str, Any]) -> dict[str, float]:
    """Share of each path, in percent, mean over layers."""
    return {path: fmean(shares[path] for shares in record["shares"].values()) for path in PATHS}


def total_shares(record: dict[str, Any]) -> dict[str, float]:
    """Share of each path in the effective number of weights of all layers together, in percent."""
    sums = {path: sum(numbers[path] for numbers in record["effective"].values()) for path in PATHS}
    return {path: 100 * value / (sum(sums.values()) or 1.0) for path, value in sums.items()}


def contrasts(records: Sequence[dict[str, Any]], strength: float) -> tuple[list[float], list[float]]:
    """What the truth should change, in percentage points, a value a seed; positive where shares follow the truth.

    First the share of F-FC where place matters, less that where it does not; then GCONV's share of CONV and GCONV where
    turns do not matter, less that where they do.
    """
    place, turn = [], []
    for seed in sorted({record["seed"] for record in records}):
        own = {r["symmetry"]: mean_shares(r) for r in records if (r["seed"], r["strength"]) == (seed, strength)}
        if own.keys() == TRUTHS.keys():
            strict = {name: 100 * shares["gconv"] / (shares["conv"] + shares["gconv"]) for name, shares in own.items()}
            place.append(sum(own[name]["f_fc"] * (-1 if TRUTHS[name][0] else 1) for name in TRUTHS) / 2)
            turn.append(sum(strict[name] * (1 if TRUTHS[name][1] else -1) for name in TRUTHS) / 2)
    return place, turn


def page(records: Sequence[dict[str, Any]], reading: str = "") -> str:
    """study.md: what was found beside the truth as Markdown, then `reading`, a person's words."""
    seeds, commits, machines = (sorted({str(r[key]) for r in records}) for key in ("seed", "git_commit", "hardware"))
    names = [path_title(path) for path in PATHS]
    heads = ["strength", "truth", "strictest path", *names, *(f"{name}, total" for name in names)]
    heads += ["classes", "test accuracy, %", "evidence"]
    lines = [
        "# Does it find the symmetry that is there?\n",
        f"Made by `python -m scripts.symmetry_study`, whose head explains the data; seeds {', '.join(seeds)}, commit",
        f"{', '.join(commits)}, {', '.join(machines)}, {sum(r['seconds'] for r in records) / 60:.0f} minutes.\n",
        "Shares of the paths in the effective number of weights, in percent: mean over layers, and of all layers",
        "together (total); mean over seeds, range in brackets. Evidence: -log marginal likelihood in nats per datum.\n",
        f"| {' | '.join(heads)} |",
        "| --- " * len(heads) + "|",
    ]
    strengths = sorted({record["strength"] for record in records}, reverse=True)
    for strength, symmetry in product(strengths, TRUTHS):
        if own := [r for r in records if (r["symmetry"], r["strength"]) == (symmetry, strength)]:
            shares = [_cell([of(r)[path] for r in own]) for of in (mean_shares, total_shares) for path in PATHS]
            accuracy = _cell([100 * r["test_accuracy"] for r in own], 1)
            evidence = _cell([r["neg_log_marglik_per_datum"] for r in own], 2)
            cells = [f"{strength:g}", symmetry, path_title(STRICTEST[symmetry]), *shares, str(own[0]["classes"])]
            lines.append(f"| {' | '.join([*cells, accuracy, evidence])} |")
    lines += [
        "\nShares follow the truth where these are positive (percentage points, mean over layers):\n",
        "| strength | F-FC: place matters, less not | GCONV of CONV and GCONV: turns do not matter, less do |",
        "| --- | --- | --- |",
    ]
    for strength in strengths:
        lines.append(f"| {strength:g} | {' | '.join(_cell(v, 1) for v in contrasts(records, strength))} |")
    return "\n".join([*lines, *([f"\n{reading.strip()}"] if reading else [])]) + "\n"


def _cell(values: Sequence[float], digits: int = 0) -> str:
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{ends}" if values else "–"


def draw(records: Sequence[dict[str, Any]]) -> Figure:
    """The figure of `records`, means over seeds: shares beside the truth, and by layer at the largest strength."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    figure.suptitle("Does it find the symmetry that is there? Four labels of the same moved digits")
    strengths = sorted({record["strength"] for record in records})
    top, bottom = figure.subfigures(2, 1)
    truth, *found = top.subplots(1, 1 + len(strengths), sharey=True)
    draw_shares(truth, {name: {path: 100.0 * (path == STRICTEST[name]) for path in PATHS} for name in TRUTHS})
    truth.set(title="truth: strictest path that can tell the label", ylabel="share (%)")
    truth.set_xlabel("symmetry of the label (F-FC in one layer is enough)")
    for axes, strength in zip(found, strengths, strict=True):
        kept = [(r["symmetry"], mean_shares(r)) for r in records if r["strength"] == strength]
        draw_shares(axes, {name: _mean([shares for symmetry, shares in kept if symmetry == name]) for name, _ in kept})
        axes.set(title=f"learned: {strength:.0%} of images moved", xlabel="symmetry of the label")
        axes.set_ylabel("share, mean over layers (%)")
    for axes, name in zip(bottom.subplots(1, len(TRUTHS), sharey=True), TRUTHS, strict=True):
        kept = [r["shares"] for r in records if (r["symmetry"], r["strength"]) == (name, strengths[-1])]
        draw_shares(axes, {layer: _mean([shares[layer] for shares in kept]) for layer in (kept[0] if kept else {})})
        axes.set(title=f"{name}, {strengths[-1]:.0%} moved, by layer", ylabel="share of the layer (%)")
    bottom.legend(*truth.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    for axes in [*found[1:], *bottom.axes[1:]]:
        axes.set_ylabel("")
    return figure


def _mean(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    return {path: fmean(own[path] for own in shares) for path in PATHS}
