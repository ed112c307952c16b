"""Tracking is never needed and never in the way; what W&B is told offline can be read back."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ellarepro.errors import UserError
from ellarepro.tracking import NoTracker, make_tracker

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
