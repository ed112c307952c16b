"""What `make bench` says: tables as text and JSON, what is slower beyond noise, exponents, peers that are equal."""

import json

import pytest
import torch
from helpers import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ellarepro.data import Samples
from ellarepro.network import build_network
from scripts.bench import __main__ as bench
from scripts.bench import device, epoch, growth, plain
from scripts.bench.flops import flops_of
from scripts.bench.tables import HIGHER, LOWER, Measure, Table, as_json, became_worse, of_json
from scripts.bench.timing import measured, ratio, summary


def test_contenders_take_turns_and_ratios_are_round_by_round():
    order = []
    found = measured({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert order == list("ababab") and [len(times) for times in found.values()] == [2, 2]
    measure = ratio([1.0, 4.0, 9.0], [2.0, 2.0, 3.0])
    assert (measure.value, measure.noise) == (2.0, pytest.approx((2.5 - 1.25) / 2))
    assert summary([3.0]).noise == 0


def table(title="t", **cells: Measure) -> Table:
    return Table(title, {"row": cells})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (Measure(1.0, "s", 0.01, HIGHER), Measure(1.2, "s", 0.01, HIGHER), True),
        (Measure(1.0, "s", 0.05, HIGHER), Measure(1.2, "s", 0.05, HIGHER), False),  # Within noise.
        (Measure(1.0, "s", 0.0, HIGHER), Measure(1.04, "s", 0.0, HIGHER), False),  # Within a twentieth.
        (Measure(1.0, "s", 0.01, HIGHER), Measure(0.5, "s", 0.01, HIGHER), False),  # Faster.
        (Measure(50.0, "%", 1, LOWER), Measure(30.0, "%", 1, LOWER), True),
        (Measure(1.0), Measure(2.0), False),  # Not a speed.
    ],
)
def test_what_became_worse_is_said_beyond_noise(before, now, said):
    lines = list(became_worse([table(cell=before)], [table(cell=now)], same_machine=True))
    assert bool(lines) == said
    if said:
        assert lines[0].startswith("t: row: cell, ") and f"{before} -> {now}" in lines[0]
    assert not list(became_worse([table("u", cell=before)], [table(cell=now)], True)), "the control: another table's"


def test_seconds_of_another_machine_are_not_compared_but_ratios_are():
    before = [table(time=Measure(1.0, "s", 0, HIGHER), ratio=Measure(1.0, "", 0, HIGHER))]
    now = [table(time=Measure(9.0, "s", 0, HIGHER), ratio=Measure(9.0, "", 0, HIGHER))]
    assert [line.split(": ")[2] for line in became_worse(before, now, same_machine=False)] == ["ratio"]
    assert len(list(became_worse(before, now, same_machine=True))) == 2


def test_one_command_writes_text_json_and_what_is_worse(tmp_path, monkeypatch, capsys):
    seconds = iter((1.0, 1.0, 2.0))
    fake = {
        "one": lambda rounds: [table("first", time=Measure(next(seconds), "s", 0.01, HIGHER))],
        "other": lambda rounds: [table("second", apart=Measure(0.5))],
    }
    monkeypatch.setattr(bench, "BENCHMARKS", fake)
    arguments = ["--out", str(tmp_path), "--against", str(tmp_path / "bench.json")]
    assert bench.main(arguments) == 0
    assert "nothing to compare with" in capsys.readouterr().out
    assert bench.main([*arguments, "--only", "one"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is worse than before beyond noise"
    assert bench.main([*arguments, "--only", "one"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "worse: first: row: time, s: 1 -> 2 (noise 1%)"
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found) == ["one", "other"], "what --only leaves out stays"
    assert of_json(found["one"]["tables"]) == [table("first", time=Measure(2.0, "s", 0.01, HIGHER))]
    text = (tmp_path / "bench.txt").read_text()
    assert "second" in text and "first" in text and found["one"]["hardware"] in text
    with pytest.raises(SystemExit):
        bench.main(["--only", "neither"])


def test_exponents_are_slopes_and_are_drawn():
    assert growth.slope({2: 12.0, 4: 48.0, 8: 192.0}) == pytest.approx(2)
    base = {"training size": 2, "alpha": 1, "image size": 8, "classes": 3}
    tables = [
        growth.growth(name, (64, 128) if name == "training size" else (4, 8), 1, base)
        for name in ("training size", "classes")
    ]
    assert of_json(as_json(tables)) == tables
    assert tables[0].rows["conv"].keys() == {"64", "128", "exponent", "exponent of bytes"}
    assert tables[0].rows["conv"]["exponent of bytes"].value == 0
    figure = growth.draw([*tables, *tables])
    assert [axes.get_xlabel() for axes in figure.axes] == list(growth.SIZES)


@pytest.mark.parametrize("layer", ["conv", "f_fc", "f_fc_conv"])
def test_the_plain_network_has_our_outputs_and_gradients(layer):
    torch.manual_seed(0)
    ours = build_network(layer, in_channels=plain.CHANNELS, num_classes=plain.CLASSES, alpha=plain.ALPHA)
    theirs = plain.plain_network(ours, layer)
    images, labels = torch.randn(4, plain.CHANNELS, 32, 32), torch.randint(plain.CLASSES, (4,))
    assert_close(theirs(images).detach(), ours(images).detach(), 1e-5)
    assert plain.largest_difference(ours, theirs, images, labels) < 1e-4
    with torch.no_grad():
        next(theirs.parameters()).mul_(1.1)
    assert plain.largest_difference(ours, theirs, images, labels) > 1e-3, "the control"


def test_the_device_table_counts_the_work():
    rows = device.device_table("cpu", alpha=1, rounds=1, width=256, fit_batch=200).rows
    for name in ("epoch of steps", "epoch of natural-gradient steps"):
        assert 0 < rows[name]["share of the matrix rate"].value < 150
    for name in ("exact fit", "decomposition of a fit"):
        assert rows[name]["50,000 images"].unit == "s" and rows[name]["50,000 images"].value > 0


def test_products_that_are_added_in_place_and_complex_ones_are_counted():
    rows, wide = torch.randn(4, 3), torch.randn(5, 4, 3)
    total, totals, spectrum = torch.zeros(3, 3), torch.zeros(5, 3, 3), wide.to(torch.complex64)
    assert flops_of(lambda: total.addmm_(rows.T, rows)) == 2 * 3 * 3 * 4
    assert flops_of(lambda: totals.baddbmm_(wide.mT, wide)) == 5 * 2 * 3 * 3 * 4
    assert flops_of(lambda: wide.mT @ wide) == 5 * 2 * 3 * 3 * 4
    assert flops_of(lambda: spectrum.mT @ spectrum) == 4 * 5 * 2 * 3 * 3 * 4
    with FlopCounterMode(display=False) as counter:
        total.addmm_(rows.T, rows)
    assert counter.get_total_flops() == 0, "the control: PyTorch's counter alone"


def test_only_the_benchmark_of_the_device_is_said_to_run_on_it(monkeypatch):
    monkeypatch.setattr(bench, "hardware", lambda where: where.type)
    assert [bench._machine(name)["hardware"] for name in ("plain", "growth", "device")] == ["cpu", "cpu", "cuda"]


def test_an_epoch_is_its_steps_and_little_more(monkeypatch):
    monkeypatch.setattr(epoch, "BATCH", 8)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    data = Samples(torch.randn(24, 3, 8, 8), torch.randint(4, (24,)))
    for augment in (False, True):
        whole, steps = epoch.epoch_seconds(network, data, augment)
        assert 0 < steps < whole
