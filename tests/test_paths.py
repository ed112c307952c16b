"""Gradients have one path and a plain fallback: what cannot be vectorised is predicted as well, and alike."""

import time

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ellarepro import FitSettings, LayerwiseLaplace
from ellarepro.curvature.exact import exact_ggn
from ellarepro.evidence import fitted, telling

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(20, 4, generator=GENERATOR, dtype=torch.float64)
LABELS, VALUES = torch.arange(20) % 3, INPUTS[:, :1].sin()


class PlainSwish(torch.autograd.Function):
    """A custom function as most are written: without a forward mode, and not for `torch.func`."""

    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs * inputs.sigmoid()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        gate = inputs.sigmoid()
        return gradient * gate * (1 + inputs * (1 - gate))


class Net(nn.Module):
    """Two layers with an activation between them, which `way` computes."""

    def __init__(self, way: str, outputs: int):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.way = nn.Linear(4, 5), nn.Linear(5, outputs), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "function":
            return self.b(PlainSwish.apply(self.a(x)))
        if self.way == "checkpoint":
            return self.b(checkpoint(lambda v: nn.functional.silu(self.a(v)), x, use_reentrant=False))
        return self.b(nn.functional.silu(self.a(x)))


def net(way: str, outputs: int = 3) -> nn.Module:
    model = Net(way, outputs).double()
    if way == "weight norm":
        nn.utils.parametrizations.weight_norm(model.a)
    if way == "old weight norm":
        nn.utils.weight_norm(model.a)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("structure", ["kron", "full"])
@pytest.mark.parametrize("way", ["function", "checkpoint"])
def test_networks_that_cannot_be_vectorised_are_as_those_that_can(way, structure):
    for likelihood, targets, width in (("classification", LABELS, 3), ("regression", VALUES, 1)):
        one, other = (
            LayerwiseLaplace(net(kind, width), likelihood, settings=FitSettings(structure, tolerance=0.0))
            for kind in (way, "plain")
        )
        numbers = [laplace.fit((INPUTS, targets)).log_marginal_likelihood() for laplace in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)
        mine, wanted = (laplace.predict(INPUTS[:5], samples=20) for laplace in (one, other))
        assert_close(mine.mean, wanted.mean, 1e-9)
        assert_close(mine.std, wanted.std, 1e-7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["weight norm", "old weight norm"])
def test_weight_normalisation_is_fitted_and_predicted_under_full(way):
    model = net(way)
    laplace = LayerwiseLaplace(model, settings=FitSettings("full")).fit((INPUTS, LABELS))
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for datum in INPUTS:
        outputs = model(datum[None])[0]
        jacobian = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True)]) for o in outputs]
        )
        p = outputs.detach().softmax(0)
        rows.append(jacobian.T @ (p.diag() - p.outer(p)) @ jacobian)
    assert_close(laplace._fit_done.curvature.matrix, sum(rows))
    predicted = laplace.predict(INPUTS[:4])
    assert predicted.std.min() > 0 and torch.isfinite(predicted.std).all()
    assert torch.equal(predicted.std, laplace.predict(INPUTS[:4]).std)


@pytest.mark.parametrize("structure", ["kron", "diag", "full"])
def test_inference_mode_changes_nothing(structure):
    models = {"classification": (net("plain"), LABELS), "regression": (net("plain", 1), VALUES)}

    def found(inputs: Tensor) -> list[float]:
        results = []
        for likelihood, (model, targets) in models.items():
            laplace = LayerwiseLaplace(model, likelihood, settings=FitSettings(structure))
            spread = laplace.fit((inputs, targets)).learn(3).predict(inputs[:3], samples=5).std
            results += [*spread.flatten().tolist(), laplace.log_marginal_likelihood()]
        return results

    wanted = found(INPUTS)
    with torch.inference_mode():
        made_there = INPUTS + 0
        assert found(INPUTS) == wanted
        assert found(made_there) == wanted
    assert found(made_there) == wanted, "features that were cached under inference mode"
    assert min(wanted[:9]) > 0, "the control: there is a spread"


def test_functions_are_drawn_once_and_kept_while_they_are_few(monkeypatch):
    laplace, drawn = LayerwiseLaplace(net("plain")).fit((INPUTS, LABELS)), []
    whole = fitted.weight_deviations
    monkeypatch.setattr(fitted, "weight_deviations", lambda *given: drawn.append(given) or whole(*given))
    first = laplace.predict(INPUTS[:2])
    assert torch.equal(laplace.predict(INPUTS[:2]).std, first.std) and len(drawn) == 1
    laplace.predict(INPUTS[:2], samples=7)
    laplace.learn(3).predict(INPUTS[:2], samples=7)
    assert len(drawn) == 3
    monkeypatch.setattr(fitted, "KEPT_ENTRIES", 1)
    for _ in range(2):
        laplace.predict(INPUTS[:2], samples=9)
    assert len(drawn) == 5


def test_a_fit_that_takes_long_is_announced_after_its_first_batch(monkeypatch, caplog):
    model = net("plain")
    slow = FitSettings(batch_size=5)
    monkeypatch.setattr(telling, "_LONG", -1.0)
    LayerwiseLaplace(model, settings=slow).fit((INPUTS, LABELS))
    assert "this fit takes about 1 minutes more; FitSettings(passes=1)" in caplog.text
    caplog.clear()
    monkeypatch.setattr(telling, "_LONG", 30.0)
    LayerwiseLaplace(model, settings=slow).fit((INPUTS, LABELS))
    assert not caplog.text
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(telling.told(iter([None, None, None]), 7, torch.device("cpu"))) == [None] * 3
    assert "about 10 minutes more" in caplog.text


def test_what_does_not_fit_into_memory_is_refused_before_it_is_begun(monkeypatch):
    monkeypatch.setattr("ellarepro.curvature.memory.free_bytes", lambda device: 10)
    with pytest.raises(MemoryError, match=r"factors need about .* are free on cpu; take structure=diag"):
        LayerwiseLaplace(net("plain")).fit((INPUTS, LABELS))


def test_the_diagonal_of_the_exact_matrix_is_the_oracles():
    model = net("function")
    laplace = LayerwiseLaplace(model, settings=FitSettings("full", tolerance=0.0)).fit((INPUTS, LABELS))
    assert_close(laplace._fit_done.curvature.matrix, exact_ggn(net("plain"), INPUTS))
