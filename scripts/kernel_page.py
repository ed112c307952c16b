"""The page of the kernel study: networks ranked by each curvature beside the test (`kernel_study.py`).

It is made of the records in results/kernel/ and ends with reading.md, a person's words.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ellarepro.data.moved_digits import SYMMETRIES
from ellarepro.figures.canvas import save
from ellarepro.resume.files import write_atomically
from ellarepro.tables.markdown import markdown_table, sections

BLOCKS = ("kron", "kron_blockwise", "diag")
CURVATURES = (*BLOCKS, "exact")
NLLS = {
    "test_nll": "test NLL",
    "linearised_nll": "linearised test NLL, posterior of kron",
    "linearised_exact_nll": "linearised test NLL, exact posterior",
}
QUESTIONS = {
    "Layer types of Table 1, all measured on all images": ("fc", "conv", "start_0.01"),
    "Starts of F-FC, tied and untied": ("start_0.01", "start_0.01_untied", "start_0.1", "start_0.1_untied", "kron"),
    "Networks of the symmetry study": tuple(SYMMETRIES),
}
"""Variants that are compared beside the ranking of seeds."""
FAR = 0.1
"""Test NLLs of a pair that is far apart."""
NAMES = {"fc": "FC", "conv": "CONV", "start_0.01": "F-FC+CONV, 0.01 start", "kron": "neutral start"}
FEW = 100
"""Images whose rows are all taken for the log-determinants of layers."""
GAPS = (0.0, 0.02, 0.05, 10.0)
"""Between the test NLLs of a pair."""


def report(folder: Path) -> None:
    """Write study.md and study.png in `folder` from the records there."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*-s[0-9]*.json"))]
    write_atomically(folder / "study.md", page(runs, folder).encode())
    save(draw([run for run in runs if "bounds" in run]), folder / "study.png")


def page(runs: Sequence[dict[str, Any]], folder: Path) -> str:
    """study.md: the runs, how each curvature ranks them, and what layers are charged."""
    known = [run for run in runs if "bounds" in run]
    by_kron = [run for run in known if run["variant"] == "kron"]
    reading = folder / "reading.md"
    return sections(
        "# Who is wrong, the blocks or the evidence?",
        "Made by `python -m scripts.kernel_study report`: F-FC+CONV (alpha 3) on 4,000 images of `quadrant_digit`, "
        "`budget=demo` from the neutral start. -evidence in nats a datum at the precisions of training; exact: "
        "bounds with the exact curvature (docs/curvature.md, The kernel form). Without F-FC: change of test accuracy, "
        "in points, when the output of F-FC is its mean in all layers. Linearised: by 20 functions drawn from the "
        "posterior of `kron`; exact: from that of the kernel of the drawn rows.",
        markdown_table(list(_run_lines([run for run in runs if run["variant"] in ("kron", "kernel")])), labels=2),
        "![-evidence by each curvature beside the test NLL](study.png)",
        "## Do curvatures rank runs as the test does?",
        "Runs that were learned by `kron`: Spearman's rank correlation of -evidence and test NLL, and the pairs that "
        "are ranked alike, by how far apart the two are in test NLL. p is the chance of a correlation at least as "
        "large, of either sign, by Student's t. Exact: the middle of the bounds.",
        *(markdown_table(list(_rank_lines(by_kron, nll)), labels=1) for nll in NLLS),
        *_alike_lines(by_kron),
        *(part for heading, variants in QUESTIONS.items() for part in _question(heading, variants, known)),
        *_pair_lines([[run for run in known if run["variant"] == symmetry] for symmetry in SYMMETRIES]),
        "## Width of the bounds, of the log-determinant and in nats a datum",
        "By rows that meet and rows drawn beside them; what stands behind a ± is a standard error.",
        markdown_table(list(_width_lines(folder)), labels=2),
        *_large_lines(folder),
        f"## What layers are charged, on {FEW} images",
        "Log-determinants of each layer as if it were all, mean over runs by `kron`, and of the whole network.",
        *([markdown_table(list(_charge_lines(by_kron)), labels=1)] if by_kron else ()),
        reading.read_text() if reading.exists() else "",
    )


