"""The evidence against dense formulas and finite differences; effective parameters; the limits; ascent."""

import math
from copy import deepcopy

import pytest
import torch
from helpers import assert_close, parameter_slices, relative_error, small_data, small_network
from torch import nn

from ellarepro.curvature import EllaGGN, exact
from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.spectra import FullCurvature, SpectralCurvature
from ellarepro.data.dataset import Samples
from ellarepro.evidence import marglik
from ellarepro.evidence.marglik import Evidence, MarginalLikelihood
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layers.factored import FactoredDense
from ellarepro.settings.parts import FitSettings

STRUCTURES = ["kron", "kron_blockwise", "diag", "full"]


def fit(model, prior, data, **settings):
    return marglik.fit(model, prior, data, FitSettings(**settings))


class Tiny(nn.Module):
    """A factored layer on 4x4 maps and a head: 128 parameters in 5 tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = FactoredDense(1, 3, (4, 4), (2, 2))
        self.head = nn.Linear(12, 3)
        self.double()

    def forward(self, x):
        return self.head(self.layer(x).relu().flatten(1))


@pytest.fixture(scope="module")
def model():
    return Tiny()


@pytest.fixture(scope="module")
def data():
    return Samples(*small_data(12, side=4))


def dense_curvature(model, data, structure):
    """H as one dense matrix, for which only the factors of laplace-torch's interface or autograd are used."""
    if structure == "full":
        return exact_ggn(model, data.inputs)
    kron = EllaGGN(model, structure=structure).kron(data.inputs, data.targets, len(data))[1]
    return kron.diag().diag() if structure == "diag" else kron.to_matrix()


def dense_evidence(model, data, matrix, eta):
    """Eq. 9 by its letter, with no common factor cancelled."""
    sizes = torch.tensor([p.numel() for p in model.parameters()])
    delta = eta.exp().repeat_interleave(sizes)
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    likelihood = -nn.functional.cross_entropy(model(data.inputs), data.targets, reduction="sum").detach()
    prior = -(delta * theta * theta).sum() / 2 + delta.log().sum() / 2
    return likelihood + prior - torch.linalg.slogdet(matrix + delta.diag())[1] / 2


def log_precisions(model):
    return torch.linspace(-2, 3, len(list(model.parameters())), dtype=torch.float64)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_evidence_and_its_gradient(model, data, structure):
    objective = fit(model, LayerwisePrior(model), data, structure=structure, tolerance=0, batch_size=5)
    matrix, eta = dense_curvature(model, data, structure), log_precisions(model).requires_grad_()
    evidence = objective.evidence(eta)
    assert_close(evidence.value, dense_evidence(model, data, matrix, eta))
    assert evidence.negative_per_datum == pytest.approx(-evidence.value.item() / 12)
    assert evidence.log_det <= 0
    (gradient,) = torch.autograd.grad(evidence.value, eta)
    differences = torch.zeros_like(gradient)
    for index in range(len(eta)):
        step = torch.zeros_like(eta).index_fill(0, torch.tensor([index]), 1e-4)
        sides = [dense_evidence(model, data, matrix, eta.detach() + sign * step) for sign in (1, -1)]
        differences[index] = (sides[0] - sides[1]) / 2e-4
    assert_close(gradient, differences, 1e-6)
    without_volume = torch.autograd.grad(objective.evidence(eta).log_prior, eta)[0]
    assert relative_error(without_volume, differences) > 0.1, "the control: the prior's part alone"


def test_structures_differ(model, data):
    eta = log_precisions(model)
    values = {s: fit(model, LayerwisePrior(model), data, structure=s, tolerance=0).evidence(eta) for s in STRUCTURES}
    assert len({round(e.log_det.item(), 6) for e in values.values()}) == len(STRUCTURES)
    assert len({round(e.data_fit.item(), 12) for e in values.values()}) == 1
    assert len({e.data_fit.item() for s, e in values.items() if s != "full"}) == 1


def test_parts_sum_to_the_value():
    parts = [torch.tensor(v, dtype=torch.float64) for v in (-3.0, -0.5, -1.5)]
    evidence = Evidence(*parts, data_size=4)
    assert evidence.value == -5 and evidence.negative_per_datum == 1.25


