"""Run ids, the record's way to disk and back, and what happens when writing is cut short."""

import json
import math
import os
import platform
import re
import subprocess
import sys

import pytest
from result_factory import make_config, make_result

from ellarepro.errors import UserError
from ellarepro.results import (
    RunResult,
    git_commit,
    provenance,
    read_results,
    run_id,
    short_commit,
    versions,
    write_result,
)
from ellarepro.resume import files
from ellarepro.resume.files import write_atomically


def test_run_id_reads_well_and_does_not_depend_on_key_order():
    config = make_config()
    assert run_id(config).startswith("quadrant_digit-fc-laplace-s1-")
    assert len(run_id(config).rpartition("-")[2]) == 10
    assert run_id(dict(reversed(config.items()))) == run_id(config)


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": "elsewhere"},
        {"device": "cuda"},
        {"force": True},
        {"progress": False},
        {"threads": 3},
        {"tracking": {"name": "wandb", "project": "other"}},
        {"dataset": {"root": "/mnt/data", "download": False}},
    ],
)
def test_run_id_ignores_what_does_not_change_the_result(change):
    config = make_config(tracking={"name": "none"}, force=False, progress=True, threads=1)
    assert run_id({**config, **make_config(**change)}) == run_id(config)


@pytest.mark.parametrize(
    "change",
    [{"optimiser": {"lr": 0.01}}, {"seed": 2}, {"dataset": {"source": "torchvision"}}, {"objective": {"steps": 5}}],
)
def test_run_id_follows_what_changes_the_result(change):
    assert run_id(make_config(**change)) != run_id(make_config())


def test_a_result_comes_back_from_disk_as_it_was(tmp_path):
    result = make_result(expected_calibration_error=0.01)
    path = write_result(result, tmp_path / result.run_id)
    assert path == tmp_path / result.run_id / "result.json"
    assert read_results(tmp_path) == [result]


def test_results_are_sorted_by_what_was_run(tmp_path):
    for seed in (3, 1, 2):
        write_result(make_result(make_config(seed=seed)), tmp_path / f"{9 - seed}")
    assert [result.seed for result in read_results(tmp_path)] == [1, 2, 3]


def test_numbers_that_are_not_finite_are_written_as_null():
    text = make_result(test_nll=math.inf, history={"loss": [math.nan, 1.0]}).to_json()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["test_nll"] is None and record["history"]["loss"] == [None, 1.0]


def test_unknown_keys_are_ignored_and_missing_ones_named():
    record = json.loads(make_result().to_json())
    assert RunResult.from_json(json.dumps({**record, "from_the_future": 1})) == make_result()
    del record["seed"], record["test_nll"]
    with pytest.raises(UserError, match="missing keys: seed, test_nll"):
        RunResult.from_json(json.dumps(record))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("prior_precision", [1.0], "prior_precision must be dict, got list"),
        ("prior_precision", {"a": "x"}, r"prior_precision must be dict\[str, float\], got entries of another kind"),
        ("relative_effective_parameters", {"1": 3.0}, "relative_effective_parameters .* entries of another kind"),
        ("history", {"loss": "falling"}, "history .* entries of another kind"),
        ("history", {"prior_precision": {"a": [{}]}}, "history .* entries of another kind"),
        ("fallbacks", {"cpu": "x"}, r"fallbacks must be dict\[str, int\], got entries of another kind"),
        ("seed", "1", "seed must be int, got str"),
        ("seed", True, "seed must be int, got bool"),
        ("test_nll", "low", r"test_nll must be float \| None, got str"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(key, value, said):
    record = json.loads(make_result().to_json())
    with pytest.raises(UserError, match=said):
        RunResult.from_json(json.dumps({**record, key: value}))
    assert RunResult.from_json(json.dumps({**record, "test_nll": None, "wall_seconds": 3})).wall_seconds == 3


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "run" / "result.json"
    path.parent.mkdir()
    path.write_bytes(damage)
    with pytest.raises(UserError, match="run/result.json"):
        read_results(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        read_results(tmp_path / "nowhere")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, failing, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_file_written_atomically_is_as_readable_as_any_other(tmp_path):
    write_atomically(tmp_path / "atomic", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_git_commit_tells_clean_from_changed(tmp_path, monkeypatch):
    module = tmp_path / "ellarepro" / "results" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() == "unknown"
    kept = tmp_path / "results" / "table1" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first", "--no-gpg-sign"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    assert len(git_commit()) == 40
    index = (tmp_path / ".git" / "index").read_bytes()
    os.utime(module, (1, 1))
    assert len(git_commit()) == 40 and (tmp_path / ".git" / "index").read_bytes() == index, "git itself may write there"
    kept.write_text("made again")
    assert len(git_commit()) == 40, "results say nothing of the code"
    module.write_text("changed")
    assert git_commit().endswith("-dirty") and short_commit(git_commit()) == f"{git_commit()[:8]}-dirty"
    inner = module.parent / "inner" / "ellarepro" / "results"
    inner.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inner / "provenance.py"))
    assert git_commit() == "unknown", "another project's commit is not ours"


def test_the_digest_of_the_code_is_of_its_files_as_they_are(tmp_path, monkeypatch):
    module = tmp_path / "ellarepro" / "results" / "provenance.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(module))
    module.write_text("")
    before = provenance.code_at_start.__wrapped__()
    (module.parent / ".#provenance.py").symlink_to("somebody@somewhere.1234")
    assert provenance.code_at_start.__wrapped__() == before, "an editor's lock is no code"
    module.write_text("changed")
    assert provenance.code_at_start.__wrapped__() != before


def test_versions_are_read_without_importing():
    assert set(versions()) == {"python", "torch", "torchvision", "laplace-torch", "asdfghjkl", "hydra-core"}
    code = "import sys, ellarepro.results as r; r.versions(); assert not {'torch', 'hydra', 'asdl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
def test_the_hardware_of_a_cpu_names_processor_and_instruction_set():
    code = "import torch, ellarepro.results as r; torch.set_num_threads(1); print(r.hardware(torch.device('cpu')))"
    for asked, found in (("default", "DEFAULT"), ("avx2", "AVX2")):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": asked}
        said = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
        assert re.fullmatch(rf"\S.* \({found}\), 1 thread\n", said.stdout)
