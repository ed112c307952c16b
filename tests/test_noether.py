"""Noether's razor: flows, the evidence and its bound, measures, each beside an oracle and a control that must fail."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal

from ellarepro.curvature.kernel import KernelCurvature
from ellarepro.noether import __main__ as noether
from ellarepro.noether.bounded import BoundedModel, BoundedRun
from ellarepro.noether.closed import AlgebraRun
from ellarepro.noether.evidence import RandomFeatures, log_evidence, moments
from ellarepro.noether.exact import ExactModel, ExactSettings
from ellarepro.noether.flows import Conserved, principal_angles
from ellarepro.noether.measures import asymmetry, midpoint_step, random_unitary, turned_bodies
from ellarepro.noether.systems import oscillators, symplectic_form, three_bodies
from ellarepro.report import render_page
from ellarepro.report.cards import read_noether

SYSTEMS = {"oscillator": oscillators(1), "stretched": oscillators(3, 1.7), "bodies": three_bodies()}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(711)


def randn(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moved(flow, x):
    return x @ flow[:, :-1].mT + flow[:, -1]


@pytest.mark.parametrize("name", SYSTEMS)
def test_flows_of_conserved_quantities_keep_the_hamiltonian(name, generator):
    system = SYSTEMS[name]
    x, known = system.starts(5, generator), Conserved(system.conserved, system.d)
    for flow in known.flows(torch.eye(len(system.conserved), dtype=torch.float64) * 0.3):
        torch.testing.assert_close(system.hamiltonian(moved(flow, x)), system.hamiltonian(x))
    other = Conserved.random(1, system.d, 0.3, generator).flows(torch.ones(1, 1, dtype=torch.float64))[0]
    assert (system.hamiltonian(moved(other, x)) - system.hamiltonian(x)).abs().max() > 0.01


@pytest.mark.parametrize("name", SYSTEMS)
def test_conserved_quantities_are_independent_and_constant_on_trajectories(name, generator):
    system = SYSTEMS[name]
    rows, d = system.conserved, system.d
    assert torch.linalg.matrix_rank(rows) == len(rows) == {"oscillator": 1, "stretched": 9, "bodies": 7}[name]
    states = system.trajectories(3, 4, generator)
    products = torch.cat([(states[..., None] * states[..., None, :]).flatten(2) / 2, states], 2)
    values = products @ torch.cat([rows, torch.randn(1, d * d + d, dtype=torch.float64, generator=generator)]).mT
    drift = (values - values[:, :1]).abs().amax((0, 1))
    assert drift[:-1].max() < 1e-7 < 1e-2 < drift[-1]


def test_flows_are_symplectic(generator):
    form = symplectic_form(6)
    flows = Conserved.random(4, 6, 0.3, generator).flows(randn(3, 4, generator=generator))[..., :-1]
    torch.testing.assert_close(flows.mT @ form @ flows, form.expand(3, 6, 6))
    other = torch.matrix_exp(0.3 * randn(6, 6, generator=generator))
    assert (other.mT @ form @ other - form).abs().max() > 0.1


def test_times_lie_in_the_ball_and_come_in_opposite_pairs(generator):
    times = Conserved.random(5, 2, 1.0, generator).times(200, generator)
    assert times.norm(dim=1).max() <= 1 and times.mean(0).abs().max() < 1e-12
    plain = Conserved(torch.empty(0, 6, dtype=torch.float64), 2)
    assert torch.equal(plain.flows(plain.times(200, generator))[0, :, :-1], torch.eye(2, dtype=torch.float64))


def brute_rows(features, system, middles, flows):
    """R of each flow by autograd."""

    def values(x, flow):
        return features.values(x[None], flow[None])[0, 0]

    jacobian = torch.func.vmap(torch.func.vmap(torch.func.jacrev(values), (0, None)), (None, 0))(middles, flows)
    return (system.stride * torch.einsum("ij,tbpj->tbip", system.form, jacobian)).flatten(1, 2).detach()


@pytest.fixture
def small(generator):
    system, features = oscillators(2), RandomFeatures(4, 5, 2.0, generator)
    middles, flows = system.starts(3, generator), Conserved.random(3, 4, 0.2, generator)
    flows = flows.flows(flows.times(6, generator)).detach()
    return system, features, middles, flows, randn(12, generator=generator)


def test_moments_are_those_of_the_rows(small):
    system, features, middles, flows, _ = small
    rows = brute_rows(features, system, middles, flows)
    mean, second = moments(features, system, middles, flows)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(second, (rows.mT @ rows).mean(0))


def dense_bound(rows, target, precision, noise, draws):
    """log of the integral of p(w) exp(E log p), by the dense quadratic in w; E over sets of `draws` rows."""
    mean, count = rows.mean(0), rows.shape[2]
    second = (rows.mT @ rows).mean(0) / draws + (1 - 1 / draws) * mean.mT @ mean
    hessian = noise * second + precision * torch.eye(count, dtype=rows.dtype)
    linear = noise * mean.mT @ target
    exponent = linear @ torch.linalg.solve(hessian, linear) / 2 - noise * target @ target / 2
    constants = len(target) * math.log(noise / (2 * math.pi)) + count * math.log(precision)
    return exponent + (constants - torch.logdet(hessian)) / 2


def test_evidence_is_that_of_the_dense_gaussian(small):
    system, features, middles, flows, target = small
    precision, noise = torch.tensor([0.7, 30.0], dtype=torch.float64)
    mean, second = moments(features, system, middles, flows)
    got, _ = log_evidence(mean, second, target, precision, noise, math.inf)
    kernel = mean @ mean.mT / precision
    covariance = kernel + torch.eye(len(target)).double() / noise
    dense = MultivariateNormal(torch.zeros_like(target), covariance).log_prob(target)
    assert got.item() == pytest.approx(dense.item(), rel=1e-10)
    ratio = KernelCurvature([(noise * mean @ mean.mT).detach()[None]]).log_det_ratio(precision[None])
    quadratic = target @ torch.linalg.solve(covariance, target)
    again = -(ratio + quadratic - len(target) * (noise / (2 * math.pi)).log()) / 2
    assert got.item() == pytest.approx(again.item(), rel=1e-10)


def test_bound_is_the_dense_integral_and_never_above_the_evidence(small):
    system, features, middles, flows, target = small
    rows, found = brute_rows(features, system, middles, flows), []
    for draws in (1, 4, 100, math.inf):
        precision, noise = torch.tensor([0.7, 30.0], dtype=torch.float64)
        got, _ = log_evidence(*moments(features, system, middles, flows), target, precision, noise, draws)
        assert got.item() == pytest.approx(dense_bound(rows, target, 0.7, 30.0, draws).item(), rel=1e-10)
        found.append(got.item())
    assert found == sorted(found) and found[-1] - found[0] > 0.1


def test_gradients_of_the_bound_are_finite_differences(generator):
    system, data = oscillators(1), randn(2, 3, 2, generator=generator).unbind()
    model = ExactModel(system, Conserved.random(2, 2, 0.3, generator), data, ExactSettings(4, 1), generator)

    def bound(*_):
        return model.evidence(6, 3.0, torch.Generator().manual_seed(0))[0]

    with torch.no_grad():
        model.log_precision.zero_()
        model.log_noise.fill_(1.0)
    assert torch.autograd.gradcheck(bound, tuple(model.parameters()), atol=1e-7)


def test_angles_between_spans(generator):
    rotated = torch.zeros(2, 6).double()
    rotated[0, 0], rotated[1, 1], rotated[1, 2] = 3, math.cos(0.01), math.sin(0.01)
    angles = principal_angles(rotated, torch.eye(6).double()[:2], 2)
    assert angles.tolist() == pytest.approx([0, math.degrees(0.01)], abs=1e-10)
    algebra = oscillators(2).conserved
    assert principal_angles(randn(9, 4, generator=generator) @ algebra, algebra, 4).max() < 1e-5
    assert principal_angles(Conserved.random(9, 4, 1.0, generator).symmetric, algebra, 4).max() > 30


def test_finite_rotations_are_symmetries(generator):
    unitary, form = random_unitary(3, generator), symplectic_form(6)
    torch.testing.assert_close(unitary.mT @ unitary, torch.eye(6).double())
    torch.testing.assert_close(unitary.mT @ form @ unitary, form)
    system = oscillators(3)
    x = system.starts(50, generator)
    assert asymmetry(system.hamiltonian, x, x @ unitary.mT) < 1e-10
    assert asymmetry(lambda x: x[:, 0] ** 2, x, x @ unitary.mT) > 0.1
    bodies = three_bodies()
    x = bodies.starts(50, generator)
    assert asymmetry(bodies.hamiltonian, x, turned_bodies(x, 2.0, (0.5, -0.3))) < 1e-10
    assert asymmetry(bodies.hamiltonian, x, torch.cat([turned_bodies(x, 2.0, (0, 0))[:, :6], x[:, 6:] * 1.1], 1)) > 0.01


def test_midpoint_step_of_an_oscillator_is_the_cayley_map(generator):
    system, one = oscillators(2), torch.eye(4).double()
    x = system.starts(3, generator)
    exact = x @ torch.linalg.solve(one - 0.1 * system.form, one + 0.1 * system.form).mT
    torch.testing.assert_close(midpoint_step(system.hamiltonian, x, 0.2), exact)


def test_misfit_is_that_of_the_dense_likelihood(generator):
    system = oscillators(1)
    model = BoundedModel(system, Conserved(system.conserved, 2), 4, generator)
    with torch.no_grad():
        for q in model.posteriors:
            q.log_scales[0].fill_(-60.0)
    starts, ends = randn(2, 3, 2, generator=generator).unbind()
    got = model.misfit(starts, ends, 6, torch.Generator().manual_seed(1)).item()
    flows = model.conserved.flows(model.conserved.times(6, torch.Generator().manual_seed(1)))

    def energy(x):
        return model.hamiltonian(list(model.weights), flows, x[None])[0]

    middle = (starts + ends) / 2
    steps = [
        [(energy(x + 1e-5 * e) - energy(x - 1e-5 * e)).item() / 2e-5 for e in torch.eye(2).double()] for x in middle
    ]
    mean = starts + 0.2 * torch.tensor(steps).double() @ system.form.mT
    dense = MultivariateNormal(torch.zeros(2).double(), 1e-3 * torch.eye(2).double()).log_prob(ends - mean)
    assert got == pytest.approx(-dense.mean().item(), rel=1e-5)


def least_squares_angle(seed, noise):
    """Degrees between the identity and A of H = x^T A x / 2, fitted to 28 steps of an oscillator."""
    generator, system = torch.Generator().manual_seed(seed), oscillators(1)
    turn, states = torch.matrix_exp(system.stride * system.form), [system.starts(7, generator)]
    for _ in range(4):
        states.append(states[-1] @ turn.mT)
    starts, ends = torch.cat(states[:-1]), torch.cat(states[1:])
    ends = ends + noise * randn(28, 2, generator=generator)
    basis = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [1, 0]]]).double()
    columns = (system.stride * (starts + ends) / 2 @ basis @ system.form.mT).flatten(1).mT
    fitted = torch.linalg.lstsq(columns, (ends - starts).flatten()[:, None]).solution[:, 0]
    row = torch.cat([torch.einsum("k,kij->ij", fitted, basis).flatten(), torch.zeros(2).double()])
    return principal_angles(row[None], system.conserved, 1).item()


def test_published_noise_hides_a_degree_from_least_squares():
    def within(noise):
        return sum(least_squares_angle(seed, noise) < 1 for seed in range(200))

    assert within(1e-3**0.5) < 70 and within(1e-3) == 200


def test_one_oscillator_is_learned_to_a_degree(generator):
    system = oscillators(1)
    true = system.trajectories(7, 4, generator)
    data = true[:, :-1].reshape(-1, 2), true[:, 1:].reshape(-1, 2)
    model = ExactModel(system, Conserved.random(4, 2, 0.25, generator), data, ExactSettings(24, 250), generator)
    before = principal_angles(model.conserved.symmetric.detach(), system.conserved, 1).item()
    model.fit(learned=True)
    after = principal_angles(model.conserved.symmetric.detach(), system.conserved, 1).item()
    assert after < 1 < 10 < before


def test_command_makes_a_budget_once(tmp_path, monkeypatch, capsys):
    short = BoundedRun("bodies", "learned", 0, trajectories=2, length=2, width=4, steps=2)
    out = tmp_path / "noether"
    both = short, replace(short, system="oscillators", symmetry="plain")
    monkeypatch.setattr(AlgebraRun, "settings", ExactSettings(4, 2))
    monkeypatch.setitem(noether.BUDGETS, "tiny", lambda: [AlgebraRun(2, 0), AlgebraRun(2, 0, stretch=1.5), *both])
    assert noether.main(["tiny", "--out", str(out)]) == 0
    records = {path.stem: json.loads(path.read_text()) for path in (out / "tiny").glob("*.json")}
    assert len(records) == 4 and {"git_commit", "hardware", "config"} <= records[short.name].keys()
    assert len(records[AlgebraRun(2, 0).name]["angles"]) == 4
    assert (out / "tiny" / "generators.png").stat().st_size > 10_000
    capsys.readouterr()
    assert noether.main(["tiny", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'tiny' / 'study.md'}\n"
    (card,) = read_noether([tmp_path])
    assert (card.name, len(card.tables)) == ("budget tiny", 4)
    assert "budget tiny" in render_page([], noether=[card])


def test_unknown_budget_is_refused(capsys):
    assert noether.main(["huge"]) == 2
    assert "budget: got 'huge'; possible are cpu, paper, smoke" in capsys.readouterr().err
