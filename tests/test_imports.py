"""Imports point one way, and heavy or optional packages are imported in one place each."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Each module may import from those before it: a rank a module or folder, low to high; `ellarepro.` is left out.
RANKS = {
    "errors": 0,
    "tables.markdown": 0,
    "layers.tensors": 0,
    "resume": 1,
    "settings.ranges": 1,
    "settings": 2,
    "symmetry.shares": 1,
    "curvature.factors": 1,
    "curvature.patches": 2,
    "curvature.rule": 2,
    "layers": 3,
    "network": 4,
    "data": 4,
    "curvature": 5,
    "results": 5,
    "symmetry": 5,
    "evidence": 6,
    "inspection": 6,
    "tables": 6,
    "symmetry.ablation": 7,
    "objectives": 7,
    "figures": 7,
    "report": 7,
    "training": 8,
    "noether": 7,
    "tracking": 8,
    "config": 8,
    "data.__main__": 8,
    "layerwise": 9,
    "runs": 9,
    "run": 10,
    "launching": 11,
    "__main__": 12,
    "scripts.bench": 13,
    "scripts.estimate": 14,
    "scripts": 15,
}
ONLY_IN = {
    "asdl": {"curvature.interop", "scripts.bench"},
    "laplace": {"curvature.interop", "scripts.bench"},
    "wandb": {"tracking"},
    "matplotlib": {
        "figures",
        "scripts.bench",
        "scripts.studies",
    },
    "plotly": {"report"},
    "jinja2": {"report"},
    "rich": {"launching.display"},
    "hydra": {"__main__", "config", "launching"},
    "omegaconf": {"__main__", "config", "launching", "run", "tables"},
}


def modules() -> dict[str, Path]:
    """Every module by its name: those of the package without `ellarepro.`, those of scripts/ with `scripts.`."""
    paths = [path for folder in ("ellarepro", "scripts") for path in (REPOSITORY / folder).rglob("*.py")]
    names = {".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    return {name.removeprefix("ellarepro."): path for name, path in names.items() if name != "ellarepro"}


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
    """The rank of `module` or of the nearest package above it that has one; KeyError where none has."""
    ranked = module
    while ranked and ranked not in RANKS:
        ranked = ranked.rpartition(".")[0]
    return RANKS[ranked or module]


def at_home(module: str, homes: set[str]) -> bool:
    """Whether `module` or its package is among `homes`."""
    return any(f"{module}.".startswith(f"{home}.") for home in homes)


def upward(module: str, source: str) -> list[str]:
    """Imports of `module` that point up (to a higher rank)."""
    own = [name for name in imported(source) if name.partition(".")[0] in ("ellarepro", "scripts")]
    inner = [name.removeprefix("ellarepro.") for name in own if name != "ellarepro"]
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
    with pytest.raises(KeyError, match="new_module"):
        rank("new_module")
    assert upward("layers.conv", "from ellarepro.training.loop import Trainer") == ["training.loop"]
    assert upward("network", "def f():\n    import ellarepro.run") == ["run"]
    assert upward("run", "from scripts.estimate import run_seconds") == ["scripts.estimate"]
    assert upward("scripts.bench.layers", "import scripts.make_table") == ["scripts.make_table"]


def rooms_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """The rooms that each room of the package imports; a command (`__main__`) belongs to none."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        if module.startswith("scripts") or module.endswith("__main__"):
            continue
        own = {name.split(".")[1] for name in imported(source) if name.startswith("ellarepro.")}
        room = module.partition(".")[0]
        found.setdefault(room, set()).update(own - {room})
    return found


def mutual(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    return [(a, b) for a in rooms for b in rooms[a] if a < b and a in rooms.get(b, ())]


def test_no_two_rooms_import_each_other():
    assert not mutual(rooms_of({module: path.read_text() for module, path in modules().items()}))
    control = {"data.sources": "import ellarepro.layers.conv", "layers.conv": "from ellarepro.data import Task"}
    assert mutual(rooms_of(control)) == [("data", "layers")]
