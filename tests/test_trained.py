"""A finished run gives its network, prior, data and result back; what is damaged or foreign is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from smoke_runs import config, quiet

from ellarepro import load_run
from ellarepro.config.schema import settings_of
from ellarepro.errors import UserError
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import fit
from ellarepro.runs.preparing import prepare
from ellarepro.runs.trained import WEIGHTS_FILE, digest
from ellarepro.settings.parts import FitSettings

MAP = ["objective=map"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return quiet(tmp_path_factory.mktemp("runs")).folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / folder.name)


def test_a_run_loaded_has_the_numbers_of_its_result_to_the_digit(folder):
    run = load_run(folder)
    scores, result = evaluate(run.network, run.task.test), run.result
    assert (scores.nll, scores.accuracy) == (result.test_nll, result.test_accuracy)
    assert run.prior.precisions() == result.prior_precision
    settings = FitSettings(fit_size=result.config["objective"]["fit_size"])
    evidence = fit(run.network, run.prior, run.task.train, settings).evidence(run.prior.log_precision.detach())
    assert evidence.negative_per_datum == pytest.approx(result.neg_log_marglik_per_datum, rel=1e-6)
    untrained = prepare(settings_of(result.config))[0].objective.model
    assert evaluate(untrained, run.task.test).nll != result.test_nll, "the control: without the weights"


@pytest.mark.parametrize(
    "keys",
    [["layer=f_fc_conv_gconv", "group=d4", *MAP], ["layer=s_fc_s_conv", "prior=omega"], ["layer=fc", *MAP]],
    ids=lambda keys: keys[0],
)
def test_every_kind_of_parameter_and_buffer_comes_back(tmp_path, keys):
    folder = quiet(tmp_path, *keys).folder
    run = load_run(folder / "result.json")
    scores = evaluate(run.network, run.task.test)
    assert (scores.nll, scores.accuracy) == (run.result.test_nll, run.result.test_accuracy)


def test_weights_that_are_not_kept_are_missed_by_name_and_leave_the_id_alone(tmp_path):
    without = config(tmp_path, "keep_weights=false")
    assert without.run_id == config(tmp_path).run_id
    folder = quiet(tmp_path, "keep_weights=false").folder
    assert not (folder / WEIGHTS_FILE).exists()
    with pytest.raises(UserError, match="no weights were kept of .*keep_weights=false.*force=true"):
        load_run(folder)
    kept = quiet(tmp_path, "force=true").folder / WEIGHTS_FILE
    assert load_run(folder).result.weights_digest == digest(kept.read_bytes())
    quiet(tmp_path, "force=true", "keep_weights=false")
    assert not kept.exists()


def test_a_file_that_is_damaged_foreign_or_gone_is_refused(copy):
    file = copy / WEIGHTS_FILE
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    foreign = save({"weight": torch.zeros(2)})
    for content in (flipped, whole[:-10], b"", foreign):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{WEIGHTS_FILE}: damaged, or of another run"):
            load_run(copy)
    file.unlink()
    with pytest.raises(UserError, match=f"{WEIGHTS_FILE}: cannot be read .*No such file.*force=true"):
        load_run(copy)
    for content, said in ((foreign, "does not fit the network of its run"), (b"no tensors", "cannot be read")):
        file.write_bytes(content)
        edit(copy, weights_digest=digest(content))
        with pytest.raises(UserError, match=f"{WEIGHTS_FILE}: {said}"):
            load_run(copy)


def test_other_data_are_refused_and_may_lie_elsewhere(copy, tmp_path):
    assert load_run(copy, root=str(tmp_path), device="cpu").result.run_id == copy.name
    edit(copy, data_fingerprint="other")
    with pytest.raises(UserError, match="made with other data .fingerprint other, here it is"):
        load_run(copy)


def edit(folder: Path, **changed) -> None:
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
