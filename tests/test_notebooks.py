"""Every notebook runs from top to bottom."""

import json
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("ELLAREPRO_BUDGET", "smoke")
    monkeypatch.setenv("ELLAREPRO_RUNS", str(tmp_path / "runs"))
    namespace: dict = {}
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells), "committed without outputs"
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
    if path.stem == "symmetry_study":
        assert len(list(tmp_path.rglob("result.json"))) == 4, "run at the smoke budget"
        assert namespace["shown"]._repr_png_().startswith(b"\x89PNG")


def test_there_is_a_notebook():
    assert NOTEBOOKS
