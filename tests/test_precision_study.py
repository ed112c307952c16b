"""The study of precisions: what it counts, and that the evidence is the one at the precision of training."""

import json

import pytest

from ellarepro.evidence.evaluation import evaluate
from ellarepro.runs.preparing import prepare
from ellarepro.settings.sweep import expand
from scripts import precision_study
from scripts.precision_study import KEYS, main, measured, page

TINY = ("epochs=1", "train_size=60", "test_size=40", "alpha=1", "layer=conv", "seed=711")


def record(precision: float, evidence: float, nll: float, **own):
    known = {"layer": "conv", "seed": 1, "train_nll": 0.25, "test_accuracy": 0.5}
    return known | {"precision": precision, "neg_log_marglik_per_datum": evidence, "test_nll": nll} | own


def test_pairs_of_one_network_and_seed_are_counted():
    first = [record(1, 1.0, 0.1), record(10, 2.0, 0.3), record(100, 3.0, 0.2)]
    second = [record(1, 1.0, 0.1, seed=2), record(10, 2.0, 0.2, seed=2)]
    other = [record(1, 9.0, 0.1, layer="fc")]
    lines = "\n".join(page([*first, *second, *other])).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[-2:] == [["CONV", "4", "3"], ["FC", "0", "0"]]
    assert ["CONV", "1", "1", "1.000", "0.250", "0.750", "0.100", "50.0"] in rows


def test_the_evidence_is_that_of_the_precision_of_training():
    configs = expand([*KEYS, *TINY, "prior.precision=1,100"], multirun=True).configs
    low, high = map(measured, configs)
    assert (low["precision"], high["precision"]) == (1, 100)
    assert high["neg_log_marglik_per_datum"] != pytest.approx(low["neg_log_marglik_per_datum"], rel=1e-2)
    trainer, task = prepare(configs[0])
    trainer.run()
    assert low["train_nll"] == evaluate(trainer.model, task.train).nll
    assert low["neg_log_marglik_per_datum"] > low["train_nll"], "an Occam factor costs something"


def test_main_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision_study, "RESULTS", tmp_path)
    assert main([*TINY, "prior.precision=1,10"]) == 0
    assert [run["precision"] for run in json.loads((tmp_path / "precisions.json").read_text())["runs"]] == [1, 10]
    assert "| CONV" in (tmp_path / "precisions.md").read_text()
    assert main(["layer=conf"]) == 2 and "conv" in capsys.readouterr().err
