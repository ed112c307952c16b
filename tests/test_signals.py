"""Runs that are told to stop, or killed, at any moment."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from smoke_runs import REPOSITORY, SMOKE, found, quiet, stopped

import ellarepro.run
from ellarepro.errors import Interrupted
from ellarepro.resume.signals import stopping


@pytest.mark.parametrize("seed", range(6))
def test_a_run_stopped_at_a_random_place_continues_to_the_same_bits(tmp_path, wanted, seed):
    """Twice, at places between the first step and the last hyper-step and in the fit at the end."""
    draw = random.Random(seed)
    stopped(tmp_path, draw.randint(1, 12))
    stopped(tmp_path, draw.randint(1, 7))
    quiet(tmp_path)
    assert found(tmp_path) == wanted


def test_runs_killed_at_random_moments_continue_to_the_same_bits(tmp_path, wanted):
    """In a process of their own: where a second device was registered, PyTorch takes no backward pass in a fork."""
    code = "import sys; sys.path.insert(0, 'tests'); import test_signals; test_signals.kill_at_random(sys.argv[1])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], cwd=REPOSITORY, check=True)
    assert [found(tmp_path / f"killed{seed}") for seed in range(5)] == [wanted] * 5


def kill_at_random(folder: str) -> None:
    """Five runs, each four times, sooner or later than it takes to write a checkpoint after every step."""
    ellarepro.run.draw_run = lambda result: Figure(figsize=(1, 1))
    quiet(Path(folder) / "first")  # What a process does once is not counted.
    for seed in range(5):
        draw, began = random.Random(seed), time.monotonic()
        quiet(Path(folder) / f"alone{seed}", "checkpoint_seconds=0")
        whole, killed = time.monotonic() - began, Path(folder) / f"killed{seed}"
        for _ in range(4):
            child = forked(partial(quiet, killed, "checkpoint_seconds=0"))
            time.sleep(draw.uniform(0.05, 0.3) * whole)
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it had ended before"
        quiet(killed)


def forked(work: Callable[[], object]) -> int:
    """The process id of a child that does `work`: a fresh one would spend most of its time on imports."""
    if child := os.fork():
        return child
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_command_with_its_place_kept(tmp_path, number):
    options = [*SMOKE, "epochs=400", "objective.frequency=3", f"output_dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "ellarepro", *options],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/config.yaml")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert f"stopped by {number.name} after epoch" in errors and len(errors.strip().splitlines()) == 1
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} - {"checkpoint.previous.pt"} == {"config.yaml", "checkpoint.pt"}


def test_sigusr2_goes_on_to_the_launchers_handler_once_the_place_is_kept():
    got, before = [], signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    try:
        with pytest.raises(Interrupted), stopping() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.signal == signal.SIGUSR2 and not got
            raise Interrupted("kept", stop.signal)
        assert got == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_job_of_slurm_waits_for_the_kill_after_sigterm(monkeypatch, capsys):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for job in ("7", None):
        monkeypatch.setenv("SLURM_JOB_ID", job) if job else monkeypatch.delenv("SLURM_JOB_ID")
        with pytest.raises(Interrupted), stopping():
            raise Interrupted("kept", signal.SIGTERM)
    assert len(slept) == 1 and "waits for SLURM to end the job" in capsys.readouterr().err


@pytest.fixture
def heard():
    """Ctrl-C as at a terminal: a shell's background job starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait_and_other_threads_leave_signals_alone(heard):
    with pytest.raises(KeyboardInterrupt), stopping():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stops = []

    def inside() -> None:
        with stopping() as stop:
            stops.append(stop.signal)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert stops == [None]
