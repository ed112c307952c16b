"""Whether evidence and test agree, pair by pair: which pairs count and how they are counted."""

from dataclasses import replace

import pytest
from result_factory import make_config, make_result

from scripts.studies import study as studies
from scripts.studies.__main__ import main
from scripts.studies.evidence import (
    FIT_SIZES,
    LAYERS,
    SEEDS,
    SETTING,
    SETTINGS,
    SIZES,
    STUDY,
    compared,
    draw,
    kind,
    same_order,
    tasks,
)


def run(evidence: float = 1.0, nll: float = 1.0, accuracy: float = 0.5, train_size: int = 4000, **config):
    return make_result(
        make_config(**config),
        neg_log_marglik_per_datum=evidence,
        test_nll=nll,
        test_accuracy=accuracy,
        train_size=train_size,
    )


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({"seed": 2}, SEEDS),
        ({"layer": {"name": "conv"}}, LAYERS),
        ({"layer": {"name": "s_fc"}, "prior": {"name": "u", "anchors": "learned"}}, LAYERS),
        ({"layer": {"name": "gconv"}, "group": "c4", "alpha": 1}, LAYERS),
        ({"layer": {"name": "conv"}, "objective": {"fit_size": 4000}}, FIT_SIZES),
        ({"objective": {"fit_size": 4000}}, SETTING),
        ({"relaxation": 1.0}, SETTING),
        ({"alpha": 1}, SETTING),
        ({"alpha": 1, "epochs": 3}, SETTINGS),
        ({"train_size": 1000}, SIZES),
        ({}, None),
        ({"layer": {"name": "conv"}, "seed": 2}, None),
        ({"layer": {"name": "conv"}, "epochs": 3}, None),
        ({"relaxation": 1.0, "seed": 2}, None),
        ({"output_dir": "elsewhere"}, None),
    ],
)
def test_two_runs_are_a_pair_by_what_they_differ_in(own, wanted):
    assert kind(run(), run(**own)) == kind(run(**own), run()) == wanted


@pytest.mark.parametrize(("nll", "wanted"), [(0.4, True), (0.6, False), (0.5, False)])
def test_the_better_evidence_is_the_smaller_number(nll, wanted):
    better, worse = run(evidence=1.0, nll=nll), run(evidence=2.0, nll=0.5)
    assert same_order(better, worse, [nll, 0.5]) is same_order(worse, better, [0.5, nll]) is wanted


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_the_page_counts_pairs_by_data_set_and_by_what_differs():
    # Evidence and accuracy order these three as 1, 2, 3, NLL as 1, 3, 2.
    seeds = [run(e, nll, acc, seed=i) for i, (e, nll, acc) in enumerate([(1, 0.1, 0.9), (2, 0.3, 0.8), (3, 0.25, 0.7)])]
    conv = run(0.5, 0.5, 0.95, seed=0, layer={"name": "conv"})
    elsewhere = run(9, 9, 0.1, dataset={"name": "quadrant_digit_and_position"})
    text = STUDY.page([*seeds, conv, elsewhere], reading="Mine.\n")
    assert "5 committed runs" in text and text.endswith("Mine.\n")
    found = rows(text)
    assert found[2:6] == [
        ["quadrant_digit (demo)", SEEDS, "3", "3", "2", "3"],
        ["quadrant_digit (demo)", LAYERS, "1", "2", "0", "1"],
        ["all", SEEDS, "3", "3", "2", "3"],
        ["all", LAYERS, "1", "2", "0", "1"],
    ]
    assert found[8:] == [["0.03 to 0.1", "1", "2", "0", "1"], ["0.1 to 0.3", "2", "3", "2", "2"]], "seeds by their gap"
    assert "order differently" not in text, "CONV has the better evidence and the higher accuracy"


def test_layer_types_that_accuracy_orders_otherwise_are_named():
    text = STUDY.page([run(1.0, accuracy=0.8), run(2.0, accuracy=0.9, layer={"name": "conv"})])
    assert rows(text)[-2:] == [["-" * len("CONV and FC"), "----:"], ["CONV and FC", "1"]]
    assert "order differently" in text


def test_runs_that_only_guess_or_have_no_evidence_are_not_compared():
    learned, stuck = run(seed=1), replace(run(seed=2), history={"epoch": [1], "loss": [2.3]})
    neither = replace(run(seed=3), neg_log_marglik_per_datum=None)
    assert compared([learned, stuck, neither]) == [learned]


def test_augmented_data_and_budgets_are_tasks_of_their_own():
    augmented = run(seed=2, dataset={"augment": True})
    assert list(tasks([run(), augmented, run(budget={"name": "cpu"})])) == [
        "quadrant_digit (cpu)",
        "quadrant_digit (demo)",
        "quadrant_digit, augmented (demo)",
    ]


def test_the_figure_has_a_panel_a_task_that_can_be_compared_and_all_its_runs():
    runs = [run(seed=1), run(seed=2), run(layer={"name": "conv"}), run(dataset={"name": "mnist"})]
    figure = draw(runs)
    shown = {axes.get_title(): sum(len(dots.get_offsets()) for dots in axes.collections) for axes in figure.axes}
    assert {title: count for title, count in shown.items() if title} == {"quadrant_digit (demo)": 3}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"FC", "CONV"}


def test_it_refuses_to_write_a_page_of_nothing_and_keys_for_runs_that_it_does_not_make(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    assert main(["evidence"]) == 2 and "no run of the study is finished there" in capsys.readouterr().err
    assert main(["evidence", "seed=1"]) == 2 and "runs nothing" in capsys.readouterr().err
