"""Checkpoints that are damaged, foreign or without a part: seen, named, and the one before continued."""

import random
import shutil

import pytest
import torch
from smoke_runs import found, quiet, stopped

from ellarepro.errors import UserError
from ellarepro.resume.checkpoint import MAGIC, Checkpoints, DamagedCheckpoint, load_checkpoint, save_checkpoint

STATE = {"weights": torch.arange(600.0), "epoch": 3}


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
    assert names == {
        "result.json",
        "weights.safetensors",
        "config.yaml",
        "effective_parameters.png",
        "checkpoint.damaged-1.pt",
    }


def test_a_checkpoint_of_another_configuration_or_without_a_part_is_refused(tmp_path):
    other, own = stopped(tmp_path, 3, "seed=1"), tmp_path / "own"
    folder = stopped(own, 3)
    (folder / "checkpoint.previous.pt").unlink(missing_ok=True)
    kept = load_checkpoint(folder / "checkpoint.pt")
    shutil.copy(other / "checkpoint.pt", folder / "checkpoint.pt")
    with pytest.raises(UserError, match=r"another configuration \(run_id\)"):
        quiet(own)
    for missing in ("model", "optimiser", "history", "objective", "place"):
        part = {**kept, "state": {key: value for key, value in kept["state"].items() if key != missing}}
        save_checkpoint(folder / "checkpoint.pt", part)
        with pytest.raises(UserError, match="does not fit this run.*delete it"):
            quiet(own)
    model = {key: value for key, value in list(kept["state"]["model"].items())[1:]}
    save_checkpoint(folder / "checkpoint.pt", {**kept, "state": {**kept["state"], "model": model}})
    with pytest.raises(UserError, match="does not fit this run.*Missing key"):
        quiet(own)
