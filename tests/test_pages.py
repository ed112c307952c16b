"""README and docs: their links lead somewhere, their Python runs, their figures are those of the committed results."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from test_library_page import code_of, run

from ellarepro.config.compose import expand
from ellarepro.results import RunResult, read_results
from scripts.front_page import main as draw_front_page
from scripts.studies.__main__ import NAMES, study_named
from scripts.studies.study import reading_in

ROOT = Path(__file__).parents[1]
FOUND = [*sorted((ROOT / "results").glob("*.md")), *sorted((ROOT / "results").glob("*/*.md"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *FOUND]
README = PAGES[0].read_text()
ELSEWHERE = ("README", "library")
"""Pages whose Python `test_library_page.py` runs."""


def links(page: str) -> list[str]:
    """Targets of a page's links and pictures, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_committed(page):
    targets = [target.partition("#")[0] for target in links(page.read_text()) if "://" not in target]
    assert not [target for target in targets if target and not (page.parent / target).exists()]


def test_a_link_that_leads_nowhere_is_seen():
    assert links("a [page](docs/none.md), ![picture](a.png) and `[code](b.md)`") == ["docs/none.md", "a.png"]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem not in ("README", "library")], ids=lambda page: page.name
)
def test_python_runs_as_it_stands(page, tmp_path):
    if blocks := code_of(page.read_text()):
        run("\n".join(blocks), tmp_path)


def test_the_page_on_extending_has_a_budget_with_every_key(tmp_path):
    *_, text = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    demo = yaml.safe_load((ROOT / "configs/budget/demo.yaml").read_text())
    assert yaml.safe_load(text)["budget"].keys() == demo["budget"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_study_is_that_of_the_committed_runs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study, folder = study_named(name), ROOT / "results" / name
    keys = ("dataset=cifar10_jpeg",) if name == "sizes" else ()
    configs = study.sweep(keys).configs if study.sweeps else []
    text = study.page(study.finished(configs), len(configs), reading_in(folder))
    assert (folder / "study.md").read_text() == text and (folder / "study.png").exists()


def over_seeds(runs: list[RunResult], cell: tuple[str, ...]) -> str:
    """Test accuracy in % of the runs of a cell, as the tables print it."""
    own = [100 * r.test_accuracy for r in runs if (r.dataset, r.layer, r.objective, r.budget) == cell]
    return f"{mean(own):.2f}" + (f" ± {stdev(own):.2f}" if len(own) > 1 else "")


def test_the_front_page_is_that_of_the_committed_results(tmp_path):
    table1, table2 = (read_results(ROOT / "results" / table) for table in ("table1", "table2"))
    running = (ROOT / "docs" / "running.md").read_text()
    for dataset in ("quadrant_digit", "quadrant_digit_and_position"):
        (row,) = re.findall(rf"^\| {dataset} +\|(.*)\|$", README, re.MULTILINE)
        cells = [re.sub(r" n=\d", "", cell.partition("[")[0]).strip() for cell in row.split("|")]
        columns = (("fc", "map"), ("conv", "map"), ("fc", "laplace"), ("conv", "laplace"), ("f_fc_conv", "laplace"))
        assert cells == [over_seeds(table1, (dataset, *column, "cpu")) for column in columns]
        (row,) = re.findall(rf"^\| {dataset} \|(.*)\|$", running, re.MULTILINE)
        demo = [over_seeds(table1, (dataset, layer, "laplace", "demo")) + "%" for layer in ("fc", "conv", "f_fc_conv")]
        assert [cell.strip() for cell in row.split("|")] == demo
    for layer, objective in (("conv", "laplace"), ("f_fc_conv", "laplace"), ("f_fc_conv", "map")):
        assert over_seeds(table2, ("cifar10_jpeg", layer, objective, "cpu")) + "%" in README
    assert draw_front_page([str(tmp_path / "front.png")]) == 0
    assert (tmp_path / "front.png").stat().st_size > 10_000


def test_the_speed_on_the_front_page_is_that_of_the_bench():
    bench = json.loads((ROOT / "results" / "bench.json").read_text())
    rows = {name: row for part in bench.values() for table in part["tables"] for name, row in table["rows"].items()}
    plain = {row: cells for table in bench["plain"]["tables"] for row, cells in table["rows"].items()}
    steps = [f"{plain[layer]['ours / plain']['value']:.2f}" for layer in ("conv", "f_fc", "f_fc_conv")]
    assert f"| {' / '.join(steps)} of its time |" in README
    times = [1 / rows[what]["ours / released"]["value"] for what in ("training step", "curvature fit of a batch")]
    assert f"| {times[0]:.0f} / {times[1]:.0f} times faster |" in README
    peers = [f"{rows[peer]['ours / it']['value']:.2f}" for peer in ("AsdlGGN", "CurvlinopsGGN")]
    assert f"| {' / '.join(peers)} of their time |" in README
    sampled = [f"{rows[peer]['one pass / it']['value']:.2f}" for peer in ("AsdlGGN", "CurvlinopsGGN")]
    assert f"| {' / '.join(sampled)} of their time |" in README


@pytest.mark.parametrize("page", ["curvature", "layers"])
def test_tables_of_the_bench_are_quoted_as_they_are(page):
    bench = (ROOT / "results" / "bench.txt").read_text()
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    quoted = [
        line for block in blocks if "alpha 10" in block or "every layer type" in block for line in block.splitlines()
    ]
    assert len(quoted) > 15 and all(line in bench.splitlines() for line in quoted)


def commands_of(page: str) -> list[str]:
    """The lines of a page's shell blocks, comments left out."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_a_shell_takes_the_commands_of_the_pages():
    told = "\n".join(line for page in PAGES for line in commands_of(page.read_text()))
    assert told
    subprocess.run(["bash", "-n"], input=told, text=True, check=True)


def test_a_command_that_a_shell_refuses_is_seen():
    (line,) = commands_of("```sh\npython -m ellarepro -m seed=range(5)  # five runs\n```")
    assert subprocess.run(["bash", "-n"], input=line, text=True, capture_output=True).returncode


def test_commands_of_the_pages_compose():
    """Every `python -m ellarepro [-m] key=value …` of a page, with its choices."""
    told = [shlex.split(line) for page in PAGES for line in commands_of(page.read_text())]
    runs = [words[3:] for words in told if words[:3] == ["python", "-m", "ellarepro"]]
    assert [keys for keys in runs if keys[0] == "-m"] and [keys for keys in runs if keys[0] != "-m"]
    for keys in runs:
        assert expand([key for key in keys if key != "-m"], multirun="-m" in keys).configs


def test_the_citation_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    preferred = cited["preferred-citation"]
    assert preferred["title"] in README and preferred["url"] in README and str(preferred["year"]) in README


def test_the_site_has_every_page_of_docs():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [page if isinstance(page, str) else next(iter(page.values())) for page in nav]
    assert all((ROOT / page).exists() for page in pages)
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(pages)


def test_make_help_lists_every_target_and_variable():
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    variables = set(re.findall(r"\$\((?:if |or )?\$?\(?([A-Z]+)\b", makefile)) - {"PY", "TABLE", "KEYS", "MAKEFILE"}
    assert not [name for name in targets if f"make {name} " not in out]
    assert not [name for name in variables | {"BUDGET", "SEEDS", "PYTHON"} if f"{name}=" not in out]
