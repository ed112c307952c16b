"""Matrix-normal posteriors and the variational bound: dense Gaussians, exact evidences of linear models, controls."""

import math
from copy import deepcopy

import pytest
import torch
from helpers import small_data, small_network, weight_settings
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from ellarepro.curvature.likelihood import Classification, Regression
from ellarepro.data import Samples, Task
from ellarepro.evidence import matrix_normal
from ellarepro.evidence.marglik import Fit, fit
from ellarepro.evidence.matrix_normal import MatrixNormal
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import LAYERS
from ellarepro.objectives.draws import Draws
from ellarepro.objectives.vi import Variational, VariationalSettings
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import FitSettings


def moved(q: MatrixNormal, seed: int = 0) -> MatrixNormal:
    """`q` with factors that are not those of its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in q.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        for change in q.changes:
            change.tril_(-1)
    return q


@pytest.mark.parametrize("widest", [matrix_normal.ROTATED, 5])
@pytest.mark.parametrize("layer", ["f_fc_conv", "s_fc_s_conv", "gconv", "fc"])
def test_kl_and_draws_are_those_of_the_dense_gaussian(layer, widest, monkeypatch):
    monkeypatch.setattr(matrix_normal, "ROTATED", widest)
    network, (images, labels) = small_network(layer), small_data()
    prior = LayerwisePrior(network)
    blocks = fit(network, prior, (images, labels), FitSettings(tolerance=0.0)).curvature.blocks
    for name, p in list(zip(prior.names, prior.parameters, strict=True))[:6]:
        if p.numel() > 700:
            continue
        q, log_precision = moved(MatrixNormal.of_block(p, blocks[name], 2.0)), torch.tensor(0.7, dtype=torch.float64)
        covariance = q.dense()
        ours = matrix_normal.kl_divergence(q, p.detach(), log_precision)
        wide = torch.eye(p.numel(), dtype=torch.float64) / log_precision.exp()
        mean = p.detach().flatten()
        wanted = kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(torch.zeros_like(mean), wide))
        assert ours.item() == pytest.approx(wanted.item(), rel=1e-9)
        assert q.trace().item() == pytest.approx(covariance.trace().item(), rel=1e-9)
        assert q.log_det().item() == pytest.approx(torch.logdet(covariance).item(), rel=1e-9)
        # A draw is linear in its noise: the draws of unit noises make the covariance.
        basis = torch.stack([direction(q, index) for index in range(noise_size(q))])
        torch.testing.assert_close(basis.T @ basis, covariance, rtol=1e-9, atol=1e-12)


def noise_size(q: MatrixNormal) -> int:
    return q.shape.numel()


def direction(q: MatrixNormal, index: int) -> torch.Tensor:
    """The deviation for a noise of one at `index` and zero elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch,
            "randn",
            lambda size, **options: torch.eye(math.prod(size), dtype=torch.float64)[index].reshape(size),
        )
        return q.deviation().detach().flatten()


