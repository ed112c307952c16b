"""The report: it shows every number and every run, says what is missing, and works in a real browser on its own."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from result_factory import make_config, make_learned_result, make_map_result, make_result, with_use

from ellarepro.network import PATHS
from ellarepro.report import render_page
from ellarepro.report.__main__ import main
from ellarepro.report.charts import SYMBOLS, run_charts
from ellarepro.report.page import coverage, difference, verdict
from ellarepro.results import write_result
from ellarepro.symmetry.labels import path_marker
from ellarepro.tables import build_grids
from ellarepro.tables.cells import Cell

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, DESK = 390, 1280


def toy(accuracy: float, layer: str = "fc", **changes):
    config = make_config(layer={"name": layer}, **changes)
    return make_result(config, paths=(layer,), test_accuracy=accuracy)


@pytest.fixture(scope="module")
def runs():
    position = {"dataset": {"name": "quadrant_digit_and_position"}}
    alone = [toy(0.91), toy(0.98, **position), toy(0.22, "conv", **position)]
    return [
        *alone,
        with_use(make_learned_result(), f_fc=0.5),
        make_learned_result(("s_fc", "s_conv"), "omega"),
        make_map_result(),
    ]


@pytest.fixture(scope="module")
def page(runs):
    return render_page(runs)


def texts(page: str) -> str:
    """What a reader sees of `page`, scripts and styles left out."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def cell(mean: float | None, published: float | None, better: int = 0) -> Cell:
    ours, theirs = ([[v]] if v is not None else [] for v in (mean, published))
    return Cell("row", "column", "accuracy", ours, [v for (v,) in theirs], 2, better=better)


@pytest.mark.parametrize(
    ("ours", "published", "better", "wanted"),
    [
        (90.0, 95.0, 1, ("worse", "▽ 5.00")),
        (96.0, 95.0, 1, ("better", "▲ 1.00")),
        (0.30, 0.20, -1, ("worse", "▲ 0.10")),
        (0.10, 0.20, -1, ("better", "▽ 0.10")),
        (0.201, 0.20, -1, ("equal", "= 0.00")),
        (16.0, 10.0, 0, ("", "▲ 6.00")),
        (None, 10.0, 1, ("missing", "")),
        (16.0, None, 1, ("", "")),
    ],
)
def test_a_cell_says_how_far_from_the_published_it_is_and_whether_that_is_better(ours, published, better, wanted):
    shown = cell(ours, published, better)
    assert (verdict(shown), difference(shown)) == wanted


def test_numbers_that_were_not_run_are_counted_and_shown(runs, page):
    (grid,) = build_grids("table1", runs[:3])
    assert coverage(grid) == "5 of 15 published numbers have been run"
    (nothing,) = build_grids("table2", [])
    assert coverage(nothing) == "0 of 66 published numbers have been run" and coverage(nothing) in texts(page)
    assert coverage(build_grids("appendix", [])[0]) == "no numbers were published"
    missing = sum(c.mean is None for row in nothing.rows for c in row.cells if c.published)
    assert page.count("not run</span>") > missing == 66


def test_of_the_tables_of_one_budget_the_most_complete_is_open():
    page = render_page([toy(0.5, alpha=1), toy(0.9), toy(0.9, "conv"), toy(0.7, budget={"name": "smoke"})])
    table = re.search(r'<section id="table1">.*?</section>', page, re.DOTALL).group()
    shown = re.sub(r"<details.*?</details>", "", table, flags=re.DOTALL)
    assert "50.00" in table and "50.00" not in shown
    assert "90.00" in shown and "70.00" in shown, "another budget is a table of its own"


def test_every_run_is_there_with_where_it_came_from(runs, page):
    seen = texts(page)
    for run in runs:
        assert f'id="{run.run_id}"' in page and run.git_commit in seen and run.data_fingerprint in seen
    assert "budget demo" in seen and "objective.steps" in seen and "alpha 10; 50,000 training images (MNIST)" in seen
    assert f'<a class="ours" href="#{runs[0].run_id}">91.00</a>' in page


def test_what_a_result_says_cannot_end_a_script_or_make_a_tag():
    evil = make_result(make_config(dataset={"name": "</script><b>quadrant</b>"}), git_commit="<i>dirty</i>")
    page = render_page([evil])
    assert "<b>quadrant" not in page and "<i>dirty" not in page and "&lt;i&gt;dirty" in page


def test_learned_ranges_have_a_chart_of_their_own(runs):
    fits = runs[3].series("fit_epoch")
    ranges = [0.1 * (index + 1) for index in range(len(fits))]
    learned = replace(runs[3], history=runs[3].history | {"hyperparameters": {"range_rotation": ranges}})
    (line,) = next(json.loads(c.figure) for c in run_charts(learned) if c.title == "hyperparameters")["data"]
    assert (line["x"], line["y"], line["name"]) == (fits, ranges, "range rotation")


