"""What users give beside a network: likelihoods, class weights, optimisers; taken as meant, or refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, relative_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ellarepro import Bernoulli, Classification, FitSettings, LaplaceSettings, LayerwiseLaplace, Regression
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.spectra import FullCurvature

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(20, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(3, (20,), generator=GENERATOR)
WEIGHTS = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
MANY = torch.randint(2, (20, 3), generator=GENERATOR).double()
SOON = LaplaceSettings(burn_in=1, frequency=1, steps=2)


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def hessian(model: nn.Module, loss) -> Tensor:
    """The GGN of `loss(outputs (K,), n)` by autograd alone: sum over n of J^T (second derivative in the outputs) J."""
    parameters = list(model.parameters())
    total: Tensor | float = 0.0
    for n, datum in enumerate(INPUTS):
        outputs = model(datum[None])[0]
        rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in outputs]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        curvature = torch.autograd.functional.hessian(lambda o, n=n: loss(o, n), outputs.detach())
        total = total + jacobian.T @ curvature @ jacobian
    return total


def found(laplace: LayerwiseLaplace) -> Tensor:
    curvature = laplace._fit_done.curvature
    return curvature.matrix if isinstance(curvature, FullCurvature) else BlockKron.from_blocks(curvature.blocks).diag()


def weighted(outputs: Tensor, n: int) -> Tensor:
    return WEIGHTS[LABELS[n]] * F.cross_entropy(outputs, LABELS[n])


def binary(outputs: Tensor, n: int) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, MANY[n, : len(outputs)], reduction="sum")


CASES = {
    "weights": (Classification(WEIGHTS), LABELS, 3, weighted),
    "bernoulli": (Bernoulli(), MANY, 3, binary),
    "one logit": ("bernoulli", MANY[:, :1], 1, binary),
}


@pytest.mark.parametrize("case", CASES)
def test_curvature_and_loss_are_those_of_autograd(case):
    likelihood, targets, width, loss = CASES[case]
    model = network(width)
    exact = hessian(model, loss)
    total = sum(loss(outputs, n).item() for n, outputs in enumerate(model(INPUTS)))
    for structure in ("full", "diag"):
        settings = FitSettings(structure, tolerance=0.0, batch_size=7)
        laplace = LayerwiseLaplace(model, likelihood, settings=settings).fit((INPUTS, targets))
        assert_close(found(laplace), exact if structure == "full" else exact.diagonal())
        assert laplace.evidence().data_fit.item() == pytest.approx(-total, rel=1e-10)
    kron = LayerwiseLaplace(model, likelihood, settings=FitSettings(tolerance=0.0)).fit((INPUTS, targets))
    assert_close(found(kron)[-width:], exact.diagonal()[-width:])  # the last bias is exact
    if case == "weights":
        plain = LayerwiseLaplace(model, settings=FitSettings("full", tolerance=0.0)).fit((INPUTS, targets))
        assert relative_error(found(plain), exact) > 0.1, "the control: without weights"


@pytest.mark.parametrize("case", CASES)
def test_training_descends_the_same_loss(case):
    likelihood, targets, width, loss = CASES[case]
    laplace = LayerwiseLaplace(network(width), likelihood)
    outputs = laplace.model(INPUTS)
    wanted = sum(loss(row, n) for n, row in enumerate(outputs)) / 20
    penalty = sum(p.square().sum() for p in laplace.model.parameters()) / 40
    assert_close(laplace.loss(INPUTS, targets, 20), wanted + penalty)
    optimiser = torch.optim.Adam(laplace.model.parameters(), lr=0.1)
    laplace.train((INPUTS, targets), epochs=30, optimiser=optimiser, schedule=SOON)
    assert sum(loss(row, n) for n, row in enumerate(laplace.model(INPUTS))) / 20 < wanted


def test_predictions_of_binary_labels_are_probabilities_of_each():
    laplace = LayerwiseLaplace(network(), "bernoulli", prior_precision=1e9).fit((INPUTS, MANY))
    predicted = laplace.predict(INPUTS[:4])
    assert_close(predicted.mean, laplace.model(INPUTS[:4]).sigmoid().detach(), 1e-3)
    broad = LayerwiseLaplace(network(), "bernoulli").fit((INPUTS, MANY)).predict(INPUTS[:4])
    assert (broad.std > 10 * predicted.std).all() and ((broad.mean > 0) & (broad.mean < 1)).all()


class Reweighted(Classification):
    """Class weights as a user might write them: in the loss alone."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, WEIGHTS.to(outputs), reduction="none")


