"""dataset=npz: images of one's own from a file, and what is said of a file that cannot be used."""

import numpy as np
import pytest
import torch

from ellarepro.config.compose import compose
from ellarepro.data import load_task
from ellarepro.data.__main__ import main
from ellarepro.errors import UserError
from ellarepro.results import read_result
from ellarepro.run import run

SMOKE = [
    "dataset=npz",
    "budget=smoke",
    "layer=conv",
    "epochs=2",
    "train_size=null",
    "test_size=null",
    "threads=1",
    "device=cpu",
    "progress=false",
]


def arrays(channels: int | None = None, side: int = 12, seed: int = 0, classes: int = 3) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shape = (side, side) if channels is None else (side, side, channels)
    made = {}
    for split, count in (("train", 120), ("test", 30)):
        made[f"{split}_images"] = draw.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{split}_labels"] = np.arange(count) % classes
    return made


def write(folder, name="own.npz", **content):
    np.savez(folder / name, **content)
    return folder / name


@pytest.mark.parametrize(("channels", "wanted"), [(None, 1), (1, 1), (3, 3)])
def test_a_file_becomes_a_task(channels, wanted, tmp_path):
    task = load_task("npz", root=write(tmp_path, **arrays(channels), note=np.array("mine")))
    assert task.train.inputs.shape == (120, wanted, 32, 32) and task.test.inputs.shape == (30, wanted, 32, 32)
    assert task.outputs == 3 and task.class_names == ("0", "1", "2") and task.in_channels == wanted
    assert torch.bincount(task.test.targets).tolist() == [10, 10, 10]


def test_pixels_keep_their_places_and_are_normalised_by_the_training_set(tmp_path):
    content = arrays(3, side=32)
    task = load_task("npz", root=write(tmp_path, **content))
    mean, std = torch.tensor(task.mean)[:, None, None], torch.tensor(task.std)[:, None, None]
    pixels = {tuple(image.flatten().tolist()) for image in content["train_images"].transpose(0, 3, 1, 2)}
    found = ((task.train.inputs * std + mean) * 255).round().int()
    assert {tuple(image.flatten().tolist()) for image in found} == pixels
    assert task.train.inputs.mean((0, 2, 3)).abs().max() < 1e-4
    assert (task.train.inputs.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_large_images_are_averaged_and_not_sampled(tmp_path):
    content, side = arrays(side=224), 224
    stripes = np.tile((np.arange(side) % 7 == 3) * np.uint8(255), (side, 1)).astype(np.uint8)
    for name in ("train_images", "test_images"):
        content[name][:] = stripes
    content["train_images"][0] = 255 - stripes
    task = load_task("npz", root=write(tmp_path, **content))
    shown = task.test.inputs * task.std[0] + task.mean[0]
    # Each new pixel stands for 7 by 7, one column of which is white.
    assert (shown[..., 1:-1] - 1 / 7).abs().max() < 0.02
    sampled = torch.from_numpy(stripes)[3::7, 3::7].float() / 255
    assert sampled.min() == 1, "the control: of one in seven sampled all are white"
    small = load_task("npz", root=write(tmp_path, **arrays(side=32)))
    assert small.test.inputs.unique().numel() > 200, "no smaller image is touched"


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 1), (4, 4, 1)])
def test_images_in_which_channels_could_be_rows_are_refused(shape, tmp_path):
    content = arrays() | {
        f"{s}_images": np.zeros((n, *shape), dtype=np.uint8) for s, n in (("train", 120), ("test", 30))
    }
    with pytest.raises(
        UserError, match="train_images must have 8 pixels a side at least, and channels as the last axis"
    ):
        load_task("npz", root=write(tmp_path, **content))


def test_labels_may_have_an_axis_of_their_own_as_in_medmnist(tmp_path):
    content = arrays()
    column = {name: value[:, None] if name.endswith("labels") else value for name, value in content.items()}
    first, second = (load_task("npz", root=write(tmp_path, **kind)) for kind in (content, column))
    assert first.fingerprint == second.fingerprint


def test_a_run_of_it_is_another_for_another_file(tmp_path):
    files = [write(tmp_path, f"{seed}.npz", **arrays(seed=seed)) for seed in (0, 1)]
    configs = [compose([*SMOKE, f"dataset.path={file}", f"output_dir={tmp_path}/runs"]) for file in files]
    assert configs[0].run_id != configs[1].run_id
    outcome = run(configs[0], say=lambda line: None)
    result = read_result(outcome.folder / "result.json")
    assert result.dataset == "npz" and len(result.effective_parameters) > 0
    assert run(configs[0], say=lambda line: None).was_finished
    write(tmp_path, "0.npz", **arrays(seed=2))
    with pytest.raises(UserError, match="0.npz: .* was finished with other data"):
        run(configs[0], say=lambda line: None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_labels": None}, "has no train_labels; it must hold train_images, "),
        ({"test_images": np.zeros((30, 12, 12), dtype=np.float32)}, "test_images must be uint8"),
        ({"test_images": np.zeros((30, 12, 14), dtype=np.uint8)}, "test_images must be uint8"),
        ({"test_images": np.zeros((30, 14, 14), dtype=np.uint8)}, "must have one shape"),
        ({"train_images": np.zeros((120, 12, 12, 4), dtype=np.uint8)}, "1 or 3 channels"),
        ({"train_labels": np.zeros(119, dtype=int)}, r"train_labels must be whole numbers from 0, of shape \(120,\)"),
        ({"train_labels": np.zeros(120)}, "train_labels must be whole numbers"),
        ({"train_labels": -np.ones(120, dtype=int)}, "train_labels must be whole numbers from 0"),
        ({"test_labels": np.full(30, 3)}, "no training image of class 3"),
        ({"train_labels": np.zeros(120, dtype=int), "test_labels": np.zeros(30, dtype=int)}, "of 2 to 1000 classes"),
    ],
)
def test_a_file_of_another_form_is_refused(change, said, tmp_path):
    content = {name: value for name, value in (arrays() | change).items() if value is not None}
    with pytest.raises(UserError, match=said):
        load_task("npz", root=write(tmp_path, **content))


def test_what_is_no_such_file_is_refused(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("no archive")
    for path, said in ((tmp_path / "none.npz", "there is no such file"), (tmp_path / "text.npz", "is not a readable")):
        assert main(["npz", "--root", str(path)]) == 2
        assert said in capsys.readouterr().err
    for keys, said in ((["dataset=npz"], "needs dataset.path"), (["dataset.path=x.npz"], "has no meaning for dataset")):
        with pytest.raises(UserError, match=said):
            run(compose([*keys, "budget=smoke", f"output_dir={tmp_path}"]))
