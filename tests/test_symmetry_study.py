"""The symmetry study: its data have the symmetries it claims, it resumes, and it writes what it should."""

import json

import pytest
import torch

from scripts import symmetry_report as report
from scripts import symmetry_study as study
from scripts.symmetry_study import JITTER, PLACES, SIDE, TRUTHS, TURNS, Moves, Size, draw_moves, label, main, move

TINY = Size(train_size=24, test_size=12, epochs=1, burn_in=1, fit_size=6, strengths=(1.0,))
DRAWS = 20_000


def moves(turn: int = 0, place: int = 0, jitter: tuple[int, int] = (0, 0)) -> Moves:
    return Moves(torch.tensor([turn]), torch.tensor([place]), torch.tensor([jitter]))


def pattern() -> torch.Tensor:
    """An image (1, 1, S, S) that no turn or shift but the identity leaves as it is."""
    return torch.arange(SIDE * SIDE, dtype=torch.float32).reshape(1, 1, SIDE, SIDE)


def test_at_strength_one_moves_are_uniform_and_apart():
    drawn = draw_moves(DRAWS, 1.0, torch.Generator().manual_seed(0))
    jitter = (drawn.jitter + JITTER) @ torch.tensor([2 * JITTER + 1, 1])
    for values, count in (
        (drawn.turn * PLACES + drawn.place, TURNS * PLACES),
        (jitter, (2 * JITTER + 1) ** 2),
        (drawn.turn * (2 * JITTER + 1) ** 2 + jitter, TURNS * (2 * JITTER + 1) ** 2),
    ):
        counts = values.bincount(minlength=count).double()
        assert len(counts) == count
        deviation = ((counts - DRAWS / count) ** 2 / (DRAWS / count)).sum().item()
        assert abs(deviation - (count - 1)) < 4 * (2 * (count - 1)) ** 0.5, "chi-squared, four standard deviations"


@pytest.mark.parametrize("strength", (0.0, 0.5))
def test_strength_is_the_share_of_images_that_moves(strength):
    drawn = draw_moves(DRAWS, strength, torch.Generator().manual_seed(0))
    turned = (drawn.turn > 0).double().mean().item()
    displaced = (drawn.place > 0).double().mean().item()
    assert abs(turned - strength * (1 - 1 / TURNS)) < 0.02
    assert abs(displaced - strength * (1 - 1 / PLACES)) < 0.02
    assert abs((drawn.jitter[:, 0] != 0).double().mean().item() - strength * 6 / 7) < 0.02


@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("place", range(PLACES))
def test_a_turn_of_the_image_turns_the_digit_where_it_is(turn, place):
    turned = torch.rot90(move(pattern(), moves(turn, place, (2, -1))), 1, (2, 3))
    # Counterclockwise with rows going down: (down, right) becomes (-right, down).
    assert torch.equal(turned, move(pattern(), moves((turn + 1) % TURNS, place, (1, 2))))


