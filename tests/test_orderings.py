"""Orderings of the paper: which pairs count, and what ours say of them."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from result_factory import make_config, make_result

from ellarepro.results import packed, write_result
from ellarepro.tables import SPECS, build_grids
from ellarepro.tables.__main__ import main
from ellarepro.tables.orderings import KINDS, orderings, page, summary

LAYERS = ("fc", "conv", "f_fc_conv")


def toy(accuracies, seed=711, objective="laplace", dataset="quadrant_digit"):
    """Runs of Table 1, accuracies by layer."""
    return [
        make_result(
            make_config(layer={"name": layer}, seed=seed, objective={"name": objective}, dataset={"name": dataset}),
            test_accuracy=accuracy,
        )
        for layer, accuracy in accuracies.items()
    ]


def only_grid(table, runs=()):
    (grid,) = build_grids(table, list(runs))
    return grid


def kinds(table):
    found = orderings(only_grid(table))
    return {kind: sum(o.kind == kind for o in found) for kind in KINDS}


def choose(n):
    return n * (n - 1) // 2


def test_the_pairs_are_those_that_differ_in_one_thing():
    none = dict.fromkeys(KINDS, 0)
    # A task: two layers under MAP, three under Laplace, two under both.
    assert kinds("table1") == none | {"layer types": 2 * (choose(2) + choose(3)), "MAP or Laplace": 2 * 2}
    # Less one: FC and S-FC (omega) have the same NLL under Laplace, 1.319.
    rows = len(SPECS["table2"].rows)
    assert kinds("table2") == none | {"layer types": 5 * choose(rows) - 1, "MAP or Laplace": 2 * rows}
    # Rows are data sets, which are not compared; F-FC and CONV both have 8% on rotated_mnist.
    assert kinds("table3") == none | {"MAP or Laplace": 2 * 5, "shares of paths": 5 * choose(3) - 1}


@pytest.mark.parametrize("table", SPECS)
def test_the_published_numbers_are_in_the_order_of_the_paper(table):
    for ordering in orderings(only_grid(table)):
        first, second = ordering.first.published[0], ordering.second.published[0]
        assert (first < second) if ordering.first.better < 0 else (first > second)
        assert ordering.verdict is None and not ordering.clear


def test_ours_agree_or_do_not():
    # The paper: CONV 99.23, F-FC+CONV 98.86, FC 97.04.
    as_published = only_grid("table1", toy({"conv": 0.93, "f_fc_conv": 0.92, "fc": 0.91}))
    assert "layer types 3 of 3" in summary(as_published)
    reversed_ = only_grid("table1", toy({"conv": 0.91, "f_fc_conv": 0.92, "fc": 0.93}))
    assert "layer types 0 of 3" in summary(reversed_)
    one = only_grid("table1", toy({"conv": 0.92, "f_fc_conv": 0.93, "fc": 0.91}))
    assert "layer types 2 of 3" in summary(one)
    verdicts = [line.split("|")[-2].strip() for line in page([one]).splitlines() if line.startswith("| layer types")]
    assert verdicts == ["no", "yes", "yes"]


def test_equal_numbers_of_ours_are_a_tie_which_does_not_hold():
    grid = only_grid("table1", toy({"conv": 0.92, "fc": 0.92}))
    assert "layer types 0 of 1, ties 1" in summary(grid)


def sized(runs, **changes):
    return [replace(run, test_size=1000, **changes) for run in runs]


@pytest.mark.parametrize(("lead", "said"), [(0.02, "0 of 1, ties 1"), (0.03, "1 of 1"), (-0.03, "0 of 1")])
def test_of_few_seeds_accuracies_within_the_sampling_error_are_a_tie(lead, said):
    # 1,000 samples at 90%: 0.95 points each, 1.3 of the difference.
    grid = only_grid("table1", sized(toy({"conv": 0.90 + lead, "fc": 0.90})))
    assert summary(grid).endswith(f"layer types {said}")


def test_the_error_of_a_lead_is_paired_where_all_say_what_they_had_right():
    samples = np.arange(1000)
    had = {"fc": samples < 900, "conv": (samples < 900) | (samples >= 990)}
    runs = [replace(run, test_correct=packed(had[run.layer])) for run in sized(toy({"fc": 0.90, "conv": 0.91}))]
    # Ten samples that one alone has right: sqrt(10 - 10^2 / 1000) / 1000, in points.
    assert re.search(r"\| +0.31 paired \| +yes \|", page([only_grid("table1", runs)]))
    runs[0] = replace(runs[0], test_correct="")
    assert re.search(r"\| +1.31 unpaired \| +tie \|", page([only_grid("table1", runs)]))


def test_objectives_are_compared_within_a_layer_only():
    runs = [*toy({"fc": 0.90}, objective="map"), *toy({"conv": 0.80})]
    assert summary(only_grid("table1", runs)) == ""
    runs += toy({"fc": 0.95})
    # Laplace FC before MAP FC holds; CONV before FC does not.
    assert summary(only_grid("table1", runs)).endswith("MAP or Laplace 1 of 1; layer types 0 of 1")


def test_shares_are_ordered_by_size():
    shares = {"block1": {"f_fc": 5.0, "conv": 60.0, "gconv": 35.0}}
    run = make_result(
        make_config(layer={"name": "f_fc_conv_gconv"}, dataset={"name": "mnist"}),
        paths=("f_fc", "conv", "gconv"),
        relative_effective_parameters=shares,
    )
    # The paper: 10, 15, 75.
    assert "shares of paths 2 of 3" in summary(only_grid("table3", [run]))


def seeded(lead, spread, seeds=3):
    """FC and CONV over seeds: equal spreads, CONV ahead in the mean."""
    noise = [spread * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    return [run for seed, by in enumerate(noise) for run in toy({"fc": 0.9 + by, "conv": 0.9 + lead - by}, seed)]


@pytest.mark.parametrize(("gap", "said"), [(0.05, "1 clearly, 0 clearly not"), (-0.05, "0 clearly, 1 clearly not")])
def test_three_seeds_say_what_is_clear(gap, said):
    assert f"of 1 with 3 seeds {said}" in summary(only_grid("table1", seeded(gap, 0.01)))


def test_two_seeds_make_nothing_clear():
    runs = seeded(0.05, 0.001, seeds=2)
    assert summary(only_grid("table1", runs)).endswith("layer types 1 of 1")


def test_what_three_seeds_do_not_tell_apart_is_a_tie():
    # A lead of one point: t is 0.01 / sqrt(2 s^2 / 3) on four degrees of freedom, whose 5% point is 2.776.
    limit = 0.01 / 2.776 * math.sqrt(1.5)
    for spread, said in ((1.02 * limit, "0 of 1, ties 1 (of 1 with 3 seeds 0 clearly"), (0.98 * limit, "1 of 1 (of 1")):
        assert said in summary(only_grid("table1", seeded(0.01, spread)))


def test_what_the_test_set_hides_is_not_clear():
    grid = only_grid("table1", sized(seeded(0.02, 0.001)))
    assert "1 of 1 (of 1 with 3 seeds 0 clearly, 0 clearly not)" in summary(grid)


def test_the_line_stands_below_the_table_and_the_list_behind_a_flag(tmp_path, capsys):
    for run in toy({"conv": 0.91, "fc": 0.93}):
        write_result(run, tmp_path / run.run_id)
    assert main(["table1", "--runs", str(tmp_path)]) == 0
    assert "- orderings of the paper that hold here: layer types 0 of 1" in capsys.readouterr().out
    assert main(["table1", "--runs", str(tmp_path), "--orderings"]) == 0
    (line,) = re.findall(r"\| layer types .*", capsys.readouterr().out)
    assert "quadrant_digit laplace/conv" in line and line.rstrip(" |").endswith("no")
    assert main(["table1", "--orderings", "--format", "csv"]) == 2
    assert "--format" in capsys.readouterr().err


def test_nothing_run_is_said(tmp_path, capsys):
    assert main(["table2", "--runs", str(tmp_path), "--orderings"]) == 0
    assert "nothing to compare yet" in capsys.readouterr().out
