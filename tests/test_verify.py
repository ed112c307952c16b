"""A finished run is recomputed from its record, and compared within a stated tolerance."""

import dataclasses
import json
from pathlib import Path

import pytest
from smoke_runs import quiet

from ellarepro.errors import UserError
from ellarepro.results import flatten, read_result, run_id
from ellarepro.runs.trained import asked_again
from scripts.verify import OTHER_KERNELS, main, report

COMMITTED = sorted((Path(__file__).parents[1] / "results").glob("table*/*/result.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_every_committed_run_can_be_asked_for_again(file):
    result = read_result(file)
    before, today = (dict(flatten(config)) for config in (result.config, asked_again(result).record))
    assert {key: before[key] for key in before.keys() & today.keys()}.items() <= today.items()
    assert before.keys() - today.keys() <= {"optimiser.momentum"}


def test_a_run_agrees_with_itself_and_an_edited_one_does_not(tmp_path, capsys):
    folder = quiet(tmp_path).folder
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.count(": the same") == 2 + 3, "the kept weights, then the run"
    assert main([str(folder), "--weights"]) == 0
    assert capsys.readouterr().out.count(": the same") == 2
    (folder / "weights.safetensors").unlink()
    assert main([str(folder), "--weights"]) == 2 and "No such file" in capsys.readouterr().err
    record = json.loads((folder / "result.json").read_text())
    record["test_nll"] += 0.2
    (folder / "result.json").write_text(json.dumps(record))
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "NOT within 0.1" in said and OTHER_KERNELS not in said
    machine = f", {record['hardware']}\n"
    assert all(f"{word}: {record['git_commit']}" in said for word in ("recorded", "recomputed")) and machine in said
    (folder / "result.json").write_text(json.dumps(record | {"hardware": "another"}))
    assert main([str(folder)]) == 1
    assert OTHER_KERNELS in capsys.readouterr().out
    record["config"]["seed"] += 1
    (folder / "result.json").write_text(json.dumps(record))
    assert main([str(folder)]) == 2


def test_a_number_that_is_there_only_once_does_not_agree():
    result = read_result(COMMITTED[0])
    lines, agree = report(result, dataclasses.replace(result, neg_log_marglik_per_datum=None))
    assert not agree and "NOT" in lines[-1]


def test_a_configuration_that_is_another_run_today_is_refused():
    result = read_result(COMMITTED[0])
    with pytest.raises(UserError, match="belongs to another run"):
        asked_again(dataclasses.replace(result, run_id="other"))
    config = {**result.config, "gone": 1}
    with pytest.raises(UserError, match="there is no key gone any more"):
        asked_again(dataclasses.replace(result, config=config, run_id=run_id(config)))
