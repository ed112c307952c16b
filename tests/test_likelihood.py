"""Regression by the same engine: the closed form of Bayesian linear regression, and the exact matrix elsewhere."""

import pytest
import torch
from helpers import assert_close, parameter_slices, perturb_biases, relative_error
from torch import Tensor, nn

from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.likelihood import Classification, Regression
from ellarepro.evidence.marglik import fit, total_loss
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layerwise import LayerwiseLaplace
from ellarepro.settings.parts import FitSettings

EXACT = ["kron", "kron_blockwise", "full"]
DELTA, BETA = 0.7, 25.0


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def line_data(outputs: int = 2, size: int = 12, features: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, features, generator=generator, dtype=torch.float64)
    slopes = torch.randn(features, outputs, generator=generator, dtype=torch.float64)
    return inputs, inputs @ slopes + 0.2 * torch.randn(size, outputs, generator=generator, dtype=torch.float64)


def closed_form_evidence(inputs: Tensor, targets: Tensor, delta: Tensor, beta: Tensor) -> Tensor:
    """log N(targets; 0, I / beta + X X^T / delta) for each output, summed: no posterior, no Hessian."""
    covariance = torch.eye(len(inputs), dtype=torch.float64) / beta + inputs @ inputs.T / delta
    density = torch.distributions.MultivariateNormal(torch.zeros(len(inputs), dtype=torch.float64), covariance)
    return density.log_prob(targets.T).sum()


def at_the_posterior_mode(inputs: Tensor, targets: Tensor, delta: float, beta: float) -> nn.Linear:
    features = inputs.shape[1]
    gram = beta * inputs.T @ inputs + delta * torch.eye(features, dtype=torch.float64)
    model = nn.Linear(features, targets.shape[1], bias=False).double()
    with torch.no_grad():
        model.weight.copy_((beta * torch.linalg.solve(gram, inputs.T @ targets)).T)
    return model


def laplace_at_the_mode(structure: str, delta: float = DELTA, beta: float = BETA, outputs: int = 2):
    inputs, targets = line_data(outputs)
    model = at_the_posterior_mode(inputs, targets, delta, beta)
    settings = FitSettings(structure, batch_size=5)
    laplace = LayerwiseLaplace(model, Regression(beta), prior_precision=delta, settings=settings)
    return laplace.fit((inputs, targets)), inputs, targets


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("structure", EXACT)
def test_evidence_is_the_closed_form_of_linear_regression(structure, outputs):
    for delta, beta in ((DELTA, BETA), (100.0, 0.5), (1e-3, 1e4)):
        laplace, inputs, targets = laplace_at_the_mode(structure, delta, beta, outputs)
        wanted = closed_form_evidence(inputs, targets, double(delta), double(beta)).item()
        assert laplace.log_marginal_likelihood() == pytest.approx(wanted, rel=1e-8)
        other = closed_form_evidence(inputs, targets, double(delta), double(2 * beta)).item()
        assert laplace.log_marginal_likelihood() != pytest.approx(other, rel=1e-3), "the control: another noise"


def test_the_diagonal_alone_is_not_the_closed_form():
    laplace, inputs, targets = laplace_at_the_mode("diag")
    wanted = closed_form_evidence(inputs, targets, double(DELTA), double(BETA)).item()
    assert laplace.log_marginal_likelihood() != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("structure", EXACT)
def test_slopes_in_precision_and_noise_are_those_of_the_closed_form(structure):
    """At the mode the weights' own change has no part in the first derivative."""
    laplace, inputs, targets = laplace_at_the_mode(structure)
    ours = torch.autograd.grad(
        laplace._fit_done.evidence(laplace.prior.log_precision).value,
        [laplace.prior.log_precision, laplace.likelihood.log_noise_precision],
    )
    eta = torch.tensor([DELTA, BETA], dtype=torch.float64).log().requires_grad_()
    (wanted,) = torch.autograd.grad(closed_form_evidence(inputs, targets, *eta.exp()), eta)
    assert_close(torch.cat([slope.view(1) for slope in ours]), wanted, 1e-9)


