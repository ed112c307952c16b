"""The study of learned invariance: what docs/objectives.md says of it is what its records say."""

import json
from collections.abc import Iterable, Iterator
from math import degrees
from pathlib import Path
from statistics import fmean

import numpy as np

from ellarepro.results import read_results, unpacked
from ellarepro.symmetry.affine import GENERATORS

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "lila" / "records"
PAGE = " ".join((ROOT / "docs" / "objectives.md").read_text().split())
COPIES = 8
"""Of an image, in every run of the study."""
MOVED = {
    "turned_digits": "turned",
    "shifted_digits": "shifted",
    "quadrant_digit": "quadrants, digit",
    "quadrant_digit_and_position": "quadrants, digit and quadrant",
}
LEARNED = {"neither": "fc", "layers": "fc_conv", "invariance": "fc_ranges", "both": "fc_conv_ranges", "CONV": "conv"}
"""What is learned beside the precisions, to the arm of results/lila."""


def of_lila(arm: str, **wanted: str | int) -> list[dict]:
    """The records of an arm of results/lila, by seed."""
    records = [
        json.loads(path.read_text()) for path in sorted((ROOT / "results" / "lila" / "records").glob(f"{arm}-*.json"))
    ]
    found = [record for record in records if all(record[key] == value for key, value in wanted.items())]
    assert sorted(record["seed"] for record in found) == [0, 1, 2]
    return sorted(found, key=lambda record: record["seed"])


def ends(values: Iterable[float], digits: int) -> str:
    known = sorted(values)
    return f"{known[0]:.{digits}f} to {known[-1]:.{digits}f}"


def last_ranges(runs: list[dict], *names: str) -> list[float]:
    """The `names`d ranges of some runs at their end."""
    return [run["ranges"][f"range_{name}"][-1] for run in runs for name in names]


def of_layers_beside_invariance() -> Iterator[str]:
    runs = {(data, name): of_lila(arm, data=data) for data in MOVED for name, arm in LEARNED.items()}
    for data, title in MOVED.items():
        own = [
            [fmean(run[score] for run in runs[data, name]) for score in ("evidence", "accuracy")] for name in LEARNED
        ]
        cells = [f"{evidence:.2f}, {100 * accuracy:.0f}%" for evidence, accuracy in own]
        points = 100 * fmean(run["accuracy"] for run in of_lila("fc_conv_map", data=data))
        yield f"| {title} | {' | '.join(cells)} | {points:.0f}% |"

    def lost(data: str, name: str, part: str) -> str:
        return ends((run["lost"][part] for run in runs[data, name]), 1)

    turned, shifted, digit, position = MOVED
    others = ("scale_x", "scale_y", "shear")
    ranged = {data: runs[data, "invariance"] + runs[data, "both"] for data in MOVED}
    yield f"The range of the rotation ends at {ends(last_ranges(ranged[turned], 'rotation'), 2)} radians, for 1.57"
    yield f"the other ranges at most at {max(last_ranges(ranged[turned], 'shift_x', 'shift_y', *others)):.2f}"
    off = max(abs(run["lost"]["conv"]) for name in ("layers", "both") for run in runs[turned, name])
    yield f"CONV is switched off: at most {off:.1f} points are lost without it"
    ends_at = [ends(last_ranges(ranged[shifted], name), 2) for name in ("shift_x", "shift_y")]
    yield f"The two shifts end at {ends_at[0]} and at {ends_at[1]}, for 0.50"
    yield f"the other ranges at most at {max(last_ranges(ranged[shifted], 'rotation', *others)):.2f}"
    yield f"{lost(shifted, 'both', 'copies')} points are lost without copies"
    yield f"{lost(shifted, 'both', 'conv')} without CONV, and {lost(shifted, 'both', 'fc')} without FC"
    named = ("shift_x", "shift_y", "rotation", *others)
    yield f"no range ends above {max(last_ranges(ranged[digit] + ranged[position], *named)):.2f}"
    yield f"loses {lost(digit, 'layers', 'conv')} points without CONV and {lost(digit, 'layers', 'fc')} without FC"
    yield f"loses {lost(position, 'layers', 'fc')} points without FC, {lost(position, 'layers', 'conv')} without CONV"
    nll = {d: [fmean(r["nll"] for r in of_lila(arm, data=d)) for arm in ("fc_conv_map", "fc_conv")] for d in MOVED}
    yield f"lower test NLL than *layers* on {sum(one < other for one, other in nll.values())} of {len(nll)} data sets"
    agree = []
    for data in MOVED:
        for seed in range(3):
            best = [min(LEARNED, key=lambda n: runs[data, n][seed][score]) for score in ("evidence", "nll")]
            agree.append(best[0] == best[1])
    yield f"In {sum(agree)} of {len(agree)} cases the network of best evidence has the best test NLL"


def of_augerino() -> Iterator[str]:
    for arm, reward in (("loss", "no reward"), ("reward", "0.01 nats a radian"), ("large_reward", "0.1 nats a radian")):
        found = [of_lila(arm, degrees=turned) if (arm, turned) != ("loss", 0) else [] for turned in (90, 0)]
        told = [ends(map(degrees, last_ranges(runs, "rotation")), 0) if runs else "–" for runs in found]
        yield f"| {reward} | {' | '.join(told)} |"
    nll = {(arm, d): [r["nll"] for r in of_lila(arm, degrees=d)] for arm in ("reward", "large_reward") for d in (90, 0)}
    yield f"the lowest test NLL of all arms, {ends(nll['large_reward', 90], 2)}"
    others = [json.loads(path.read_text()) for path in RECORDS.glob("*-rotation-turned_digits-1000.json")]
    assert min(r["nll"] for r in others if r["degrees"] == 90 and r["arm"] != "large_reward") > max(
        nll["large_reward", 90]
    )
    yield f"it has {ends(nll['large_reward', 0], 2)}, and the smaller one {ends(nll['reward', 0], 2)}"


