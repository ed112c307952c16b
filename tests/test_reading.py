"""What the results pages say of numbers in sentences: counted again from the committed results."""

import json
import re
from itertools import combinations
from math import hypot
from pathlib import Path
from statistics import fmean

import pytest
import torch

from ellarepro.inspection import untrained_shares
from ellarepro.network import build_network
from ellarepro.results import accuracy_error, read_results
from ellarepro.tables import build_grids, unique_runs
from ellarepro.tables.orderings import TIE, YES, orderings
from scripts.studies import evidence

RESULTS = Path(__file__).parents[1] / "results"


def said(page: str) -> str:
    """The text of a page of results, on one line and without emphasis."""
    return " ".join((RESULTS / page).read_text().replace("**", "").split())


def test_orderings_that_hold_and_ties_are_counted():
    for table in ("table1", "table2", "table3"):
        for grid in build_grids(table, read_results(RESULTS / table)):
            verdicts = [ordering.verdict for ordering in orderings(grid) if ordering.verdict]
            counts = f"{len(verdicts)} orderings {verdicts.count(YES)} hold and {verdicts.count(TIE)} are ties"
            if table == "table1" and grid.budget == "wide":
                assert sorted(verdicts) == sorted([TIE, TIE, TIE, YES])
                assert "Of the four orderings that these cells can test one holds" in said("README.md")
                continue
            if table == "table3" and grid.budget == "wide":
                assert verdicts == [YES] * 5
                assert "All five orderings that the cells can test hold" in said("README.md")
                continue
            if grid.title.startswith("Table 2: CIFAR-10 (budget wide"):
                assert (len(verdicts), verdicts.count(YES), verdicts.count(TIE)) == (21, 16, 1)
                assert "Of the 21 that these cells can test 16 hold, and one is a tie" in said("README.md")
                continue
            assert f"Of the paper's {counts}" in said("README.md"), grid.title
            if table == "table2":
                tested = sum(ordering.tested for ordering in orderings(grid))
                assert f"only {tested} of these orderings have three" in said("README.md")


def test_on_the_digit_conv_and_the_learnable_network_are_a_tie():
    grid = build_grids("table1", read_results(RESULTS / "table1"), "cpu")[0]
    cells = {cell.column: cell for cell in grid.rows[0].cells}
    pairs = zip(cells["laplace/conv"].by_seed, cells["laplace/f_fc_conv"].by_seed, strict=True)
    first, second, third = (f"{conv - both:+.2f}".replace("+0.00", "0.00") for conv, both in pairs)
    assert f"CONV's lead over F-FC+CONV is {first}, {second} and {third} points by seed" in said("README.md")


def test_shares_of_the_first_layers_stand_beside_what_was_there_before_and_what_the_fit_allows():
    (run,) = (r for r in read_results(RESULTS / "table2") if r.layer == "fc_conv" and r.objective == "laplace")
    before = {layer: f"{share['conv']:.0f}" for layer, share in untrained_shares(run)[0].items()}
    text = said("README.md")
    assert f"CONV had {before['1']}, {before['2']} and {before['3']}% of layers 1 to 3, and {before['8']}%" in text
    size, passes = run.config["objective"]["fit_size"], run.config["objective"]["passes"]
    with torch.device("meta"):
        network = build_network("fc_conv", in_channels=3, num_classes=10, alpha=run.config["alpha"])
    # Factors of a fit have the rank of its samples at most, and gamma that of their product.
    caps = [
        min(1, size * passes / outputs) * min(1, size / inputs)
        for outputs, inputs in (network.get_parameter(f"blocks.{i}.paths.fc.weight").shape for i in range(3))
    ]
    assert "at {:.2f}, {:.2f} and {:.2f} there".format(*caps) in text


@pytest.mark.parametrize("layer, prior, path", [("fc_conv", "theta", "fc"), ("s_fc_s_conv", "omega", "s_fc")])
def test_shares_and_ablations_of_table_2_are_those_of_the_runs(layer, prior, path):
    runs = {r.objective: r for r in read_results(RESULTS / "table2") if (r.layer, r.prior) == (layer, prior)}
    share = fmean(shares[path] for shares in runs["laplace"].relative_effective_parameters.values())
    lost = {
        name: [-100 * run.path_use[place][path]["accuracy_change"] for place in (*"1234", "all")]
        for name, run in runs.items()
    }
    cells = (number for name in ("map", "laplace") for number in (lost[name][-1], max(lost[name][:-1])))
    assert " | ".join([f"{share:.0f}", *(f"{number:.1f}" for number in cells)]) in said("README.md")


