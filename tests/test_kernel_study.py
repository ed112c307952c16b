"""The study of the blocks beside the exact evidence, on a network of seconds."""

import json

import pytest
from test_cli import SMOKE

from ellarepro.errors import UserError
from scripts import kernel_page, kernel_study

TINY = [*SMOKE, "layer=f_fc_conv", "train_size=30", "epochs=2", "objective.fit_size=null", "threads=null"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_study, "FOLDER", tmp_path)
    monkeypatch.setattr(kernel_study, "FIXED", tuple(TINY))
    monkeypatch.setattr(kernel_study, "LARGE", ())
    monkeypatch.setattr(kernel_study, "WIDTHS", ((40, 20), (2000, 20)))
    return tmp_path


def test_runs_are_trained_once_measured_and_reported(folder, capsys):
    chosen = ["--variants", "kron", "--seeds", "1"]
    assert kernel_study.main(["train", *chosen]) == 0
    trained = (folder / "kron-s1.json").read_bytes()
    assert kernel_study.main(["train", *chosen]) == 0
    assert (folder / "kron-s1.json").read_bytes() == trained
    assert kernel_study.main(["measure", *chosen, "--rows", "2000"]) == 0
    record = json.loads((folder / "kron-s1.json").read_text())
    assert record.items() > json.loads(trained).items()
    lower, upper = record["bounds"]
    assert lower == upper < record["at_training"]["kron"], "blocks charge more than the exact curvature does"
    assert record["charged"]["kernel"]["whole"] < sum(v for k, v in record["charged"]["kernel"].items() if k != "whole")
    whole = sum(v for k, v in record["charged"]["kron"].items() if k != "whole")
    assert record["charged"]["kron"]["whole"] == pytest.approx(whole)
    assert kernel_study.main(["widths", *chosen]) == kernel_study.main(["large"]) == 0
    assert kernel_study.main(["train", "--variants", "conv", "--seeds", "1"]) == 0
    assert kernel_study.main(["measure", "--variants", "conv", "--seeds", "1"]) == 0
    assert kernel_study.main(["report"]) == 0
    page = (folder / "study.md").read_text()
    assert f"{lower:.3f} to {upper:.3f}" in page and "| kron " in page and "| CONV " in page
    assert all(f" {record[nll]:.3f} |" in page for nll in kernel_page.NLLS)
    drawn, every = json.loads((folder / "widths.json").read_text())["widths"]
    assert min(drawn["errors"]) > 0 and every["errors"] == [0, 0]


def test_pairs_are_counted_by_their_gap():
    def run(kron, exact, nll):
        return {"at_training": dict.fromkeys(kernel_page.BLOCKS, kron), "bounds": [exact] * 2, "test_nll": nll}

    lines = list(kernel_page._rank_lines([run(1.0, 0.5, 0.1), run(0.9, 0.6, 0.11), run(0.95, 0.7, 0.3)], "test_nll"))
    assert lines[1][1:2] + lines[1][3:] == ["-0.50", "1 of 3", "0 of 1", "0 of 0", "1 of 2"]
    assert lines[-1][1:2] + lines[-1][3:] == ["+1.00", "3 of 3", "1 of 1", "0 of 0", "2 of 2"]


def test_an_unknown_variant_is_a_message(capsys):
    with pytest.raises((SystemExit, UserError)):
        kernel_study.main(["train", "--variants", "unheard"])