@pytest.mark.parametrize("structure", STRUCTURES)
def test_effective_parameters_by_brute_force(model, data, structure):
    objective = fit(model, LayerwisePrior(model), data, structure=structure, tolerance=0)
    eta = log_precisions(model)
    found = objective.effective_parameters(eta)
    matrix, slices = dense_curvature(model, data, structure), list(parameter_slices(model).values())
    sizes = torch.tensor([s.stop - s.start for s in slices])
    if structure == "full":
        share = (matrix @ (matrix + eta.exp().repeat_interleave(sizes).diag()).inverse()).diagonal()
        wanted = torch.stack([share[s].sum() for s in slices])
    else:
        spectra = [torch.linalg.eigvalsh(matrix[s, s]).clamp_min(0) for s in slices]
        wanted = torch.stack([(e / (e + d)).sum() for e, d in zip(spectra, eta.exp(), strict=True)])
    assert_close(found, wanted, 1e-8)
    assert ((found >= 0) & (found <= sizes)).all()
    flipped = objective.effective_parameters(eta.flip(0))
    assert relative_error(flipped, wanted) > 0.1, "the control: other precisions"


def test_limits(model, data):
    objective, count = fit(model, LayerwisePrior(model), data, tolerance=0), len(list(model.parameters()))
    strong, weak = (torch.full((count,), value, dtype=torch.float64) for value in (40.0, -20.0))
    assert objective.effective_parameters(strong).max() < 1e-12
    assert objective.evidence(strong).log_det.abs() < 1e-12
    positive = torch.tensor([(spectrum > 1e-6).sum() for spectrum in objective.curvature.spectra]).double()
    assert_close(objective.effective_parameters(weak), positive, 1e-3)
    assert objective.evidence(weak).log_det < -100
    assert objective.evidence(weak).log_prior.abs() < 1e-6


def test_ascend_increases_the_evidence(model, data):
    objective = fit(model, LayerwisePrior(model), data, tolerance=0)
    prior = LayerwisePrior(model)
    optimiser, values = torch.optim.Adam([prior.log_precision], lr=0.1), []
    for _ in range(8):
        values.append(objective.evidence(prior.log_precision).value.item())
        objective.ascend(prior.log_precision, optimiser, steps=10)
    assert all(later > earlier for earlier, later in zip(values, values[1:], strict=False))
    assert len(set(prior.precisions().values())) == 5, "each tensor has its own"
    away = LayerwisePrior(model)
    objective.ascend(away.log_precision, torch.optim.Adam([away.log_precision], lr=0.1, maximize=True), steps=10)
    assert objective.evidence(away.log_precision).value < values[0], "the control: the other way"


