"""`make gpu`, rehearsed from end to end on a device with values: the same parts, with everything made small."""

import json
from concurrent.futures import Executor, Future
from dataclasses import replace
from html import unescape

import pytest
from test_npz import arrays, write
from valued import MISSING, NAME, Valued

from ellarepro.errors import UserError
from ellarepro.report import render_page
from ellarepro.report.cards import read_cards
from scripts.bench import device as bench_device
from scripts.bench.tables import Measure, Table, of_json
from scripts.gpu import cells
from scripts.gpu.__main__ import PARTS, main, measure
from scripts.gpu.cells import ESTIMATED, SEEN, WHOLE
from scripts.gpu.measures import FIT, REPLAYED, SHARE, STEP, arithmetic
from scripts.gpu.plan import Plan
from scripts.gpu.slow import hours, slow


class InTurn(Executor):
    """Calls carried out at once, in this process: the device is known to it alone."""

    def __init__(self, count: int):
        pass

    def submit(self, call, *arguments):
        future = Future()
        future.set_result(call(*arguments))
        return future


FEW = ("layer=f_fc_conv", "train_size=12", "test_size=10", "batch_size=4")
SMALL = {"alpha": 1, "grouped_alpha": 1, "batch": 4, "fit_batch": 4, "width": 32, "rounds": 1, "jobs": (1, 2)}
SMALL |= {"budget": "smoke", "seconds": 0.5, "together": 0.1, "start": 0.0, "layers": ("conv", "gconv")}
SMALL |= {"digits": ("budget=smoke", "epochs=1", "train_size=12"), "tests": ("--noconftest", "tests/test_markdown.py")}


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(bench_device, "STEPS", 2)
    monkeypatch.setattr(cells, "_STEPS", 2)
    own = (*FEW, "dataset=npz", f"dataset.path={write(tmp_path, **arrays(3))}")
    keys = {"table1": own, "table2": (*own, "--only", "weights")}
    return Plan(NAME, keys, pool=InTurn, **SMALL)


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "never")
def test_it_is_rehearsed_from_end_to_end(plan, tmp_path, capsys):
    folder = tmp_path / "gpu"
    with Valued() as device:
        assert measure(plan, folder, minutes=0) == 0
        assert "1 of 7 parts" in capsys.readouterr().out, "the first part whatever the time, and no other"
        elsewhere = replace(plan, keys={"table2": (*FEW, "--only", "weights", f"dataset.root={tmp_path / 'none'}")})
        assert measure(elsewhere, folder, only=["table2"]) == 1
        assert "cifar10" in capsys.readouterr().err.lower(), "data that are missing are named"
        assert measure(plan, folder) == 0
    said = capsys.readouterr().out
    assert said.count("stopped by SIGINT") == 4 and said.count("continues after epoch") == 2
    assert "tests (about" not in said, "what was measured is not measured again"
    (file,) = folder.glob("*.json")
    kept = json.loads(file.read_text())
    assert list(kept["parts"]) == list(PARTS) and all(part["tables"] for part in kept["parts"].values())
    assert of_json(kept["parts"]["tests"]["tables"])[0].rows["pytest"]["passed"].value > 0
    cell = of_json(kept["parts"]["table2"]["tables"])[0].rows["f_fc_conv, laplace, npz"]
    assert 0 < cell["epochs in the first half"].value < cell["epochs in both"].value
    assert 0 < cell[ESTIMATED].value < cell[WHOLE].value and cell[SEEN].value > 0
    page = file.with_suffix(".md").read_text()
    assert all(f"\n## {name}\n" in page for name in PARTS) and all(line in page for line in kept["hours"])
    assert len(kept["hours"]) == 4 and device.sends > 0, "the control: it took place there"
    _is_shown(file, kept)


def _is_shown(file, kept) -> None:
    (card,) = read_cards([file.parents[1]])
    report = unescape(render_page([], [card]))
    assert all(text in report for text in [card.name, *kept["hours"], *(title for title, _ in card.tables)])
    assert "GPUs" in report and "GPUs" not in render_page([]), "the control"
    file.write_text(file.read_text()[:-3])
    with pytest.raises(UserError, match="json is not what make gpu writes"):
        read_cards([file.parents[1]])


def test_each_arithmetic_is_told_apart(plan):
    """On the CPU, which has bf16 and no TF32: without the control nothing would be seen of either."""
    rows = next(iter(arithmetic(replace(plan, device="cpu")))).rows
    plain, fast, half = (rows[name] for name in ("float32", "TF32", "bf16"))
    same = "evidence at the weights of float32"
    assert fast["evidence"] == plain["evidence"] == plain[same] == fast[same] == half[same]
    assert half["evidence"].value != plain["evidence"].value
    assert half["evidence"].value == pytest.approx(plain["evidence"].value, rel=0.1)


def test_what_is_slow_is_named_and_nothing_else():
    def layer(share: float) -> dict[str, Measure]:
        return {f"{STEP}, {SHARE}": Measure(share, "%"), f"{FIT}, {SHARE}": Measure(50.0, "%")}

    slow_step = layer(2.0) | {STEP: Measure(1.0, "s"), REPLAYED: Measure(0.25, "s")}
    times = {"exact fit": {"all": Measure(1.0, "s")}, "decomposition of a fit": {"all": Measure(3.0, "s")}}
    cell = {ESTIMATED: Measure(1.0, "h"), SEEN: Measure(2.0, "h"), WHOLE: Measure(12.0, "h")}
    parts = {
        "layers": [Table("layers", {"conv": layer(40.0), "f_fc": slow_step})],
        "bench": [Table("bench", times | {"epoch of steps": {SHARE: Measure(50.0, "%")}})],
        "table1": [Table("table1", {"a cell": cell})],
        "table2": [Table("table2", {"another": cell | {SEEN: Measure(1.1, "h")}})],
        "jobs": [Table("jobs", {"JOBS=1": {"gain": Measure(1.0)}, "JOBS=2": {"gain": Measure(1.5)}})],
    }
    assert slow(parts) == [
        "f_fc: step: 2% of the matrix rate; replayed it takes 0.25 of its time",
        "f_fc_conv: decomposition of a fit: 3 s, longer than the fit of all images (1 s)",
        "table1: a cell: 2.0 times its estimate",
    ]
    assert hours(parts) == [f"{t}: {j} h" for t in ("table1", "table2") for j in ("JOBS=1: 12.0", "JOBS=2: 8.0")]
    assert slow({}) == hours({}) == []


def test_without_a_gpu_it_says_so(capsys):
    if not MISSING.startswith("a CUDA device"):
        assert main([]) == 2
        assert capsys.readouterr().err == "gpu: no CUDA device was found; make bench measures a CPU\n"
