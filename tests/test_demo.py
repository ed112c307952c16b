"""`make demo`: what it shows before anything runs, what it runs first, and that its reading is made of the numbers."""

from dataclasses import replace

import torch
from result_factory import make_learned_result, make_result

from ellarepro.config.compose import compose_all
from ellarepro.launching.sweep_runs import Ended
from ellarepro.results import write_result
from scripts import demo, make_table
from scripts.demo import DIGIT, EQUIVARIANT, FREE, LEARNED, POSITION


def test_the_pictures_are_one_digit_in_two_quadrants():
    lines = demo._pictures().splitlines()
    frame = [line for line in lines if line.startswith("  │")]
    assert len(frame) == 16 and max(map(len, lines)) <= 80
    left, right = ([line.split("│")[side] for line in frame] for side in (1, 3))
    assert left != right and all(any(mark in "".join(image) for mark in "▓█") for image in (left, right))
    assert f"{DIGIT} calls them '3' and '3';" in lines
    assert f"{POSITION} calls them '3, lower left' and '3, lower right'." in lines


def test_a_picture_in_characters():
    pixels = torch.zeros(4, 2)
    pixels[:2, 0], pixels[2, 1] = 1.0, 1.0
    assert demo._blocks(pixels) == ["┌──┐", "│█ │", "│ ▒│", "└──┘"]


def test_the_committed_table_is_marked_as_what_to_expect():
    text = demo._expected()
    assert text.startswith("What to expect") and "92.13 ± 0.15 (0.85) n=3 [99.00]" in text and "MAP" not in text
    assert "999 epochs" in text


def test_the_learned_network_and_conv_come_first_and_fc_last():
    cells = [(dataset, layer) for dataset in (DIGIT, POSITION) for layer in (FREE, EQUIVARIANT, LEARNED)]
    configs = compose_all([[f"dataset={dataset}", f"layer={layer}"] for dataset, layer in cells])
    order = [(c.dataset.name, c.layer.name) for c in sorted(configs, key=demo._place)]
    assert order[:2] == [(POSITION, LEARNED), (POSITION, EQUIVARIANT)]
    assert {layer for _, layer in order[4:]} == {FREE}


def test_the_reading_is_made_of_the_numbers():
    accuracy = {
        (DIGIT, LEARNED): 0.931,
        (DIGIT, EQUIVARIANT): 0.932,
        (DIGIT, FREE): 0.906,
        (POSITION, LEARNED): 0.904,
        (POSITION, EQUIVARIANT): 0.218,
        (POSITION, FREE): 0.889,
    }
    results = {key: make_result(test_accuracy=value) for key, value in accuracy.items()}
    for key, share in (((DIGIT, LEARNED), 1.0), ((POSITION, LEARNED), 5.0)):
        shares = {"1": {"f_fc": share, "conv": 100 - share}}
        results[key] = make_learned_result(test_accuracy=accuracy[key], relative_effective_parameters=shares)
    text = demo.reading(results)
    assert "93.1% of the digits right (CONV 93.2%, FC 90.6%)" in text and "would leave 23.3%; FC 88.9%" in text
    assert "F-FC at 1%" in text and "5% on the second" in text


def test_the_demo_shows_first_then_runs_then_reads(tmp_path, capsys, monkeypatch):
    def launch(configs, hydra, on_end):
        assert len(configs) == 6 and configs[0].layer.name == LEARNED
        for config in configs:
            names = {group: getattr(config, group).name for group in ("dataset", "layer")}
            made = make_learned_result() if names["layer"] == LEARNED else make_result()
            result = replace(made, run_id=config.run_id, config=config.record, budget="smoke", **names)
            write_result(result, config.folder)
            print("it ran")
            on_end(Ended("", "", 0))
        return [Ended("", "", 0)] * 6

    monkeypatch.setattr(make_table, "launch", launch)
    assert demo.main(["budget=smoke", f"output_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    told = ["calls them", "What to expect", "6 runs, 0 finished before", "it ran", "## Table 1", "_parameters.png"]
    places = [out.index(text) for text in [*told, "F-FC+CONV has 90.0% of the digits"]]
    assert places == sorted(places)
    assert "estimated" not in out and out.count("| quadrant_digit ") == 1 + 5 + 1, "expected, as cells arrive, the end"