class Smoothed(Classification):
    """Label smoothing, which changes the loss but not its second derivative."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def test_a_likelihood_of_ones_own_whose_curvature_is_anothers_is_refused():
    with pytest.raises(ValueError, match=r"Reweighted\.hessian is not the second derivative of its losses"):
        LayerwiseLaplace(network(), Reweighted()).fit((INPUTS, LABELS))
    LayerwiseLaplace(network(), Smoothed()).fit((INPUTS, LABELS))


class Owned(Reweighted):
    """The same weights, in the curvature, too."""

    def weights(self, targets: Tensor) -> Tensor:
        return WEIGHTS[targets]


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_likelihood_of_ones_own_is_checked_on_every_class_however_sure_the_network(loaded, scale):
    order, model = LABELS.argsort(), network()
    model[2].weight.data *= scale
    sorted_data = (INPUTS[order], LABELS[order])
    assert LABELS[order][:4].unique().tolist() == [0], "the first samples are of the class whose weight is one"
    data = DataLoader(TensorDataset(*sorted_data), batch_size=3) if loaded else sorted_data
    settings = FitSettings("full", tolerance=0.0)
    with pytest.raises(ValueError, match=r"Reweighted\.hessian is not the second derivative of its losses"):
        LayerwiseLaplace(model, Reweighted(), settings=settings).fit(data)
    own = LayerwiseLaplace(model, Owned(), settings=settings).fit(data)
    assert_close(found(own), hessian(model, weighted))


@pytest.mark.parametrize(
    ("likelihood", "targets", "told"),
    [
        (Bernoulli(), MANY[:, 0], r"targets of the outputs' shape \(20, 1\), got \(20,\): give them a last axis"),
        (Bernoulli(), 2 * MANY[:, :1], "targets must be from 0 to 1, got 0.0 to 2.0"),
        (Classification(WEIGHTS), LABELS, "at least 2 logits"),
    ],
)
def test_targets_of_another_likelihood_are_refused(likelihood, targets, told):
    with pytest.raises(ValueError, match=told):
        LayerwiseLaplace(network(1), likelihood).fit((INPUTS, targets))


def test_class_weights_are_checked():
    for wrong in (torch.ones(2, 2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ValueError, match="class_weights must be positive"):
            Classification(wrong)
    with pytest.raises(ValueError, match="class_weights must be 3, one a logit; got 2"):
        LayerwiseLaplace(network(), Classification(torch.ones(2))).fit((INPUTS, LABELS))
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        LayerwiseLaplace(network(), Classification(WEIGHTS)).fit((INPUTS, LABELS + 1))
    settings = FitSettings(engine="asdl", tolerance=0.0)
    with pytest.raises(ValueError, match="engine must be native"):
        LayerwiseLaplace(network(), Classification(WEIGHTS), settings=settings).fit((INPUTS, LABELS))


OPTIMISERS = {
    "weight_decay=0, as the prior's": lambda net: torch.optim.AdamW(net.parameters()),
    "weight_decay=0, as the": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1.0),
    "maximize=False": lambda net: torch.optim.Adam(net.parameters(), maximize=True),
    "without a closure.*got LBFGS": lambda net: torch.optim.LBFGS(net.parameters()),
    "of the model's parameters; got <class": lambda net: torch.optim.Adam,
    r"it lacks 0\.weight, 0\.bias, 2\.weight …": lambda net: torch.optim.Adam(copy.deepcopy(net).parameters()),
    r"it lacks 0\.weight, 0\.bias: freeze": lambda net: torch.optim.Adam(net[2].parameters()),
    "alone; it holds 4 others": lambda net: torch.optim.Adam([*net.parameters(), *network().parameters()]),
}


@pytest.mark.parametrize("told", OPTIMISERS)
def test_optimisers_that_contradict_the_objective_are_refused(told):
    model = network()
    with pytest.raises(ValueError, match=told):
        LayerwiseLaplace(model).train((INPUTS, LABELS), epochs=2, optimiser=OPTIMISERS[told](model), schedule=SOON)
    plain = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    LayerwiseLaplace(model).train((INPUTS, LABELS), epochs=2, optimiser=plain, schedule=SOON)


def test_a_plain_optimiser_arrives_at_the_posteriors_mode():
    targets = INPUTS @ torch.ones(4, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    laplace = LayerwiseLaplace(model, Regression(4.0, learned=False))
    laplace.train((INPUTS, targets), epochs=300, optimiser=optimiser, schedule=LaplaceSettings(1, 1000, 5))
    delta = laplace.precisions()["weight"]
    mode = torch.linalg.solve(4 * INPUTS.T @ INPUTS + delta * torch.eye(4), 4 * INPUTS.T @ targets).T
    assert abs(math.log(delta)) > 0.1, "the control: the precision has moved"
    assert_close(model.weight.detach(), mode, 1e-6)
