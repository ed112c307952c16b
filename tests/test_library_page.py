"""docs/library.md and the ten lines of README: the code runs in a fresh process, and what is refused is refused."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import relative_error
from laplace import Laplace
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from ellarepro import Classification, FitSettings, LayerwiseLaplace
from ellarepro.curvature import EllaGGN

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text()
INPUTS, LABELS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def run(code: str, folder: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_runs_in_a_fresh_process():
    out = run("\n".join(code_of(PAGE)))
    assert "trace ratio" in out and "0.weight" in out


def test_the_ten_lines_are_ten_and_stand_in_the_readme():
    ten = code_of(PAGE)[0]
    assert len(list(filter(None, ten.splitlines()))) <= 10
    assert code_of((ROOT / "README.md").read_text()) == [ten], "so that they run with the page"


class Wired(nn.Module):
    """Layers and a forward pass given as a function of them and the input."""

    def __init__(self, forward, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.wiring = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self.wiring(self, inputs)


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


def linear(**options) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4, **options), nn.Tanh(), nn.Linear(4, 3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def tied_by_hand() -> nn.Module:
    return Wired(lambda net, x: net.a(x).tanh() @ net.a.weight, a=nn.Linear(4, 4))


def called_twice() -> nn.Module:
    return Wired(lambda net, x: net.a(net.a(x)), a=nn.Linear(4, 4))


def hooked() -> nn.Module:
    model = linear()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def bare() -> nn.Module:
    model = linear()
    model.scale = nn.Parameter(torch.ones(3))
    return model


def fit(model: nn.Module, data=(INPUTS, LABELS), likelihood="classification", **settings) -> None:
    LayerwiseLaplace(model, likelihood, settings=FitSettings(**settings)).fit(data)


def fit_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fit(linear())


def frozen_late(freeze: bool) -> None:
    model = linear()
    model[0].requires_grad_(freeze)
    laplace = LayerwiseLaplace(model)
    model[0].requires_grad_(not freeze)
    laplace.fit((INPUTS, LABELS))


def replaced(use: Callable[[LayerwiseLaplace], object]) -> None:
    model = linear()
    laplace = LayerwiseLaplace(model)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    use(laplace)


def centred(hidden: Tensor) -> Tensor:
    return hidden - hidden.mean(0)


def normalised(hidden: Tensor) -> Tensor:
    return nn.functional.batch_norm(hidden, None, None, training=True)


class Halved(Classification):
    """A loss that a user has changed, and its curvature not."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) / 2


def without_memory() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ellarepro.curvature.memory.free_bytes", lambda device: 100)
        fit(linear())


def changed() -> None:
    laplace = LayerwiseLaplace(linear()).fit((INPUTS, LABELS))
    laplace.model[0].weight.data.mul_(2)
    laplace.predict(INPUTS)


