"""Tracking is never needed and never in the way; what W&B is told offline can be read back."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from result_factory import make_result

from ellarepro.errors import UserError
from ellarepro.results import write_result
from ellarepro.tracking import NoTracker, Unfailing, main, make_tracker

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")

OPTIONS = {"run_id": "mnist-fc-map-s1-0123456789", "config": {"seed": 1}}

# W&B starts a service process that outlives a test, so each test of it is a process of its own.
OFFLINE_RUN = """
import sys
from ellarepro.tracking import make_tracker
tracker = make_tracker("wandb", run_id="mnist-fc-map-s1-0", config={"seed": 1}, folder=sys.argv[1], mode=None)
tracker.log({"train/loss": 1.5}, epoch=3)
tracker.log({"train/loss": 1.25, "prior_precision/blocks.0.paths.fc.weight": 7.5}, epoch=4)
tracker.finish({"test/accuracy": 0.875})
"""


def test_no_tracking_takes_everything_and_writes_nothing(tmp_path):
    tracker = make_tracker("none", **OPTIONS, folder=tmp_path, mode=None)
    tracker.log({"train/loss": 1.0}, epoch=1)
    tracker.finish({})
    assert isinstance(tracker, NoTracker) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["results", "tables", "figures", "tracking", "run"])
def test_wandb_is_imported_only_when_it_is_asked_for(module):
    code = f"import sys, ellarepro.{module}; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(UserError, match="tracking: got 'tensorboard'; possible: none, wandb"):
        make_tracker("tensorboard", **OPTIONS, folder=tmp_path, mode=None)


def test_missing_wandb_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="tracking: got 'wandb'.*not installed.*tracking=none"):
        make_tracker("wandb", **OPTIONS, folder=tmp_path, mode=None)


@needs_wandb
def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match="tracking.mode: got 'sometimes'; possible: null, online"):
        make_tracker("wandb", **OPTIONS, folder=tmp_path, mode="sometimes")


@needs_wandb
def test_without_an_account_the_run_is_offline_and_reads_back(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    # A home of its own: a developer who has an account must not publish test runs.
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    command = [sys.executable, "-c", OFFLINE_RUN, str(tmp_path / "run")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in done.stderr and not done.stdout
    records = inspect(folder)
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert run["run_id"] == "mnist-fc-map-s1-0"
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["epoch"] for row in history] == [3, 4]
    assert [row["train/loss"] for row in history] == [1.5, 1.25]
    assert history[1]["prior_precision/blocks.0.paths.fc.weight"] == 7.5
    summaries = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert {"test/accuracy": 0.875} in summaries


def inspect(folder: Path) -> list[dict]:
    """The records of an offline run, by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


class Dead:
    """A W&B whose service has died."""

    def __getattr__(self, name):
        raise ConnectionResetError("the service\nis gone")


def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(capsys):
    tracker = Unfailing(Dead())
    for tell in (lambda: tracker.log({"train/loss": 1.0}, 1), lambda: tracker.finish({}), tracker.close):
        tell()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "goes on untracked (ConnectionResetError: the service is gone); python -m ellarepro.tracking RUN" in line


@pytest.mark.parametrize("failing", ["init", "Settings", "define_metric"])
def test_a_start_that_fails_in_any_way_is_one_line(tmp_path, monkeypatch, capsys, failing):
    def fail(*arguments, **options):
        raise PermissionError("no")

    run = SimpleNamespace(define_metric=fail)
    wandb = SimpleNamespace(
        Settings=lambda **options: None, init=lambda **options: run, errors=SimpleNamespace(Error=OSError)
    )
    if failing != "define_metric":
        setattr(wandb, failing, fail)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = make_tracker("wandb", **OPTIONS, folder=tmp_path, mode="offline")
    assert isinstance(tracker, NoTracker)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_finished_run_is_mirrored_from_its_result(tmp_path, monkeypatch):
    told: list[tuple] = []

    class Recorder(NoTracker):
        def log(self, metrics, epoch):
            told.append((epoch, metrics))

        def finish(self, summary):
            told.append(("end", summary))

    history = {"epoch": [1, 2], "loss": [2.0, 1.0], "train_accuracy": [0.1, 0.2], "fit_epoch": [2]}
    history |= {"neg_log_marglik_per_datum": [1.5], "prior_precision": {"a": [7.0]}}
    result = replace(make_result(history=history), effective_parameters={"a": 3.0})
    write_result(result, tmp_path / "run")
    opened = []
    monkeypatch.setattr("ellarepro.tracking.make_tracker", lambda name, **options: opened.append(options) or Recorder())
    assert main([str(tmp_path / "run"), "--mode", "offline"]) == main([str(tmp_path)]) == 0
    assert [options["run_id"] for options in opened] == [f"{result.run_id}-mirror"] * 2
    first = {"train/nll": 2.0, "train/accuracy": 0.1}
    fit = {"marglik/neg_log_marglik_per_datum": 1.5, "prior_precision/a": 7.0}
    assert told[0] == (1, first) and told[1] == (2, {"train/nll": 1.0, "train/accuracy": 0.2} | fit)
    assert told[2][1]["effective_parameters/a"] == 3.0 and told[2][1]["test/nll"] == result.test_nll
    assert main([str(tmp_path / "nowhere")]) == 2