def draw(runs: Sequence[dict[str, Any]]) -> Figure:
    """The figure: -evidence beside the test NLL, a panel a curvature, a dot a run; lines are bounds."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(CURVATURES), sharey=True), CURVATURES, strict=True):
        for variant, marker in (("kron", "o"), ("kernel", "s")):
            own = [run for run in runs if run["variant"] == variant]
            found, nll = [evidence(run, name) for run in own], [run["test_nll"] for run in own]
            apart = [(run["bounds"][1] - run["bounds"][0]) / 2 if name == "exact" else 0 for run in own]
            axes.errorbar(found, nll, xerr=apart, fmt=marker, label=f"learned by {variant}")
        axes.set(title=name, xlabel="-evidence, nats a datum")
    figure.axes[0].set_ylabel("test NLL, nats")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def evidence(run: dict[str, Any], name: str) -> float:
    """-evidence of a run by one of `CURVATURES`; of the exact one, the middle of its bounds."""
    return fmean(run["bounds"]) if name == "exact" else run["at_training"][name]


def _run_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield [
        "learned by",
        "seed",
        "test acc. %",
        "NLL",
        "linearised",
        "exact posterior",
        *CURVATURES,
        "without F-FC",
        "CPU s",
    ]
    for run in runs:
        scores = [f"{100 * run['test_accuracy']:.1f}", f"{run['test_nll']:.3f}"]
        found = [""] * 7
        if "bounds" in run:
            lines = [f"{run['at_training'][name]:.3f}" for name in BLOCKS]
            bounds, without = "{:.3f} to {:.3f}".format(*run["bounds"]), f"{100 * run['without']['f_fc']:+.1f}"
            nlls = [f"{run[nll]:.3f}" if nll in run else "" for nll in list(NLLS)[1:]]
            found = [*nlls, *lines, bounds, without]
        yield [run["variant"], str(run["seed"]), *scores, *found, f"{run['cpu_seconds']:.0f}"]


def _rank_lines(runs: Sequence[dict[str, Any]], nll: str) -> Iterator[list[str]]:
    gaps, runs = list(zip(GAPS, GAPS[1:], strict=False)), [run for run in runs if nll in run]
    heads = [f"{low:g} to {high:g} nats" if high < GAPS[-1] else f"above {low:g} nats" for low, high in gaps]
    yield [f"-evidence by, {NLLS[nll]} ({len(runs)} runs)", "rank correlation", "p", "pairs", *heads]
    if len(runs) < 2:
        return
    nlls = [run[nll] for run in runs]
    for name in CURVATURES:
        found = [evidence(run, name) for run in runs]
        pairs = pairs_of(nlls, found)
        parts = [[same for gap, same in pairs if low <= gap < high] for low, high in [(0, GAPS[-1]), *gaps]]
        correlation, chance = spearmanr(nlls, found)
        yield [name, f"{correlation:+.2f}", f"{chance:.3f}", *(f"{sum(part)} of {len(part)}" for part in parts)]


def pairs_of(one: Sequence[float], other: Sequence[float]) -> list[tuple[float, bool]]:
    """Of each pair, how far apart it is in `one`, and whether `other` ranks it alike."""
    found = combinations(zip(one, other, strict=True), 2)
    return [(abs(a - b), (a - b) * (c - d) > 0) for (a, c), (b, d) in found]


def _alike_lines(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    if len(runs) > 1:
        kron, exact = ([evidence(run, name) for run in runs] for name in ("kron", "exact"))
        pairs = [alike for _, alike in pairs_of(kron, exact)]
        text = f"`kron` and the exact evidence rank {sum(pairs)} of {len(pairs)} pairs alike "
        yield text + f"(rank correlation {spearmanr(kron, exact).statistic:+.2f})."


def _question(heading: str, variants: Sequence[str], runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A section on the runs of `variants`: by seed, tasks by task, the best exact evidence first."""
    part = "variant" if variants == tuple(SYMMETRIES) else "seed"
    own = sorted((r for r in runs if r["variant"] in variants), key=lambda run: (run[part], fmean(run["bounds"])))
    seeds = {run["seed"] for run in own if run["variant"] != "kron"}
    if not seeds:
        return
    yield f"## {heading}"
    lines = [["run", "seed", "test acc. %", "NLL", "kron", "exact"]]
    for run in own:
        if run["seed"] in seeds:
            scores = [
                f"{100 * run['test_accuracy']:.1f}",
                f"{run['test_nll']:.3f}",
                f"{run['at_training']['kron']:.3f}",
            ]
            name = NAMES.get(run["variant"], run["variant"].replace("_", " "))
            lines.append([name, str(run["seed"]), *scores, "{:.3f} to {:.3f}".format(*run["bounds"])])
    yield markdown_table(lines, labels=2)


def _pair_lines(groups: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    """How many pairs of runs, each of one group, have the order of their test NLLs."""
    for name in ("kron", "exact"):
        found = [([run["test_nll"] for run in runs], [evidence(run, name) for run in runs]) for runs in groups]
        pairs = [pair for tested, predicted in found for pair in pairs_of(tested, predicted)]
        far = [alike for gap, alike in pairs if gap > FAR]
        if pairs:
            text = (
                f"-evidence by `{name}` ranks {sum(alike for _, alike in pairs)} of {len(pairs)} pairs of seeds of one "
            )
            yield text + f"task as the test NLL does; of those more than {FAR} nats apart, {sum(far)} of {len(far)}."


def _width_lines(folder: Path) -> Iterator[list[str]]:
    yield ["rows", "beside", "lower", "upper", "apart a datum", "CPU s"]
    path = folder / "widths.json"
    for one in json.loads(path.read_text())["widths"] if path.exists() else ():
        ends = [f"{one[e]:.0f} ± {error:.0f}" for e, error in zip(("lower", "upper"), one["errors"], strict=True)]
        apart = f"{(one['upper'] - one['lower']) / 2 / one['data']:.3f}"
        settings = [str(one[key]) for key in ("rows", "fresh")]
        yield [*settings, *ends, apart, f"{one['cpu_seconds']:.0f}"]


def _large_lines(folder: Path) -> Iterator[str]:
    if (path := folder / "large.json").exists():
        text = "{weights:,} weights, {images} images, all rows: the exact log-determinant is {log_det:.2f}. It takes "
        text += "{cpu_seconds:.0f} CPU seconds ({seconds:.0f} s by the clock, {threads} thread) and {gigabytes:.1f} GB."
        yield text.format(**json.loads(path.read_text()))


def _charge_lines(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["layer", "kron", "exact", "ratio"]
    for layer in runs[0]["charged"]["kron"]:
        kron, exact = (fmean(run["charged"][name][layer] for run in runs) for name in ("kron", "kernel"))
        yield [layer, f"{kron:.0f}", f"{exact:.0f}", f"{kron / exact:.2f}"]
