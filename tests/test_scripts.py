"""Every script says what it does, and does nothing that it was not asked for."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
CALLED = ["studies", *(file.stem for file in sorted(SCRIPTS.glob("*.py")) if "__main__" in file.read_text())]


def status(monkeypatch, *words: str) -> int | str | None:
    """The exit status of `python -m scripts.WORDS`."""
    file = f"{SCRIPTS / words[0]}/__main__.py" if words[0] == "studies" else f"{SCRIPTS / words[0]}.py"
    monkeypatch.setattr(sys, "argv", [file, *words[1:]])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(file, run_name="__main__")
    return left.value.code


@pytest.mark.parametrize("name", CALLED)
def test_a_script_tells_what_it_does(name, monkeypatch, capsys):
    assert status(monkeypatch, name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: python -m scripts.{name} ") and len(out.split("\n\n")) > 2


@pytest.mark.parametrize("name", CALLED)
def test_a_script_refuses_what_it_does_not_know(name, monkeypatch, capsys):
    assert status(monkeypatch, name, "--nonsense") == 2
    assert f"usage: python -m scripts.{name} " in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    assert status(monkeypatch, "front_page", str(Path(__file__) / "picture.png")) == 2
    err = capsys.readouterr().err
    assert err.startswith("front_page: ") and "picture.png" in err and err.count("\n") == 1
