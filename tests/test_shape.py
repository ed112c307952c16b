"""The shape of the code: files and functions that can be read at one sitting, and a complete package."""

import ast
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(path for folder in ("ellarepro", "scripts") for path in (REPOSITORY / folder).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


def long_functions(source: str) -> list[str]:
    """Functions of more than `LONGEST_FUNCTION` lines."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    return [f.name for f in functions if f.end_lineno - f.lineno + 1 > LONGEST_FUNCTION]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_and_its_functions_can_be_read_at_one_sitting(path):
    source = path.read_text()
    assert len(source.splitlines()) <= LONGEST_FILE and not long_functions(source)


def test_a_long_function_is_seen():
    assert long_functions("def f():\n" + "    pass\n" * LONGEST_FUNCTION) == ["f"]


def test_an_installation_has_every_package_and_every_configuration():
    setup = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(REPOSITORY).parts) for p in (REPOSITORY / "ellarepro").rglob("__init__.py")}
    assert set(setup["packages"]) == found | {"ellarepro.configs"}
    assert setup["package-dir"]["ellarepro.configs"] == "configs"
    data = setup["package-data"]
    assert data.pop("ellarepro.configs") == ["**/*.yaml"]
    others = {p for p in (REPOSITORY / "ellarepro").rglob("*.*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    told = {path for package, names in data.items() for name in names for path in folder_of(package).glob(name)}
    assert others == told and others


def folder_of(package: str) -> Path:
    return REPOSITORY.joinpath(*package.split("."))
