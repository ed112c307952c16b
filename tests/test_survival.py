"""Faults around a run that it survives or names: full disks, lost folders, other writers, sizes."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from smoke_runs import REPOSITORY, config, found, quiet, stopped

from ellarepro.errors import RunFailure, UserError
from ellarepro.resume import checkpoint as checkpoint_module
from ellarepro.resume.checkpoint import load_checkpoint, save_checkpoint
from ellarepro.resume.lock import LOCK_FILE, only_writer
from ellarepro.run import run
from ellarepro.runs import folder as run_folders

# Disks and folders


def full(*names: str):
    """`write_atomically`, but no space is left for files of these names."""
    from ellarepro.resume.files import write_atomically

    def write(path, data):
        if Path(path).name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(path, data)

    return write


@pytest.mark.parametrize("name", ["result.json", "weights.safetensors", "effective_parameters.png"])
def test_a_full_disk_at_the_end_loses_nothing(tmp_path, monkeypatch, wanted, name):
    monkeypatch.setattr(run_folders, "write_atomically", full(name))
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
    pause, left = run_folders.RunFolder.pause, 4

    def lose(self, state):
        nonlocal left
        left -= 1
        if left == 0:
            shutil.rmtree(self.folder)
            if again:
                self.folder.mkdir()
        pause(self, state)

    monkeypatch.setattr(run_folders.RunFolder, "pause", lose)
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
        "import os, sys; from pathlib import Path; from ellarepro.resume.lock import only_writer\n"
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
        "import sys; sys.path.insert(0, 'tests'); from smoke_runs import *\nrun(config(Path(sys.argv[1]), 'wait=true'))"
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
    stopped(tmp_path, 5)
    monkeypatch.setattr("ellarepro.run.code_at_start", lambda: "commit-2 bbb")
    result = quiet(tmp_path).result
    assert result.code_changes == ["commit-1 aaa", "commit-2 bbb"] and result.git_commit == "commit-1"
    assert result.peak_memory["host"] > 1e7 and "fit_batch_halved" not in result.fallbacks
    assert found(tmp_path) == wanted


def test_a_run_does_not_go_on_with_other_data_nor_is_it_finished_for_them(tmp_path, mnist_root):
    """The same images under another root are the same run; with one pixel changed they are not."""
    other, runs = tmp_path / "other", tmp_path / "runs"
    shutil.copytree(mnist_root / "MNIST", other / "MNIST")
    sizes = ["dataset=mnist", "dataset.source=torchvision", "dataset.download=false", "train_size=60", "test_size=20"]
    here, there = ([*sizes, f"dataset.root={root}"] for root in (mnist_root, other))
    stopped(runs, 3, *here)
    whole = (file := other / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"checkpoint.*another dataset.root \(fingerprint\)"):
        quiet(runs, *there)
    quiet(runs, *here)
    with pytest.raises(UserError, match="dataset.root=.*was finished with other data.*force=true"):
        quiet(runs, *there)
    file.write_bytes(whole)
    assert quiet(runs, *there).was_finished


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
    monkeypatch.setattr("ellarepro.runs.preparing.free_bytes", lambda device: 1e9)
    with pytest.raises(UserError, match=said):
        quiet(tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


def test_a_long_epoch_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folders, "QUIET_SECONDS", 0.0)
    said: list[str] = []
    run(config(tmp_path, "objective.steps=3"), say=said.append)
    assert any("epoch 1, step 2 on the precisions" in line.replace(" of 3", "") for line in said)
    assert any("epoch 1, batch 1 of the fit" in line for line in said)


def test_a_checkpoint_of_another_kind_of_device_is_refused_for_that(tmp_path, wanted):
    file = stopped(tmp_path, 5) / "checkpoint.pt"
    kept = load_checkpoint(file)
    for written, outcome in (("cuda", "another device"), (None, "")):
        identity = kept["identity"] | {"device": written}
        save_checkpoint(file, kept | {"identity": {key: value for key, value in identity.items() if value}})
        if outcome:
            with pytest.raises(UserError, match=r"another device \(cuda, this run has cpu\); put back"):
                quiet(tmp_path)
    quiet(tmp_path)
    assert found(tmp_path) == wanted, "an earlier version wrote no device"


@pytest.mark.parametrize("where", ["run.prepare", "objectives.laplace.Laplace.check_memory", "run.note_untrained"])
def test_memory_that_does_not_suffice_is_one_message_wherever_it_is_asked_for(tmp_path, where, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"ellarepro.{where}", full)
    with pytest.raises(RunFailure, match="out of memory .*lower batch_size or alpha"):
        quiet(tmp_path)