@pytest.mark.parametrize("place", range(PLACES))
def test_a_shift_by_half_the_map_exchanges_the_places(place):
    shifted = move(pattern(), moves(3, place, (1, 2))).roll((SIDE // 2, SIDE // 2), (2, 3))
    assert torch.equal(shifted, move(pattern(), moves(3, 1 - place, (1, 2))))


def test_jitter_shifts_around_the_torus():
    assert torch.equal(move(pattern(), moves(jitter=(-3, 2))), pattern().roll((-3, 2), (2, 3)))


@pytest.mark.parametrize("symmetry", TRUTHS)
def test_a_label_changes_under_just_the_moves_that_it_should(symmetry):
    translation, rotation = TRUTHS[symmetry]
    digit = torch.arange(len(study.DIGITS))
    here = label(digit, moves(1, 0), symmetry)
    assert (label(digit, moves(2, 0), symmetry) == here).all() == rotation
    assert (label(digit, moves(1, 1), symmetry) == here).all() == translation
    assert (label(digit, moves(1, 0, (3, -3)), symmetry) == here).all(), "jitter never matters"
    every = [label(digit, moves(turn, place), symmetry) for turn in range(TURNS) for place in range(PLACES)]
    classes = len(digit) * (1 if rotation else TURNS) * (1 if translation else PLACES)
    assert torch.cat(every).unique().tolist() == list(range(classes))


def test_conditions_of_a_strength_differ_in_labels_only():
    tasks = {symmetry: study.make_task(symmetry, 1.0, TINY) for symmetry in TRUTHS}
    both = tasks["both"]
    for task in tasks.values():
        assert torch.equal(task.train.images, both.train.images) and torch.equal(task.test.images, both.test.images)
        assert task.train.images.shape == (24, 1, SIDE, SIDE)
        assert int(task.train.labels.max()) < task.num_classes == len(task.class_names)
        per_digit = task.num_classes // both.num_classes
        assert torch.equal(task.train.labels // per_digit, both.train.labels)
    assert tasks["none"].class_names[11] == "4 turned 90°, corner"


def test_shares_are_means_over_layers_and_of_the_total():
    first, second = {"f_fc": 30.0, "conv": 10.0, "gconv": 0.0}, {"f_fc": 0.0, "conv": 0.0, "gconv": 10.0}
    record = {"effective": {"1": first, "2": second}}
    record["shares"] = {"1": {"f_fc": 75.0, "conv": 25.0, "gconv": 0.0}, "2": {"f_fc": 0.0, "conv": 0.0, "gconv": 100}}
    assert report.mean_shares(record) == {"f_fc": 37.5, "conv": 12.5, "gconv": 50.0}
    assert report.total_shares(record) == {"f_fc": 60.0, "conv": 20.0, "gconv": 20.0}


def test_contrasts_are_positive_where_shares_follow_the_truth():
    def record(symmetry: str, f_fc: float, conv: float) -> dict:
        shares = {"1": {"f_fc": f_fc, "conv": conv, "gconv": 100 - f_fc - conv}}
        return {"symmetry": symmetry, "strength": 1.0, "seed": 1, "shares": shares}

    records = [record("none", 60, 40), record("rotation", 60, 0), record("translation", 20, 80), record("both", 0, 0)]
    assert report.contrasts(records, 1.0) == ([50.0], [100.0])
    assert report.contrasts(records[:3], 1.0) == ([], []), "a seed that is not complete"


def test_a_study_resumes_and_writes_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(study.SIZES, "smoke", TINY)
    command = ["--size", "smoke", "--out", str(tmp_path), "--seeds"]
    assert main([*command, "1"]) == 0
    content = json.loads((tmp_path / "study.json").read_text())
    assert [record["symmetry"] for record in content["records"]] == list(TRUTHS)
    needed = {"git_commit", "versions", "hardware", "seconds", "seed", "data_fingerprint", "test_accuracy", "classes"}
    assert needed <= content["records"][0].keys()
    assert all(sum(shares.values()) == pytest.approx(100) for shares in content["records"][0]["shares"].values())
    content["records"].pop()
    (tmp_path / "study.json").write_text(json.dumps(content))
    (tmp_path / "reading.md").write_text("## Reading\n\nMine.\n")
    capsys.readouterr()
    assert main([*command, "1"]) == 0
    assert capsys.readouterr().out.count("finished before") == len(TRUTHS) - 1
    assert (tmp_path / "study.png").stat().st_size > 10_000
    text = (tmp_path / "study.md").read_text()
    assert all(f"| 1 | {symmetry} | " in text for symmetry in TRUTHS) and text.endswith("Mine.\n")


def test_mistakes_are_one_message(tmp_path, capsys):
    file = tmp_path / "study.json"
    file.write_text("{")
    assert main(["--out", str(tmp_path)]) == 2
    assert f"{file}: not readable" in capsys.readouterr().err
    file.write_text(json.dumps({"config": {"epochs": 3}, "records": []}))
    assert main(["--out", str(tmp_path)]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main(["--seeds", "one"]) == 2
    assert "one" in capsys.readouterr().err
