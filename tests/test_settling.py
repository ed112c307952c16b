"""What is learned by the evidence has arrived, or says that it has not: noise in any unit, from any start."""

import math

import pytest
import torch
from helpers import assert_close
from test_likelihood import closed_form_evidence
from torch import Tensor, nn

from ellarepro import LaplaceSettings, LayerwiseLaplace, Regression
from ellarepro.evidence import settling
from ellarepro.evidence.prior import LayerwisePrior


def wave(scale: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """A sine with noise of a fifth, times `scale`, plus `shift`."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.linspace(-3, 3, 100)[:, None]
    return inputs, scale * (torch.sin(2 * inputs) + 0.2 * torch.randn(100, 1, generator=generator)) + shift


def curve(outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, outputs))


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1.0, 0.0), (1e3, 0.0), (1e5, 3e5)])
def test_noise_of_targets_in_their_units_is_that_of_the_residuals(scale, shift):
    data = wave(scale, shift)
    laplace = LayerwiseLaplace(curve(), "regression").train(data, epochs=3, schedule=LaplaceSettings(1, 1, 5))
    with torch.no_grad():
        residuals = laplace.model(data[0]) - data[1]
    # Above the residuals' own spread by what the parameters take, at most 31 of 100 data.
    spread = residuals.square().mean().sqrt().item()
    assert spread <= laplace.likelihood.noise_std * (1 + 1e-3) < 1.25 * spread
    predicted = laplace.predict(data[0])
    assert ((predicted.mean - data[1]).abs() < 2 * predicted.std).float().mean() > 0.9
    fixed = LayerwiseLaplace(laplace.model, Regression(1.0)).fit(data)
    assert fixed.likelihood.noise_std == 1.0, "the control: a start that is given is where it starts"


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_noise_of_a_fit_is_where_the_closed_form_has_no_slope(unit):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    targets = unit * (inputs @ torch.ones(4, 1, dtype=torch.float64) + torch.randn(40, 1, generator=generator).double())
    model = nn.Linear(4, 1, bias=False).double()
    delta = torch.tensor(0.3 / unit**2, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    laplace = LayerwiseLaplace(model, "regression", prior_precision=delta.item()).fit((inputs, targets))
    noise = laplace.likelihood.log_noise_precision.detach().clone().requires_grad_()
    loss = (model(inputs) - targets).square().sum().detach() / 2
    hessian = noise.exp() * inputs.T @ inputs + delta * torch.eye(4)
    (slope,) = torch.autograd.grad(20 * noise - noise.exp() * loss - torch.logdet(hessian) / 2, noise)
    assert abs(slope.item()) < 2e-2
    with torch.no_grad():
        laplace.fit((inputs, targets))
    assert laplace.likelihood.log_noise_precision.item() == pytest.approx(noise.item(), abs=1e-3), "and stays"


def test_learning_ends_where_the_closed_form_is_largest():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    targets = (
        50 * inputs @ torch.ones(4, 1, dtype=torch.float64) + 30 * torch.randn(60, 1, generator=generator).double()
    )
    laplace = LayerwiseLaplace(nn.Linear(4, 1, bias=False).double(), "regression")
    for _ in range(8):
        delta, beta = laplace.precisions()["weight"], laplace.likelihood.noise_std**-2
        gram = beta * inputs.T @ inputs + delta * torch.eye(4)
        with torch.no_grad():
            laplace.model.weight.copy_((beta * torch.linalg.solve(gram, inputs.T @ targets)).T)
        laplace.fit((inputs, targets)).learn()
    eta = torch.tensor([laplace.precisions()["weight"], laplace.likelihood.noise_std**-2], dtype=torch.float64)
    eta = eta.log().requires_grad_()
    (slopes,) = torch.autograd.grad(closed_form_evidence(inputs, targets, *eta.exp()), eta)
    assert slopes[0].abs() < 0.01 and slopes[1].abs() < 0.1
    off = (eta.detach() + 0.1).requires_grad_()
    (slopes,) = torch.autograd.grad(closed_form_evidence(inputs, targets, *off.exp()), off)
    assert slopes[1].abs() > 1, "the control: a tenth further it has a slope"


@pytest.mark.parametrize("start", [1e-10, 1.0, 1e10])
def test_learning_ends_at_one_place_from_every_start(start):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(30, 3).double()
    data = inputs, (inputs.sum(1) > 0).long()
    laplace = LayerwiseLaplace(model, prior_precision=start).fit(data).learn()
    eta = laplace.prior.log_precision
    (slopes,) = torch.autograd.grad(laplace._fit_done.evidence(eta).value, eta)
    assert slopes.abs().max() < 1e-3
    usual = LayerwiseLaplace(model).fit(data).learn()
    assert_close(eta.detach(), usual.prior.log_precision.detach(), 1e-2)


def test_fixed_and_tied_precisions_settle_as_they_are():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(30, 3).double()
    fitted = LayerwiseLaplace(model).fit((inputs, (inputs.sum(1) > 0).long()))._fit_done
    prior = LayerwisePrior(model, 2.0, fixed=["0.bias"], tied=[["0.weight", "2.weight"]])
    assert not settling.settle(fitted, prior)
    eta = dict(zip(prior.names, prior.log_precision.tolist(), strict=True))
    assert eta["0.bias"] == math.log(2.0) and eta["0.weight"] == eta["2.weight"] != eta["2.bias"]
    numbers = fitted.effective_parameters(prior.log_precision)[[0, 2]].sum().item()
    norms = fitted.squared_norms[[0, 2]].sum().item()
    assert math.exp(eta["0.weight"]) * norms == pytest.approx(numbers, rel=1e-3)


def test_what_has_not_converged_says_so(monkeypatch):
    laplace = LayerwiseLaplace(curve(), Regression(1e-8), prior_precision=1e8).fit(wave(1.0))
    monkeypatch.setattr(settling, "MOST_ROUNDS", 1)
    with pytest.warns(UserWarning, match=r"the evidence still has a slope in the precision of 0\.weight.*the noise"):
        laplace.learn()
    laplace.learn(steps=2)


def test_a_loop_of_ones_own_begins_at_the_residuals():
    inputs, targets = wave(1e4)
    laplace = LayerwiseLaplace(curve(), "regression")
    loss = laplace.loss(inputs, targets, 100)
    with torch.no_grad():
        spread = (laplace.model(inputs) - targets).square().mean().sqrt().item()
        penalty = sum(p.square().sum() for p in laplace.model.parameters()).item() / 200
    assert laplace.likelihood.noise_std == pytest.approx(spread, rel=1e-5)
    assert loss.item() == pytest.approx(0.5 + penalty, rel=1e-4)
    exact = LayerwiseLaplace(nn.Linear(1, 1), "regression")
    with torch.no_grad():
        assert math.isfinite(exact.loss(inputs, exact.model(inputs), 100)), "no residuals say nothing of the noise"
