"""All state of the library is data: copied, saved and loaded, and valid for the weights that it is of."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import assert_close
from torch import nn

from ellarepro import Bernoulli, Classification, FitSettings, LayerwiseLaplace, Regression
from ellarepro.evidence.fingerprint import changed, fingerprint
from ellarepro.evidence.prior import LayerwisePrior

INPUTS = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3
VALUES = INPUTS @ torch.randn(4, 2, generator=torch.Generator().manual_seed(1))


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs)).eval()


def fitted(structure: str = "kron", regression: bool = False) -> LayerwiseLaplace:
    model, settings = network(2 if regression else 3), FitSettings(structure)
    laplace = LayerwiseLaplace(model, "regression" if regression else "classification", settings=settings)
    return laplace.fit((INPUTS, VALUES if regression else LABELS)).learn(20)


def numbers(laplace: LayerwiseLaplace) -> list:
    predicted = laplace.predict(INPUTS[:3], samples=5)
    effective, value = laplace.effective_numbers(), laplace.log_marginal_likelihood()
    return [value, effective, laplace.precisions(), predicted.mean.tolist(), predicted.std.tolist()]


def pickled(laplace: LayerwiseLaplace) -> LayerwiseLaplace:
    return pickle.loads(pickle.dumps(laplace))


def saved(laplace: LayerwiseLaplace) -> LayerwiseLaplace:
    file = io.BytesIO()
    torch.save(laplace, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize(
    ("structure", "regression"), [("kron", False), ("kron", True), ("diag", False), ("full", True)]
)
def test_a_copy_is_as_the_original_and_goes_its_own_way(copied, structure, regression):
    laplace = fitted(structure, regression)
    other, before = copied(laplace), numbers(laplace)
    assert numbers(other) == before
    assert other.prior.parameters[0] is other.model[0].weight
    other.learn(5)
    assert numbers(other) != before and numbers(laplace) == before
    assert numbers(laplace.learn(5)) == numbers(other)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copies_of_a_prior_keep_what_is_fixed_and_tied(copied):
    model = network()
    prior = LayerwisePrior(model, fixed=["0.bias"], tied=[["0.weight", "3.weight"]])
    other = copied(prior)
    for one in (prior, other):
        (one.log_precision * torch.arange(1.0, 7.0)).sum().backward()
        gradient = dict(zip(one.names, one.log_precision.grad.tolist(), strict=True))
        assert gradient["0.bias"] == 0 and gradient["0.weight"] == gradient["3.weight"] == 1 + 5
        assert gradient["3.bias"] == 6, "the control"


def test_an_optimiser_that_is_copied_along_is_of_the_copy():
    prior = LayerwisePrior(network())
    other, optimiser = copy.deepcopy((prior, torch.optim.SGD([prior.log_precision], lr=1.0)))
    other.log_precision.sum().backward()
    optimiser.step()
    assert torch.equal(other.log_precision.detach(), prior.log_precision.detach() - 1)


@pytest.mark.parametrize(
    ("structure", "regression"), [("kron", True), ("kron_blockwise", False), ("diag", False), ("full", True)]
)
def test_a_state_is_saved_as_plain_data_and_goes_on(structure, regression, tmp_path):
    laplace = fitted(structure, regression)
    torch.save(laplace.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    kind = "regression" if regression else "classification"
    other = LayerwiseLaplace(network(2 if regression else 3), kind)
    other.load_state_dict(state)
    assert numbers(other) == numbers(laplace)
    assert numbers(other.learn(5)) == numbers(laplace.learn(5))


def test_a_state_of_another_network_likelihood_or_weights_is_refused():
    laplace = fitted()
    state = laplace.state_dict()
    other = LayerwiseLaplace(network())
    before = other.precisions()
    with torch.no_grad():
        other.model[3].bias[0] += 1
    with pytest.raises(ValueError, match=r"3\.bias changed after the last fit"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="is of a Classification, this object has a Regression"):
        LayerwiseLaplace(network(), "regression").load_state_dict(state)
    with pytest.raises(ValueError, match=r"is of another network, of 0\.weight"):
        LayerwiseLaplace(nn.Linear(4, 3)).load_state_dict(state)
    assert other.precisions() == before and other._fitted is None
    empty = LayerwiseLaplace(network(), prior_precision=3.0)
    other.load_state_dict(empty.state_dict())
    assert list(other.precisions().values()) == [pytest.approx(3.0)] * 6


def by_data(model: nn.Module) -> None:
    model[3].weight.data.mul_(10)


def by_steps(model: nn.Module) -> None:
    torch.optim.SGD(model.parameters(), lr=0.1).step(lambda: model(INPUTS).square().sum().backward())


def by_statistics(model: nn.Module) -> None:
    model.train()(INPUTS + 5)
    model.eval()


def by_swap(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data.flip(0)


@pytest.mark.parametrize("change", [by_data, by_steps, by_statistics, by_swap])
def test_weights_that_changed_after_a_fit_are_refused(change: Callable[[nn.Module], None]):
    laplace = fitted()
    change(laplace.model)
    uses = [laplace.log_marginal_likelihood, laplace.effective_numbers, laplace.posterior, laplace.learn]
    for use in [*uses, lambda: laplace.predict(INPUTS)]:
        with pytest.raises(ValueError, match=r"changed after the last fit: call fit\(data\) again"):
            use()
    again = laplace.fit((INPUTS, LABELS)).predict(INPUTS).std
    anew = LayerwiseLaplace(laplace.model)
    with torch.no_grad():
        anew.prior.log_precision.copy_(laplace.prior.log_precision)
    assert_close(again, anew.fit((INPUTS, LABELS)).predict(INPUTS).std, 1e-6)


@pytest.mark.parametrize("use", ["predict", "evidence", "learn", "effective_numbers"])
def test_parameters_frozen_or_replaced_after_a_fit_are_refused(use):
    def call(laplace: LayerwiseLaplace) -> object:
        return laplace.predict(INPUTS) if use == "predict" else getattr(laplace, use)()

    frozen, replaced = fitted(), fitted()
    frozen.model[0].requires_grad_(False)
    replaced.model[3] = nn.Linear(6, 3)
    for laplace in (frozen, replaced):
        with pytest.raises(ValueError, match="make a new one"):
            call(laplace)
    call(fitted())


def test_one_likelihood_given_to_two_networks_belongs_to_neither():
    likelihood = Regression()
    first = LayerwiseLaplace(network(2), likelihood).fit((INPUTS, VALUES)).learn(20)
    before = numbers(first)
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(2))
    second = LayerwiseLaplace(network(2), likelihood).fit((INPUTS, VALUES + 9 * noise)).learn(20)
    assert numbers(first) == before
    assert second.likelihood.noise_std > 2 * first.likelihood.noise_std
    assert likelihood.log_noise_precision.item() == 0


def test_a_fingerprint_sees_every_change():
    model = network()
    known, noticed = fingerprint(model), set()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            for index in range(value.numel()):
                kept = value.view(-1)[index].clone()
                value.view(-1)[index] = torch.nextafter(kept, torch.tensor(torch.inf))
                assert changed(known, fingerprint(model)) == [name]
                value.view(-1)[index] = kept
            noticed.add(name)
    assert len(noticed) == 8 and fingerprint(model) == known
    doubled = copy.deepcopy(model).double()
    assert "0.weight" in changed(known, fingerprint(doubled))


@pytest.mark.parametrize("given", [Classification, nn.CrossEntropyLoss(), nn.functional.cross_entropy, "binary", 3])
def test_what_is_no_likelihood_is_refused_by_name(given):
    with pytest.raises(
        ValueError, match="likelihood must be one of classification, bernoulli, regression, or an object"
    ):
        LayerwiseLaplace(network(), given)
    assert isinstance(LayerwiseLaplace(network(), Bernoulli()).likelihood, Bernoulli)
