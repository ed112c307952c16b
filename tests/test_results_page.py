"""The page of all committed runs: it is that of the results that are there, and says what each run found."""

import math
import re
from dataclasses import replace

from result_factory import make_config, make_learned_result, make_map_result, make_result, with_use

from ellarepro.results import run_id, write_result
from scripts.results_page import RESULTS, quoted, text_of


def test_the_page_is_that_of_the_committed_results():
    assert (RESULTS / "tables.md").read_text() == text_of(RESULTS), "python -m scripts.results_page makes it anew"


def test_the_tables_of_the_reading_are_those_of_the_committed_results():
    page = (RESULTS / "README.md").read_text()
    assert page.count("<!-- table") == 8 and quoted(page, RESULTS) == page
    assert quoted(page.replace("98.15 ± 0.10", "99.23 ± 0.10"), RESULTS) == page, "a wrong number is put right"
    wide = page.partition("<!-- table2 wide -->")[2].partition("- **")[0]
    assert "F-FC+CONV" in wide and "S-CONV" not in wide, "what was not run has no row"


def test_it_has_each_run_with_its_shares_and_its_use(tmp_path):
    learned = with_use(make_learned_result(), f_fc=0.25)
    for run in (learned, make_map_result()):
        write_result(run, tmp_path / "table2" / run.run_id)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text_of(tmp_path).splitlines()]
    (f_fc,) = (line for line in lines if line[1:2] == ["F-FC"])
    assert f_fc[4] == f"{learned.relative_effective_parameters['1']['f_fc']:.0f}"
    assert f_fc[2] == "–", "what it had before training is not recorded in this result"
    assert f_fc[-1] == "+1.500; +2.500"
    assert sum(f"table2/{learned.run_id}/result.json" in line[0] for line in lines if line) == 1


def test_a_run_that_only_guessed_has_a_row_and_no_shares(tmp_path):
    guessed = replace(with_use(make_learned_result(), f_fc=0.25), history={"epoch": [0], "loss": [math.log(10)]})
    write_result(guessed, tmp_path / "table2" / guessed.run_id)
    text = text_of(tmp_path)
    assert f"table2/{guessed.run_id}/result.json" in text and "NLL without" not in text


def test_runs_of_one_budget_stand_together_under_their_own_table(tmp_path):
    for budget in ("cpu", "demo"):
        run = make_result(make_config(budget={"name": budget}))
        write_result(run, tmp_path / "table1" / run.run_id)
    sections = text_of(tmp_path).split("\n## ")[1:]
    assert len(sections) == 2
    for budget, section in zip(("cpu", "demo"), sections, strict=True):
        assert f"(budget {budget}, " in section.splitlines()[0]
        assert re.findall(r"table1/(.*?)/result.json", section) == [run_id(make_config(budget={"name": budget}))]