def train_by(optimiser: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    model = linear()
    LayerwiseLaplace(model).train((INPUTS, LABELS), epochs=6, optimiser=optimiser(model))


def without_gradients(net: nn.Module, x: Tensor) -> Tensor:
    return net.b(checkpoint(lambda v: net.a(v).tanh(), x, use_reentrant=True))


def folded(net: nn.Module, x: Tensor) -> Tensor:
    return net.b(net.a(x.reshape(-1, 2)).view(len(x), -1))


def fit_rewards(structure: str) -> None:
    model = Wired(lambda net, x: net.a(x.reshape(-1, 4)).view(len(x), -1), a=nn.Linear(4, 1))
    pairs = DataLoader(TensorDataset(torch.stack([INPUTS, INPUTS.flip(0)], 1), LABELS.clamp_max(1)), batch_size=6)
    Laplace(model, "reward_modeling", "all", structure, backend=EllaGGN).fit(pairs)


REFUSED = {
    "a layer without a rule (`nn.PReLU`, `nn.LSTM`, …), a parameter that is no layer's, a subclass with a forward of "
    "its own": [
        lambda: fit(nn.Sequential(nn.Linear(4, 3), nn.PReLU())),
        lambda: fit(nn.LSTM(4, 3)),
        lambda: fit(nn.MultiheadAttention(4, 1)),
        lambda: fit(Doubled(4, 3)),
        lambda: fit(bare()),
    ],
    "one tensor in two layers, or a layer called twice": [lambda: fit(tied()), lambda: fit(called_twice())],
    "a weight used outside of its layer's call, or a hook or assigned forward that changes the layer": [
        lambda: fit(tied_by_hand()),
        lambda: fit(hooked()),
    ],
    "a layer that is not called, or whose output is not used": [
        lambda: fit(Wired(lambda net, x: net.a(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3))),
        lambda: fit(Wired(lambda net, x: (net.b(x), net.a(x))[1], a=nn.Linear(4, 3), b=nn.Linear(4, 3))),
    ],
    "a layer called by keyword": [lambda: fit(Wired(lambda net, x: net.a(input=x), a=nn.Linear(4, 3)))],
    "a layer called under `torch.no_grad()`, or in a reentrant checkpoint": [
        lambda: fit(Wired(without_gradients, a=nn.Linear(4, 4), b=nn.Linear(4, 3)))
    ],
    "positions folded into the samples, `(B * T, F)`, or the pairs of laplace-torch's reward modelling; indices of "
    "positions `(T,)`": [
        lambda: fit_rewards("kron"),
        lambda: fit_rewards("diag"),
        lambda: fit(Wired(folded, a=nn.Linear(2, 2), b=nn.Linear(4, 3))),
        lambda: fit(
            Wired(lambda net, x: net.b(net.a(torch.arange(4)).sum(1) + x), a=nn.Embedding(4, 2), b=nn.Linear(4, 3))
        ),
    ],
    "batch normalisation without running statistics": [
        lambda: fit(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)))
    ],
    "samples that see their batch otherwise, as `h - h.mean(0)`": [
        lambda: fit(Wired(lambda net, x: net.b(centred(net.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3))),
        lambda: fit(Wired(lambda net, x: net.b(normalised(net.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3))),
        lambda: fit(Wired(lambda net, x: net.a(centred(x)), a=nn.Linear(4, 3)), structure="full"),
    ],
    "outputs that are random in evaluation mode, by `F.dropout(h)` say": [
        lambda: fit(Wired(lambda net, x: net.a(nn.functional.dropout(x)), a=nn.Linear(4, 3)))
    ],
    "an input that is changed in place, by a first `nn.ReLU(inplace=True)`, say": [
        lambda: fit(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))),
        lambda: fit(Wired(lambda net, x: net.a(x.sub_(x.mean(1, keepdim=True))), a=nn.Linear(4, 3))),
    ],
    "`nn.Embedding` with `max_norm`, `scale_grad_by_freq` or `sparse`": [
        lambda: fit(nn.Sequential(nn.Embedding(5, 3, max_norm=1.0)), (torch.zeros(6, dtype=torch.long), LABELS)),
        lambda: fit(nn.Sequential(nn.Embedding(5, 3, sparse=True)), (torch.zeros(6, dtype=torch.long), LABELS)),
    ],
    "half precision, or a fit under `torch.autocast`": [
        lambda: fit(linear().bfloat16(), (INPUTS.bfloat16(), LABELS)),
        fit_under_autocast,
    ],
    "inputs of a type, shape or range that the network does not take": [
        lambda: fit(linear(), (INPUTS.double(), LABELS)),
        lambda: fit(linear(), (INPUTS[:, :3], LABELS)),
        lambda: fit(nn.Sequential(nn.Embedding(5, 3)), (torch.full((6,), 5), LABELS)),
    ],
    "several inputs, or a dictionary of them; outputs that are a tuple or a dictionary": [
        lambda: fit(linear(), [({"a": INPUTS}, LABELS)]),
        lambda: fit(linear(), [((INPUTS, INPUTS), LABELS)]),
        lambda: fit(Wired(lambda net, x: (net.a(x), x), a=nn.Linear(4, 3))),
        lambda: fit(Wired(lambda net, x: {"logits": net.a(x)}, a=nn.Linear(4, 3)), structure="full"),
    ],
    "outputs a position, `(B, T, K)`, or without a last axis, `(B,)`": [
        lambda: fit(linear(), (INPUTS[:, None].expand(6, 2, 4), LABELS)),
        lambda: fit(Wired(lambda net, x: net.a(x)[:, 0], a=nn.Linear(4, 1)), (INPUTS, INPUTS[:, 0]), "regression"),
    ],
    "a network of more than 6,000 parameters under `full`": [lambda: fit(nn.Linear(4, 2000), structure="full")],
    "a curvature that does not fit into memory": [without_memory],
    "a parameter frozen, no longer so, or replaced, after the object was made": [
        lambda: frozen_late(True),
        lambda: frozen_late(False),
        lambda: replaced(lambda laplace: laplace.fit((INPUTS, LABELS))),
        lambda: replaced(lambda laplace: laplace.train((INPUTS, LABELS), epochs=6)),
    ],
    "weights changed after the last fit": [changed],
    "one logit for two classes under `classification`": [lambda: fit(nn.Linear(4, 1), (INPUTS, LABELS.clamp_max(1)))],
    "labels out of range, `ignore_index` among them": [
        lambda: fit(linear(), (INPUTS, LABELS + 1)),
        lambda: fit(linear(), (INPUTS, torch.where(LABELS == 0, -100, LABELS))),
    ],
    "labels that are not int64 `(B,)`": [
        lambda: fit(linear(), (INPUTS, LABELS.float())),
        lambda: fit(linear(), (INPUTS, LABELS[:, None])),
    ],
    "targets of another shape than the outputs under `regression` and `bernoulli`": [
        lambda: fit(nn.Linear(4, 1), (INPUTS, INPUTS[:, 0]), "regression"),
        lambda: fit(nn.Linear(4, 1), (INPUTS, LABELS.clamp_max(1)), "bernoulli"),
    ],
    "inputs or targets that are not finite": [
        lambda: fit(linear(), (INPUTS / 0, LABELS)),
        lambda: fit(nn.Linear(4, 4), (INPUTS, INPUTS / 0), "regression"),
    ],
    "no data, or an iterator in place of a loader": [
        lambda: fit(linear(), (INPUTS[:0], LABELS[:0])),
        lambda: fit(linear(), []),
        lambda: fit(linear(), iter([(INPUTS, LABELS)])),
    ],
    "a loss or a class in place of a likelihood": [
        lambda: fit(linear(), likelihood=nn.CrossEntropyLoss()),
    ],
    "a likelihood of one's own whose curvature is not that of its losses": [lambda: fit(linear(), likelihood=Halved())],
    "an optimiser with a weight decay, that needs a closure, or of other parameters": [
        lambda: train_by(lambda net: torch.optim.AdamW(net.parameters())),
        lambda: train_by(lambda net: torch.optim.LBFGS(net.parameters())),
        lambda: train_by(lambda net: torch.optim.Adam(linear().parameters())),
    ],
    "any likelihood but plain classification with asdl as engine": [
        lambda: fit(nn.Linear(4, 4), (INPUTS, INPUTS), "regression", engine="asdl", tolerance=0.0)
    ],
}