class Line(nn.Module):
    """Outputs W x: with Gaussian noise the posterior of W is a matrix normal, and the evidence is known exactly."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False).double()

    def forward(self, inputs):
        return self.linear(inputs)


def linear_model(seed: int, outputs: int = 2):
    torch.manual_seed(seed)
    inputs = torch.randn(15, 3, dtype=torch.float64)
    targets = inputs @ torch.randn(3, outputs, dtype=torch.float64) + 0.3 * torch.randn(
        15, outputs, dtype=torch.float64
    )
    return Line(3, outputs), inputs, targets


def exact_evidence(inputs, targets, delta: float, beta: float) -> float:
    """log p(D | delta) of the linear model: each output is Gaussian with covariance X X^T / delta + I / beta."""
    covariance = inputs @ inputs.T / delta + torch.eye(len(inputs), dtype=torch.float64) / beta
    zero = torch.zeros(len(inputs), dtype=torch.float64)
    return MultivariateNormal(zero, covariance).log_prob(targets.T).sum().item()


def elbo(objective: Variational, inputs, targets) -> torch.Tensor:
    """The bound with its expectation taken exactly: of a linear model E|y - W x|^2 = |y - M x|^2 + tr(Sigma x x^T)."""
    weight, beta = objective.prior.parameters[0], objective.factor
    covariance = objective.posteriors[objective.prior.names[0]].dense()
    outputs, features = weight.shape
    spread = sum(
        (torch.kron(torch.eye(outputs, dtype=torch.float64), torch.outer(x, x)) * covariance).sum() for x in inputs
    )
    error = (targets - inputs @ weight.T).square().sum() + spread
    normaliser = len(inputs) * outputs * math.log(beta / (2 * math.pi)) / 2
    q = objective.posteriors[objective.prior.names[0]]
    return normaliser - beta * error / 2 - matrix_normal.kl_divergence(q, weight, objective.prior.log_precision[0])


def objective_of(model, inputs, targets, delta: float, beta: float) -> Variational:
    data = Samples(inputs, targets)
    prior = LayerwisePrior(model, delta)
    likelihood = Regression(beta, learned=False)
    made = Variational(prior, likelihood, data, settings=VariationalSettings(), generator=torch.Generator())
    made._start(fit_of(made))
    return made


def fit_of(objective: Variational) -> Fit:
    exact = FitSettings(tolerance=0.0)
    return Fit(objective.model, objective.prior, objective.data, exact, None, objective.likelihood)


@pytest.mark.parametrize("seed", range(3))
def test_where_it_is_conjugate_the_bound_is_the_evidence(seed):
    model, inputs, targets = linear_model(seed)
    delta, beta = 1.7, 6.0
    objective = objective_of(model, inputs, targets, delta, beta)
    learned = [*objective.prior.parameters, *objective.posteriors[objective.prior.names[0]].parameters()]
    optimiser = torch.optim.LBFGS(learned, lr=1.0, max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimiser.zero_grad()
        loss = -elbo(objective, inputs, targets)
        loss.backward()
        for value in learned:  # LBFGS takes no transposed gradients.
            value.grad = value.grad.contiguous()
        return loss

    before = elbo(objective, inputs, targets).item()
    for _ in range(5):
        optimiser.step(closure)
    wanted = exact_evidence(inputs, targets, delta, beta)
    assert elbo(objective, inputs, targets).item() == pytest.approx(wanted, abs=1e-6)
    assert before < wanted - 1e-3, "the control: the start is below"


def test_the_bound_is_never_above_the_evidence():
    """Fifty linear models with random means, factors, precisions; a wrong sign of the volume would break it."""
    controls = []
    for seed in range(50):
        model, inputs, targets = linear_model(seed, outputs=1 + seed % 3)
        torch.manual_seed(100 + seed)
        delta, beta = torch.rand(2).mul(4).add(0.1).tolist()
        objective = objective_of(model, inputs, targets, delta, beta)
        q = moved(objective.posteriors[objective.prior.names[0]], seed)
        wanted, bound = exact_evidence(inputs, targets, delta, beta), elbo(objective, inputs, targets).item()
        assert bound <= wanted + 1e-9
        controls.append(bound - q.log_det().item() > wanted)
    assert any(controls), "the control: with the volume on the wrong side it is no bound"


def test_the_drawn_bound_is_the_exact_one_in_the_mean():
    model, inputs, targets = linear_model(0)
    objective = objective_of(model, inputs, targets, 1.0, 4.0)
    drawn = -objective.negative_elbos([objective.drawn_weights(objective.generator) for _ in range(400)])
    assert abs(drawn.mean() - elbo(objective, inputs, targets)) < 4 * drawn.std() / 20


def test_draws_ahead_leave_the_gradient_of_the_mean_loss():
    """Beside the gradient of each draw by itself; the control is that of the first draw alone."""
    model, inputs, targets = linear_model(2)
    posteriors = objective_of(model, inputs, targets, 1.0, 4.0).posteriors
    ((name, q),) = posteriors.items()
    draws = Draws.ahead(posteriors, 3, torch.Generator().manual_seed(0))
    noise, besides = draws.noise[name], torch.zeros((), requires_grad=True)

    def loss(weight):
        return (targets - inputs @ weight.T).square().sum().sin()

    while draws.left:
        loss(model.linear.weight.detach() + draws.next()[name]).backward()
    draws.backward(besides)
    found = [value.grad.clone() for value in q.parameters()]
    for count in (3, 1):
        losses = [loss(model.linear.weight.detach() + one) for one in q.deviations(noise[:count])]
        wanted = torch.autograd.grad(torch.stack(losses).mean(), [*q.parameters()])
        wanted = [gradient.tril(-1) if gradient.dim() == 3 else gradient for gradient in wanted]
        same = all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, wanted, strict=True))
        assert same is (count == 3)


def test_tied_precisions_are_set_as_one_and_fixed_ones_stay():
    network = small_network("f_fc_conv")
    data, prior = Samples(*small_data()), LayerwisePrior(network)
    first, second, fixed = prior.names[0], prior.names[2], prior.names[4]
    prior = LayerwisePrior(network, 2.0, fixed=[fixed], tied=[(first, second)])
    objective = Variational(prior, Classification(), data, settings=VariationalSettings(), generator=torch.Generator())
    objective._start(fit_of(objective))
    objective._set_precisions()
    assert prior.precisions()[fixed] == pytest.approx(2.0)
    assert prior.precisions()[first] == prior.precisions()[second]
    best, at = objective.kl().item(), [prior.names.index(name) for name in (first, second)]
    for change in (-0.1, 0.1):
        with torch.no_grad():
            prior.log_precision[at] += change
            assert objective.kl().item() > best
            prior.log_precision[at] -= change


def test_without_the_prior_the_posterior_does_not_widen():
    model, inputs, targets = linear_model(1)
    objective = objective_of(model, inputs, targets, 1.0, 4.0)
    assert objective._factors_part([0.0, 1.0]).item() == 0
    assert objective._factors_part([0.1, 1.0]).item() != 0, "the control: with it, there is something to widen for"


def test_precisions_are_set_to_the_maximum_of_the_bound():
    model, inputs, targets = linear_model(1)
    objective = objective_of(model, inputs, targets, 1.0, 4.0)
    objective._set_precisions()
    best = elbo(objective, inputs, targets).item()
    for change in (-0.1, 0.1):
        with torch.no_grad():
            objective.prior.log_precision.add_(change)
        assert elbo(objective, inputs, targets).item() < best
        with torch.no_grad():
            objective.prior.log_precision.sub_(change)


def run(layer: str = "f_fc_conv", epochs: int = 4, seed: int = 3):
    pixels, labels = small_data(24)
    data = Samples(pixels.float(), labels)
    task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), False, ("a", "b", "c"))
    prior = LayerwisePrior(small_network(layer, seed).float())
    weights = weight_settings(epochs=epochs, batch_size=8, kind="Adam", lr=0.003)
    settings = VariationalSettings(burn_in=2, every=2, draws=4, fit=FitSettings(passes=1))
    return trainer_of(prior, task, weights, ("vi", settings), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_type_has_a_posterior_and_learns(layer):
    trainer = run(layer)
    before = None

    def note(epoch, metrics):
        nonlocal before
        if epoch == 2:
            before = {n: [r.detach().clone() for r in q.roots()] for n, q in trainer.objective.posteriors.items()}

    trainer.on_epoch = note
    trainer.run()
    report = trainer.objective.report(trainer.objective.data, None, lambda: None)
    assert math.isfinite(report["neg_log_marglik_per_datum"]) and report["neg_log_marglik_error"] > 0
    assert 0 < report["sampled"]["nll"] < 10
    numbers = zip(report["effective_parameters"].values(), trainer.objective.prior.parameters, strict=True)
    assert all(0 < number < p.numel() for number, p in numbers)
    after = {n: q.roots() for n, q in trainer.objective.posteriors.items()}
    assert all(not torch.equal(a, b) for n in after for a, b in zip(before[n], after[n], strict=True))


def test_a_run_continues_to_the_same_bits():
    whole, stopped, states = run(), run(), []
    whole.on_epoch = lambda epoch, metrics: None
    whole.run()
    stopped.pause = lambda state: states.append(deepcopy(state()))
    stopped.run()
    for state in states[1::4]:
        continued = run(seed=9)
        continued.load_state_dict(state)
        continued.run()
        assert continued.history == whole.history
        for a, b in zip(whole.model.parameters(), continued.model.parameters(), strict=True):
            assert torch.equal(a, b)
