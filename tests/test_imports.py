"""Imports point one way, and heavy or optional packages are imported in one place each."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ellarepro"

# Each module may import from those before it: a rank a module or folder, low to high.
RANKS = {
    "errors": 0,
    "files": 0,
    "markdown": 0,
    "places": 0,
    "shares": 1,
    "curvature.factors": 1,
    "curvature.rule": 2,
    "layers": 3,
    "network": 4,
    "data": 4,
    "curvature": 5,
    "labels": 5,
    "results": 5,
    "prior": 5,
    "marglik": 6,
    "evaluation": 6,
    "checkpoint": 6,
    "progress": 6,
    "tracking": 6,
    "inspection": 6,
    "tables": 6,
    "figures": 7,
    "predictive": 7,
    "training": 7,
    "data.__main__": 8,
    "settings": 8,
    "run": 9,
    "__main__": 10,
}
ONLY_IN = {
    "asdl": {"curvature.asdl_hooks"},
    "laplace": {"curvature.backend", "curvature.kron"},
    "wandb": {"tracking"},
    "matplotlib": {"figures"},
    "hydra": {"__main__"},
    "omegaconf": {"__main__", "run", "tables"},
}


def modules() -> dict[str, Path]:
    paths = [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in paths}


def imported(source: str) -> set[str]:
    """All modules that `source` imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def rank(module: str) -> int:
    return RANKS[module] if module in RANKS else RANKS[module.partition(".")[0]]


def at_home(module: str, homes: set[str]) -> bool:
    """Whether `module` or its package is among `homes`."""
    return any(f"{module}.".startswith(f"{home}.") for home in homes)


def upward(module: str, source: str) -> list[str]:
    """Imports of `module` that point up (to a higher rank)."""
    inner = [name.removeprefix("ellarepro.") for name in imported(source) if name.startswith("ellarepro.")]
    return [name for name in inner if rank(name) > rank(module)]


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    assert not upward(module, modules()[module].read_text())


@pytest.mark.parametrize("module", modules())
def test_each_outside_package_has_one_home(module):
    outside = {name.partition(".")[0] for name in imported(modules()[module].read_text())}
    strays = {package for package, homes in ONLY_IN.items() if package in outside and not at_home(module, homes)}
    assert not strays


def test_an_import_that_points_up_is_seen():
    assert upward("layers.conv", "from ellarepro.training import Trainer") == ["training"]
    assert upward("network", "def f():\n    import ellarepro.run") == ["run"]
