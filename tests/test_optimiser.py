"""The learning rate of every step: a cosine, with a line before it where a warm-up is asked for."""

import math

import pytest

from ellarepro.settings.parts import WeightSettings
from ellarepro.training.optimisers import learning_rate


def rates(steps_per_epoch: int = 10, **changes) -> list[float]:
    settings = WeightSettings(epochs=4, batch_size=8, optimiser="adam", lr=0.5, min_lr=0.1, **changes)
    return [learning_rate(settings, step, steps_per_epoch) for step in range(settings.epochs * steps_per_epoch)]


def test_the_rate_is_a_cosine_from_lr_to_min_lr():
    got = rates()
    assert got[0] == 0.5 and got[20] == pytest.approx(0.3), "the mean of both, half way"
    assert got[10] == pytest.approx(0.1 + 0.4 * math.cos(math.pi / 8) ** 2), "by the half-angle formula"
    assert got == sorted(got, reverse=True) and got[-1] > 0.1


@pytest.mark.parametrize("epochs", [1, 1.5, 0.2])
def test_a_warm_up_rises_to_the_cosine_and_changes_nothing_after(epochs):
    plain, warm, rising = rates(), rates(warmup=epochs), round(10 * epochs)
    shares = [one / other for one, other in zip(warm, plain, strict=True)]
    assert shares[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert warm[rising - 1 :] == plain[rising - 1 :]


def test_no_step_stands_still():
    """A rate of 0 at the first step would leave that batch out."""
    assert min(rates(warmup=4)) > 0
