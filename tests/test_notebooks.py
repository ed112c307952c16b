"""Every notebook runs from top to bottom."""

import json
import sys
from pathlib import Path

import pytest

from scripts import symmetry_study

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("ELLAREPRO_SIZE", "smoke")
    monkeypatch.setitem(symmetry_study.OUT, "smoke", tmp_path)
    namespace: dict = {}
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells), "committed without outputs"
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
    if path.stem == "symmetry_study":
        assert (tmp_path / "study.json").exists(), "run at smoke size"
        assert namespace["shown"]._repr_png_().startswith(b"\x89PNG")


def test_there_is_a_notebook():
    assert NOTEBOOKS