def test_ascend_finds_the_fixed_point():
    """For one tensor, delta |theta|^2 = effective parameters where the evidence is largest (MacKay, 1992)."""
    spectrum = torch.tensor([30.0, 4.0, 0.5], dtype=torch.float64)
    objective = MarginalLikelihood(
        SpectralCurvature([[spectrum[None]]]), 0.0, torch.tensor([2.0], dtype=torch.float64), 5
    )
    eta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert (eta.exp() * 2 - objective.effective_parameters(eta)).abs() > 0.1
    objective.ascend(eta, torch.optim.Adam([eta], lr=0.05), steps=1000)
    assert_close(eta.detach().exp() * 2, objective.effective_parameters(eta), 1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fit_on_half_of_duplicated_data_is_the_whole_fit(model, data, structure):
    twice = Samples(data.inputs.repeat(2, 1, 1, 1), data.targets.repeat(2))
    prior, eta = LayerwisePrior(model), log_precisions(model)
    whole = fit(model, prior, twice, structure=structure, tolerance=0).evidence(eta)
    half = fit(model, prior, twice, structure=structure, tolerance=0, fit_size=12).evidence(eta)
    assert_close(half.log_det, whole.log_det)
    assert_close(half.value, whole.value)
    assert half.data_size == 24
    unscaled = fit(model, prior, data, structure=structure, tolerance=0).evidence(eta)
    assert relative_error(unscaled.log_det, whole.log_det) > 0.05, "the control: not scaled up"


class Counted(nn.Module):
    """Counts the samples that pass forward through a model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.samples = model, 0

    def forward(self, x):
        self.samples += len(x)
        return self.model(x)


@pytest.mark.parametrize("fit_size", [None, 5, 12, 50])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_each_datum_passes_forward_once_and_the_loss_is_that_of_all(model, data, structure, fit_size):
    spy = Counted(nn.Sequential(model, nn.Dropout())).train()
    settings = {"structure": structure, "tolerance": 0, "batch_size": 5, "fit_size": fit_size}
    objective = fit(spy, LayerwisePrior(spy), data, **settings)
    assert spy.samples == 12
    losses = nn.functional.cross_entropy(model(data.inputs), data.targets, reduction="none").detach()
    assert objective.loss == pytest.approx(losses.sum().item(), rel=1e-12)
    assert marglik.total_loss(spy, data, 5) == pytest.approx(losses.sum().item(), rel=1e-12)
    assert spy.samples == 24 and spy.training, "the control: counted"
    noisy = nn.functional.cross_entropy(spy(data.inputs), data.targets, reduction="sum").item()
    assert noisy != pytest.approx(losses.sum().item(), rel=1e-3), "the control: it drops out"
    assert losses[:5].sum() < 0.9 * losses.sum()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batch_size_plays_no_part(model, data, structure):
    prior, eta = LayerwisePrior(model), log_precisions(model)
    values = [
        fit(model, prior, data, structure=structure, tolerance=0, batch_size=size).evidence(eta).value
        for size in (1, 5, 12, 150)
    ]
    for value in values[1:]:
        assert_close(value, values[0])


def test_full_is_refused_for_large_networks(model, data, monkeypatch):
    with pytest.raises(ValueError, match=r"structure=full .* up to 6000 parameters, got \d+; take kron"):
        fit(small_network("conv", alpha=4), LayerwisePrior(model), Samples(*small_data()), structure="full")
    monkeypatch.setattr(exact, "FULL_LIMIT", 10)
    with pytest.raises(ValueError, match=r"up to 10 parameters, got \d+"):
        fit(model, LayerwisePrior(model), data, structure="full")


def test_full_agrees_with_kron_where_it_is_exact():
    """One layer and one datum: the blocks are exact, and with no bias there is only one."""
    torch.manual_seed(0)
    model, one = nn.Linear(4, 3, bias=False).double(), torch.randn(1, 4, dtype=torch.float64)
    several = torch.randn(3, 4, dtype=torch.float64)
    eta = torch.tensor([0.4], dtype=torch.float64)
    for images, equal in ((one, True), (several, False)):
        data = Samples(images, torch.zeros(len(images), dtype=torch.long))
        kron, full = (fit(model, LayerwisePrior(model), data, structure=s, tolerance=0) for s in ("kron", "full"))
        assert isinstance(kron.curvature, SpectralCurvature) and isinstance(full.curvature, FullCurvature)
        error = relative_error(kron.evidence(eta).log_det, full.evidence(eta).log_det)
        assert error < 1e-10 if equal else error > 1e-3


def test_default_tolerance_barely_changes_the_evidence(model, data):
    eta = log_precisions(model)
    exact, default = (fit(model, LayerwisePrior(model), data, **o).evidence(eta) for o in ({"tolerance": 0}, {}))
    assert relative_error(default.log_det, exact.log_det) < 1e-3
    rough = fit(model, LayerwisePrior(model), data, tolerance=0.5).evidence(eta)
    assert relative_error(rough.log_det, exact.log_det) > 1e-3, "the control: half of the mass left out"


def test_prior(model):
    prior = LayerwisePrior(model, precision=2.5)
    assert list(prior.precisions()) == [name for name, _ in model.named_parameters()]
    assert list(prior.precisions().values()) == pytest.approx([2.5] * 5)
    assert_close(prior.squared_norms(), torch.stack([p.detach().norm() ** 2 for p in model.parameters()]))
    loss = sum((p * p).sum() * d / 2 for p, d in zip(model.parameters(), range(1, 6), strict=True)) / 12
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    prior.add_gradients([delta / 12 for delta in (1.0, 2.0, 3.0, 4.0, 5.0)])
    for p, gradient in zip(model.parameters(), wanted, strict=True):
        assert_close(p.grad - 1, gradient)
        p.grad = None
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="precision must be positive and finite"):
            LayerwisePrior(model, wrong)


FACTORS = ["layer.theta1.weight", "layer.theta2.weight"]


def learned_prior(model, data, steps, **options):
    prior = LayerwisePrior(model, **options)
    evidence = fit(model, prior, data, tolerance=0)
    evidence.ascend(prior.log_precision, torch.optim.Adam([prior.log_precision], lr=0.1), steps)
    return prior, evidence


def test_tied_precisions_move_as_one_by_the_sum_of_their_gradients(model, data):
    prior, evidence = learned_prior(model, data, 7, tied=[FACTORS])
    found = prior.precisions()
    assert found[FACTORS[0]] == found[FACTORS[1]] != found["head.weight"]
    prior.log_precision.grad = None
    (-evidence.evidence(prior.log_precision).value).backward()
    eta = prior.log_precision.detach().clone().requires_grad_()
    (apart,) = torch.autograd.grad(-evidence.evidence(eta).value, eta)
    tied = dict(zip(prior.names, prior.log_precision.grad.tolist(), strict=True))
    own = dict(zip(prior.names, apart.tolist(), strict=True))
    assert tied[FACTORS[0]] == tied[FACTORS[1]] == pytest.approx(own[FACTORS[0]] + own[FACTORS[1]])
    assert {n: tied[n] for n in own if n not in FACTORS} == {n: own[n] for n in own if n not in FACTORS}
    untied = learned_prior(model, data, 7)[0].precisions()
    assert untied[FACTORS[0]] != untied[FACTORS[1]], "the control"


def test_tied_precisions_may_be_fixed_together(model, data):
    held = learned_prior(model, data, 7, tied=[FACTORS], fixed=FACTORS)[0].precisions()
    assert held[FACTORS[0]] == held[FACTORS[1]] == 1.0 != held["head.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": [["layer.theta1.weight", "nowhere"]]}, r"not trainable: \['nowhere'\]"),
        ({"tied": [FACTORS, ["head.weight", FACTORS[0]]]}, "twice: .*theta1"),
        ({"tied": [FACTORS], "fixed": FACTORS[:1]}, "fixed together or not at all"),
    ],
)
def test_impossible_ties_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        LayerwisePrior(model, **options)


def rescaled(model, factor):
    """The same function: theta1 times `factor`, theta2 divided by it."""
    twin = deepcopy(model)
    with torch.no_grad():
        twin.layer.theta1.weight.mul_(factor)
        twin.layer.theta2.weight.div_(factor)
    return twin


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_evidence_loses_nothing_by_a_tie(model, data, structure):
    """For any two precisions of the factors there are weights of the same function and the same evidence, tied."""
    eta = log_precisions(model)
    apart = dict(zip(LayerwisePrior(model).names, eta.tolist(), strict=True))
    middle = (apart[FACTORS[0]] + apart[FACTORS[1]]) / 2
    assert apart[FACTORS[0]] != middle
    twin = rescaled(model, math.exp((apart[FACTORS[0]] - middle) / 2))
    tied = torch.tensor([middle if name in FACTORS else value for name, value in apart.items()], dtype=torch.float64)
    assert_close(twin(data.inputs), model(data.inputs))
    assert relative_error(twin.layer.theta1.weight, model.layer.theta1.weight) > 0.05
    before, after = (fit(m, LayerwisePrior(m), data, structure=structure, tolerance=0) for m in (model, twin))
    for part in ("data_fit", "log_prior", "log_det"):
        assert_close(getattr(after.evidence(tied), part), getattr(before.evidence(eta), part))
    control = before.evidence(tied)
    assert relative_error(control.log_prior, before.evidence(eta).log_prior) > 1e-3, "the control: not rescaled"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_fit_that_sees_a_part_of_the_data_is_that_part_repeated(model, data, structure):
    part, settings = data.first(4), FitSettings(structure=structure, tolerance=0, batch_size=3)
    repeated = Samples(part.inputs.repeat(3, 1, 1, 1), part.targets.repeat(3))
    prior, eta = LayerwisePrior(model), log_precisions(model)
    got = marglik.Fit(model, prior, part, settings, data_size=12).whole().evidence(eta)
    wanted = fit(model, prior, repeated, structure=structure, tolerance=0).evidence(eta)
    assert got.data_size == 12
    assert_close(got.value, wanted.value)
    assert relative_error(fit(model, prior, part, structure=structure).evidence(eta).value, wanted.value) > 0.1
