"""What a fit will take is known before it starts, and is what it takes."""

import pytest
import torch
from helpers import small_data, small_network

from ellarepro.curvature import memory
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.memory import FactorsTooLarge, free_bytes
from ellarepro.curvature.structures import STRUCTURES, factor_bytes
from ellarepro.network import LAYERS, build_network
from ellarepro.settings.parts import AnchorSettings, FitSettings


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_forecast_is_what_the_factors_take(layer, structure):
    images, _ = small_data(2)
    model = small_network(layer, anchors=AnchorSettings(learn_omega=True)).float()
    ggn = GGN(model, structure, tolerance=0)
    ggn.update(images.float())
    forecast = GGN(model, structure).forecast(images.float()).total
    taken = factor_bytes(ggn.blocks(2))
    assert forecast == taken


def test_free_memory_counts_the_file_cache(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:  60 kB\n")
    monkeypatch.setattr("ellarepro.curvature.memory._MEMINFO", meminfo)
    monkeypatch.setattr("ellarepro.curvature.memory._OWN_GROUPS", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) == 60 * 1024
    monkeypatch.setattr("ellarepro.curvature.memory._MEMINFO", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) > 10**8


@pytest.mark.parametrize(
    ("line", "kind", "names"),
    [
        ("0::/job/step", "0::", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/job/step", ":memory:", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_free_memory_is_what_a_jobs_limit_leaves(line, kind, names, tmp_path, monkeypatch):
    """The limit stands a group above the process's own, which has none."""
    (tmp_path / "groups" / "job" / "step").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text(f"5:devices:/\n{line}\n")
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(memory, "_KINDS", {kind: (tmp_path / "groups", *memory._KINDS[kind][1:])})
    for folder, most in (("job", "5000"), ("job/step", "max")):
        for name, text in zip((names[0], names[1], "memory.stat"), (most, "3000", f"x 1\n{names[2]} 400"), strict=True):
            (tmp_path / "groups" / folder / name).write_text(text)
    assert free_bytes(torch.device("cpu")) == 5000 - 3000 + 400
    own.write_text("5:devices:/\n")
    assert free_bytes(torch.device("cpu")) > 10**8, "the control: a process in no such group"


def test_factored_layers_at_full_width_stay_small():
    model = build_network("f_fc_conv", in_channels=3, num_classes=10)
    total = GGN(model).forecast(torch.zeros(150, 3, 32, 32)).total
    assert total < 120e6
    assert 3 * total < 4 * (10 * 1024) ** 2, "the control: the dense factor of block 2 alone"


def test_a_network_that_does_not_fit_is_refused_with_what_to_change():
    model, images, cpu = small_network("fc").float(), small_data(9)[0].float(), torch.device("cpu")
    forecast = accumulator_of(model, FitSettings()).forecast(images)
    assert "MB" in forecast.check(cpu, free=10**9)
    with pytest.raises(FactorsTooLarge, match=r"need about .* GB .*lower alpha, take layer=f_fc for fc"):
        forecast.check(cpu, free=1000)