def test_charts_show_the_numbers_of_the_result(runs):
    learned = runs[3]
    nats, accuracy, precisions, relative, raw, use, constant = (
        json.loads(chart.figure) for chart in run_charts(learned)
    )
    evidence = [*learned.series("neg_log_marglik_per_datum"), learned.neg_log_marglik_per_datum]
    assert nats["data"][1]["y"] == evidence and nats["data"][2]["y"] == [learned.test_nll]
    assert accuracy["data"][1]["y"] == [100 * learned.test_accuracy]
    assert len(precisions["data"]) == 8 and precisions["layout"]["yaxis"]["type"] == "log"
    changes = {layer: {p: own["nll_change"] for p, own in paths.items()} for layer, paths in learned.path_use.items()}
    assert list(changes)[-1] == "all" and changes["1"]["f_fc"] == 0.5
    by_constant = {layer: dict.fromkeys(paths, 2.5 if layer == "all" else 0.75) for layer, paths in changes.items()}
    used = (use, changes), (constant, by_constant)
    wanted = (relative, learned.relative_effective_parameters), (raw, learned.effective_share), *used
    for figure, numbers in wanted:
        shown = {bar["name"]: dict(zip(bar["x"], bar["y"], strict=True)) for bar in figure["data"]}
        assert shown == {
            title: {layer: own[path] for layer, own in numbers.items()}
            for path, title in (("f_fc", "F-FC"), ("conv", "CONV"))
        }


def test_a_chart_without_data_says_why(runs):
    notes = {chart.title: chart.note for chart in run_charts(runs[-1]) if not chart.figure}
    assert notes["learned precision"] == notes["relative effective number"] == "no curvature was fitted"
    assert notes["use: change of test NLL without the path"] == "not recorded in this result"
    assert "CONV alone: nothing to share" in [chart.note for chart in run_charts(runs[2])]


def test_a_page_is_written_from_folders_of_runs(tmp_path, runs, capsys):
    for run in runs:
        write_result(run, tmp_path / "some" / run.run_id)
    out = tmp_path / "new" / "page.html"
    assert main(["--runs", str(tmp_path / "some"), "--out", str(out)]) == 0
    assert f"{len(runs)} runs: {out}" in capsys.readouterr().out and "Table 3" in out.read_text()
    assert main(["--runs", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


PROBE = """
<script>
const seen = { charts: document.querySelectorAll("details[open] .js-plotly-plot .main-svg").length };
const table = document.querySelector("#runs table");
const column = (name) => [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.startsWith(name));
const sorted = (name) => {
  table.tHead.rows[0].cells[column(name)].querySelector("button").click();
  return [...table.tBodies[0].rows].map((row) => row.cells[column(name)].textContent.trim());
};
seen.accuracy = [sorted("test acc."), sorted("test acc.")];
seen.evidence = [sorted("-marglik"), sorted("-marglik")];
seen.layer = sorted("layer");
seen.wider = document.documentElement.scrollWidth - innerWidth;
seen.fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
document.body.innerHTML = `<pre id="seen">${JSON.stringify(seen)}</pre>`;
</script>
"""


def browse(folder: Path, page: str, width: int = DESK, anchor: str = "") -> tuple[str, list[str]]:
    """The document that a real browser makes of `page`, and what its console says."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (one of {', '.join(BROWSERS)})")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
    ]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1000", "--virtual-time-budget=5000"]
    command = [browser, *flags, "--dump-dom", f"{file.as_uri()}#{anchor}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probe(folder: Path, page: str, **options) -> dict:
    """What `PROBE` finds in a real browser, in which nothing went wrong."""
    document, console = browse(folder, page.replace("</body>", f"{PROBE}</body>"), **options)
    assert not console
    return json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', document).group(1)))


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_in_a_browser_it_draws_sorts_fits_and_fetches_nothing(tmp_path, runs, page, width):
    seen = probe(tmp_path, page, width=width, anchor=runs[3].run_id)
    assert seen["charts"] >= 6
    up, down = ([float(text) for text in texts] for texts in seen["accuracy"])
    assert up == sorted(up) and down == up[::-1] and len(set(up)) > 2
    known = ["0.500"] * (len(runs) - 1)
    assert seen["evidence"] == [[*known, "–"]] * 2, "what is missing comes last, whichever way"
    assert seen["layer"] == sorted(seen["layer"]) and "F-FC+CONV" in seen["layer"]
    assert seen["wider"] <= 0 and seen["fetched"] == []


def test_a_browser_refuses_what_is_not_on_the_page(tmp_path, page):
    _, console = browse(tmp_path, page.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_a_symbol_of_its_own_in_the_report(path):
    others = {path_marker(other) for other in PATHS} - {path_marker(path)}
    assert path_marker(path) in SYMBOLS and SYMBOLS[path_marker(path)] not in {SYMBOLS[other] for other in others}


def test_a_marker_that_the_report_does_not_know_is_a_circle(monkeypatch):
    monkeypatch.setattr(PATHS["f_fc"], "marker", "$?$")
    assert any("circle" in chart.figure for chart in run_charts(make_learned_result()))