def promised() -> dict[str, str]:
    rows = re.findall(r"^\| (.*) \| `(.*)` \|$", PAGE.partition("## What it cannot do")[2], re.MULTILINE)
    return dict(rows)


def test_every_line_of_the_table_has_its_refusal():
    assert list(promised()) == list(REFUSED)


@pytest.mark.parametrize("engine", ["native", "asdl"])
@pytest.mark.parametrize("model", [tied_by_hand, hooked, called_twice])
def test_laplace_torchs_route_refuses_what_no_rule_accounts_for(model, engine):
    with pytest.raises(ValueError, match="differs from the network's|is called twice"):
        EllaGGN(model(), engine=engine).kron(INPUTS, LABELS, N=6)
    EllaGGN(linear(), engine=engine).kron(INPUTS, LABELS, N=6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", promised())
def test_it_is_refused_as_the_page_says(what):
    for mistake in REFUSED[what]:
        with pytest.raises((ValueError, TypeError, MemoryError), match=re.escape(promised()[what])):
            mistake()


def test_the_same_network_without_the_mistake_is_taken():
    fit(linear())
    fit(Wired(lambda net, x: net.a(x), a=nn.Linear(4, 3)))
    fit(nn.Linear(4, 4), (INPUTS, INPUTS), "regression")
    checkpointed = Wired(
        lambda net, x: net.b(checkpoint(lambda v: net.a(v).tanh(), x, use_reentrant=False)),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 3),
    )
    plain = nn.Sequential(checkpointed.a, nn.Tanh(), checkpointed.b)
    found = [LayerwiseLaplace(net).fit((INPUTS, LABELS)).log_marginal_likelihood() for net in (checkpointed, plain)]
    assert relative_error(*map(torch.tensor, found)) < 1e-6