@pytest.mark.parametrize("structure", EXACT)
def test_prediction_is_that_of_linear_regression(structure):
    laplace, inputs, targets = laplace_at_the_mode(structure)
    new = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    prediction = laplace.predict(new)
    covariance = torch.linalg.inv(BETA * inputs.T @ inputs + DELTA * torch.eye(4, dtype=torch.float64))
    assert_close(prediction.mean, new @ (BETA * covariance @ inputs.T @ targets))
    variance = (new @ covariance * new).sum(1) + 1 / BETA
    assert_close(prediction.std, variance.sqrt()[:, None].expand(6, 2))
    assert relative_error(prediction.std, torch.full((6, 2), BETA**-0.5, dtype=torch.float64)) > 0.01, "noise alone"


def test_learned_noise_and_precision_are_the_largest_of_the_closed_form():
    """Refitting at each mode and ascending goes where the closed form is largest, and nowhere else."""
    inputs, targets = line_data(outputs=1, size=60)
    eta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([eta], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss():
        optimiser.zero_grad()
        value = -closed_form_evidence(inputs, targets, *eta.exp())
        value.backward()
        return value

    optimiser.step(loss)
    laplace = LayerwiseLaplace(at_the_posterior_mode(inputs, targets, 1.0, 1.0), Regression(1.0))
    for _ in range(8):
        delta, beta = laplace.precisions()["weight"], laplace.likelihood.noise_std**-2
        with torch.no_grad():
            laplace.model.weight.copy_(at_the_posterior_mode(inputs, targets, delta, beta).weight)
        laplace.fit((inputs, targets)).learn(steps=100)
    found = torch.tensor([laplace.prior.log_precision.item(), laplace.likelihood.log_noise_precision.item()])
    assert (found - eta.detach()).abs().max() < 0.01
    fixed = LayerwiseLaplace(laplace.model, Regression(1.0, learned=False)).fit((inputs, targets)).learn()
    assert fixed.likelihood.noise_std == 1.0, "the control: noise that is not learned stays"


def small_regression() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2)).double()
    return perturb_biases(model), torch.randn(7, 3, dtype=torch.float64)


@pytest.mark.parametrize("passes", [None, 2, 5])
def test_curvature_of_a_network_is_that_of_squared_errors(passes):
    model, inputs = small_regression()
    exact = exact_ggn(model, inputs, Regression())
    for structure in ("kron", "kron_blockwise", "diag"):
        ggn = GGN(model, structure, 0, passes, torch.Generator().manual_seed(0), Regression())
        ggn.update(inputs)
        found = ggn.blocks(len(inputs))
        if structure == "diag":
            assert_close(BlockKron.from_blocks(found).diag(), exact.diagonal())
            continue
        for name, part in parameter_slices(model).items():
            if name.endswith("bias") or name == "2.weight":
                assert_close(found[name].factors[0][0], exact[part, part])
    assert relative_error(exact_ggn(model, inputs, Classification()), exact) > 0.1, "the control: softmax"


def test_one_sampled_pass_is_unbiased():
    model, inputs = small_regression()
    exact, mean = exact_ggn(model, inputs, Regression()).diagonal(), 0
    for seed in range(400):
        ggn = GGN(model, "diag", 0, 1, torch.Generator().manual_seed(seed), Regression())
        ggn.update(inputs)
        mean = mean + BlockKron.from_blocks(ggn.blocks(len(inputs))).diag() / 400
    assert relative_error(mean, exact) < 0.05