def test_the_reading_of_the_evidence_has_the_counts_of_its_page():
    folders = [RESULTS / name for name in evidence.FOLDERS if (RESULTS / name).is_dir()]
    tasks = evidence.tasks(evidence.compared(unique_runs(folders)))
    pairs = [(pair, evidence.kind(*pair)) for runs in tasks.values() for pair in combinations(runs, 2)]
    layers = [pair for pair, differs in pairs if differs == evidence.LAYERS]
    agree, right = sum(map(evidence.by_nll, layers)), sum(map(evidence.by_accuracy, layers))
    text = said("evidence/reading.md")
    for kind in evidence.KINDS:
        own = [pair for pair, differs in pairs if differs == kind]
        assert f"| {sum(map(evidence.by_nll, own))} of {len(own)} |" in text, kind
    assert f"in {agree} of {len(layers)} pairs" in text and f"it is {right} of {len(layers)}" in text
    assert f"share {len({run.run_id for pair in layers for run in pair})} runs" in text
    wrong = [{run.layer for run in pair} for pair in layers if not evidence.by_accuracy(pair)]
    told = wrong.count({"conv", "f_fc_conv"})
    assert f"{told} of the {len(wrong)} failures are CONV against F-FC+CONV" in text
    seeds = [pair for pair, differs in pairs if differs == evidence.SEEDS]
    assert f"{sum(map(evidence.by_nll, seeds))} of {len(seeds)} pairs" in text
    for low, high in ((0, 0.03), (0.03, 0.1), (0.1, 0.3)):
        own = [pair for pair in seeds if low <= abs(pair[0].test_nll - pair[1].test_nll) < high]
        assert f"{sum(map(evidence.by_nll, own))} of {len(own)}" in text
    far = [pair for pair in seeds if abs(pair[0].test_nll - pair[1].test_nll) >= 0.3]
    assert len(far) == 3 and not any(map(evidence.by_nll, far))
    assert all(run.dataset.startswith("moved_digits") for pair in far for run in pair)


def test_pairs_of_the_sizes_that_are_ahead_behind_and_ties_are_counted():
    runs = {(r.layer, r.train_size, r.objective): r for r in read_results(RESULTS / "sizes")}
    pairs = [(run, runs[layer, size, "map"]) for (layer, size, name), run in runs.items() if name == "laplace"]
    leads = [
        (one.test_accuracy - other.test_accuracy)
        / hypot(*(accuracy_error(run.test_accuracy, run.test_size) for run in (one, other)))
        for one, other in pairs
    ]
    ahead, behind = sum(lead > 2 for lead in leads), sum(lead < -2 for lead in leads)
    ties = len(pairs) - ahead - behind
    told = f"in {ahead} of {len(pairs)} pairs and behind in {behind}; {ties} are ties"
    assert told in said("sizes/reading.md")
    assert f"in {ahead} of {len(pairs)} pairs of one seed" in said("README.md") and f"{ties} are ties" in said(
        "README.md"
    )


def test_what_the_demo_depends_on_is_what_its_runs_show():
    rows = re.findall(r"^\| .*`(\S+=\S+)`.*?((?: \| *[\d.]+){4}) \|$", (RESULTS / "budgets/study.md").read_text(), re.M)
    assert len(rows) == 4
    tables = dict(
        re.findall(r"## demo: F-FC\+CONV on (\w+)\n\n((?:\|.*\n)+)", (RESULTS / "budgets/study.md").read_text())
    )
    for change, numbers in rows:
        said_of = [float(number) for number in re.findall(r"[\d.]+", numbers)]
        for dataset, told in (("quadrant_digit", said_of[:2]), ("quadrant_digit_and_position", said_of[2:])):
            lines = {cells[1].strip(): cells for cells in (line.split("|") for line in tables[dataset].splitlines())}
            points, nats = (float(lines["as it is"][i]) - float(lines[change][i]) for i in (3, 5))
            assert told == pytest.approx([-nats, points], rel=0.05), (dataset, change)


def test_the_error_of_one_signed_pass_stands_with_the_number_of_images():
    rows = json.loads((RESULTS / "ascent" / "passes.json").read_text())["rows"]
    drawn = {(row["kind"], row["passes"], row["images"]): [draw["log_det"] for draw in row["draws"]] for row in rows}
    (exact,) = drawn["exact", None, 4000]
    for images in (4000, 400):
        errors = [100 * abs(value / exact - 1) for value in drawn["signs", 1, images]]
        assert f"off by {min(errors):.1f} to {max(errors):.1f}%" in said("ascent/passes.md")


def test_the_evidence_orders_the_seeds_of_the_symmetry_study_alike():
    runs = [run for run in read_results(RESULTS / "symmetry") if run.objective == "laplace"]
    for dataset in {run.dataset for run in runs}:
        own = sorted((r for r in runs if r.dataset == dataset), key=lambda run: run.neg_log_marglik_per_datum)
        assert [run.seed for run in own] == [713, 712, 711]
        if dataset in ("moved_digits_rotation", "moved_digits_both"):
            assert own[0].test_accuracy == min(run.test_accuracy for run in own)
            assert f"{100 * own[0].test_accuracy:.1f}% for " in said("symmetry/reading.md").replace("the others' ", "")