def of_cost() -> Iterator[str]:
    taken = json.loads((RECORDS.parent / "cost.json").read_text())
    small, deep = (taken[name]["gradient"] / taken[name]["exact fit"] for name in ("the perceptron", "F-FC+CONV"))
    yield f"The gradient costs {deep:.2f} of an exact fit** for F-FC+CONV (alpha 2), and {small:.2f} for"
    yield f"{taken['run']['learned'] / taken['run']['map'] / COPIES:.2f} S times its MAP run, with S = {COPIES}"


def of_sides() -> Iterator[str]:
    near, far, none = (
        of_lila(arm, data="left_or_right", start=start)
        for arm, start in (("learned", 6), ("learned", 143), ("none", 0))
    )
    yield f"The range then ends at {ends(map(degrees, last_ranges(near, 'rotation')), 1)} degrees"
    yield f"From 143 degrees it stops at {ends(map(degrees, last_ranges(far, 'rotation')), 0)}, with the worse evidence"
    assert all(a["evidence"] < min(b["evidence"], c["evidence"]) for a, b, c in zip(near, far, none, strict=True))


def of_all_six() -> Iterator[str]:
    def found(data: str, turned: int, *right: str) -> tuple[list[float], float]:
        runs = of_lila("learned", data=data, transformations="all", degrees=turned, size=1000)
        others = set(GENERATORS) - set(right)
        return last_ranges(runs, *right), max(last_ranges(runs, *others))

    shifts, rest = found("shifted_digits", 180, "shift_x", "shift_y")
    yield f"the shifts end at {ends(shifts, 2)} for 0.5, and all others at most at {rest:.2f}"
    turns, rest = found("turned_digits", 90, "rotation")
    yield f"the rotation ends at {ends(map(degrees, turns), 0)} degrees, and all others at most at {rest:.2f}"
    scales, rest = found("scaled_digits", 72, "scale_x", "scale_y")
    yield f"both scales end at {ends(scales, 2)}, and all others at most at {rest:.2f}"
    yield f"digits have scales of {ends(found('turned_digits', 0, 'scale_x', 'scale_y')[0], 2)}"


def test_with_few_data_learned_ranges_are_better_with_each_seed():
    for size in (312, 1250, 4000):
        none, learned = (
            of_lila(arm, degrees=0, size=size, data="turned_digits", transformations=ranges)
            for arm, ranges in (("none", "rotation"), ("learned", "all"))
        )
        for one, other in zip(none, learned, strict=True):
            assert other["evidence"] < one["evidence"] and other["nll"] < one["nll"]
            assert other["accuracy"] > one["accuracy"]
        means = [fmean(run["nll"] for run in runs) for runs in (of_lila("map", degrees=0, size=size), learned)]
        assert (means[0] < means[1]) == (size < 4000)


def of_mnist() -> Iterator[str]:
    runs = {run.objective: run for run in read_results(RECORDS.parent / "mnist")}
    for name, run in runs.items():
        evidence = run.neg_log_marglik_per_datum
        error = 100 * (run.test_accuracy * (1 - run.test_accuracy) / 10000) ** 0.5
        told = f"| {100 * run.test_accuracy:.2f} ({error:.2f}) | {run.test_nll:.4f} | "
        yield f"| `{name}` {told}{'–' if evidence is None else format(evidence, '.4f')} |"
    gap = np.subtract(*(unpacked(runs[name].test_correct, 10000) for name in ("lila", "map")), dtype=float)
    yield f"It leads MAP by {100 * gap.mean():.2f} ± {gap.std():.2f} points (sampling error, paired)"
    shift, scale, *others = sorted(values[-1] for values in runs["lila"].history["hyperparameters"].values())[::-1]
    yield f"{shift:.2f} for the vertical shift and {scale:.2f} for the horizontal scale"
    yield f"The other four are at most {max(others):.2f}"


def test_the_sentences_of_the_page_are_those_of_the_records():
    said = [*of_layers_beside_invariance(), *of_augerino(), *of_cost(), *of_sides(), *of_all_six(), *of_mnist()]
    assert len(said) > 15 and not [sentence for sentence in said if sentence not in PAGE]


def test_which_of_layers_and_invariance_has_the_evidence():
    """The orders that docs/objectives.md says hold with each seed."""
    found = {(d, n): [r["evidence"] for r in of_lila(arm, data=d)] for d in MOVED for n, arm in LEARNED.items()}
    turned, shifted, digit, position = MOVED
    for seed in range(3):
        order = {data: sorted(LEARNED, key=lambda n, d=data: found[d, n][seed]) for data in MOVED}
        assert order[turned][:2] == ["invariance", "both"]
        assert order[shifted] == ["both", "invariance", "CONV", "layers", "neither"]
        assert order[digit][0] == "CONV" and found[digit, "invariance"][seed] > found[digit, "neither"][seed]
        assert set(order[position][:2]) == {"neither", "invariance"} and order[position][-1] == "CONV"