@pytest.mark.parametrize("likelihood", [Classification(), Regression()])
def test_lambda_is_the_hessian_of_the_loss(likelihood):
    outputs = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 1]) if isinstance(likelihood, Classification) else outputs.flip(0)

    def total(values):
        return likelihood.losses(values, targets).sum()

    hessian = torch.autograd.functional.hessian(total, outputs)
    wanted = torch.stack([hessian[n, :, n] for n in range(3)])
    assert_close(likelihood.hessian(outputs), wanted)
    columns = likelihood.columns(outputs, 0, None, None)
    passes = columns.passes_needed.max().item()
    assert_close(sum(v[:, :, None] * v[:, None, :] for v in map(columns.column, range(passes))), wanted)


def test_evidence_of_a_network_by_the_letter():
    model, inputs = small_regression()
    targets = torch.randn(7, 2, dtype=torch.float64)
    likelihood = Regression(BETA)
    objective = fit(model, LayerwisePrior(model), (inputs, targets), FitSettings("full"), likelihood=likelihood)
    eta = torch.linspace(-1, 2, 6, dtype=torch.float64)
    delta = eta.exp().repeat_interleave(torch.tensor([p.numel() for p in model.parameters()]))
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    noise = torch.distributions.Normal(model(inputs).detach(), BETA**-0.5)
    hessian = BETA * exact_ggn(model, inputs, likelihood) + delta.diag()
    prior = (delta.log().sum() - (delta * theta * theta).sum()) / 2
    wanted = noise.log_prob(targets).sum() + prior - torch.linalg.slogdet(hessian)[1] / 2
    assert_close(objective.evidence(eta).value.detach(), wanted.detach())
    share = (torch.linalg.inv(hessian) @ (hessian - delta.diag())).diagonal()
    wanted = torch.stack([share[part].sum() for part in parameter_slices(model).values()])
    assert_close(objective.effective_parameters(eta), wanted.detach(), 1e-8)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.zeros(7), r"targets of the outputs' shape \(7, 1\), got torch.float64 \(7,\): .* unsqueeze\(1\)"),
        (torch.zeros(7, 2), r"shape \(7, 1\), got torch.float64 \(7, 2\)"),
        (torch.zeros(7, 1, dtype=torch.long), r"floating-point targets .* got torch.int64"),
        (torch.full((7, 1), torch.nan), "targets must be finite"),
    ],
)
def test_targets_that_are_not_of_the_outputs_are_refused(targets, said):
    model, inputs = nn.Linear(3, 1).double(), torch.randn(7, 3, dtype=torch.float64)
    targets = targets.double() if targets.is_floating_point() else targets
    with pytest.raises(ValueError, match=said):
        LayerwiseLaplace(model, "regression").fit((inputs, targets))
    with pytest.raises(ValueError, match=said):
        total_loss(model, (inputs, targets), 7, Regression())


def test_the_full_matrix_of_a_network_in_float32_is_that_in_float64():
    """Of 200 data and 601 weights, most directions have no curvature: rounding decides them where it is squared."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 10, generator=generator)
    targets = (inputs @ torch.randn(10, 1, generator=generator)).sin()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1))
    found = []
    for dtype in (torch.float32, torch.float64):
        door = LayerwiseLaplace(model.to(dtype), Regression(1e4), prior_precision=1e-2, settings=FitSettings("full"))
        door.fit((inputs.to(dtype), targets.to(dtype)))
        found.append(torch.tensor(list(door.effective_numbers().values()), dtype=torch.float64))
    assert_close(*found, 1e-3)
    assert found[1].sum() < 200.5, "no more numbers than data determine"


def test_noise_must_be_positive_and_asdl_is_for_classification():
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="noise_precision must be positive and finite"):
            Regression(wrong)
    model, inputs = small_regression()
    settings = FitSettings("kron", tolerance=0.0, engine="asdl")
    with pytest.raises(ValueError, match="engine must be native for regression"):
        LayerwiseLaplace(model, "regression", settings=settings).fit((inputs, torch.zeros(7, 2, dtype=torch.float64)))
