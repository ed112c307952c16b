"""Natural gradients beside the exact GGN, where both must agree, and as an optimiser of every layer type."""

import io
import math
from collections.abc import Callable

import pytest
import torch
from helpers import assert_close, parameter_slices, relative_error, small_data, small_network
from torch import nn
from valued import MISSING, NAME, Valued

from ellarepro import Classification, NaturalGradient, Regression
from ellarepro.curvature import damping, moving
from ellarepro.curvature.damping import DampedInverses
from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.moving import MovingBlocks
from ellarepro.curvature.rule import UnclaimedParameterError
from ellarepro.network import LAYERS, build_network
from ellarepro.settings.parts import AnchorSettings

UNDAMPED = 1e-22
THERE = torch.device(NAME, 0)


class Reference(nn.Module):
    """A last logit of zero: softmax sees all others, so that the GGN has full rank."""

    def forward(self, logits):
        return nn.functional.pad(logits, (0, 1))


def linear_problem(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Classification | Regression]:
    """A linear network whose blocks are products of factors: of a Gaussian, and of softmax where all logits agree."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    torch.manual_seed(5)
    if name == "gaussian":
        targets = torch.randn(40, 3, generator=generator, dtype=torch.float64)
        return nn.Linear(5, 3, bias=False).double(), inputs, targets, Regression(1.0, learned=False)
    if name == "deep gaussian":
        targets = torch.randn(40, 3, generator=generator, dtype=torch.float64)
        layers = nn.Linear(5, 2, bias=False), nn.Linear(2, 3, bias=False)
        return nn.Sequential(*layers).double(), inputs, targets, Regression(1.0, learned=False)
    model = nn.Sequential(nn.Linear(5, 2, bias=False).double(), Reference())
    nn.init.zeros_(model[0].weight)
    return model, inputs, torch.randint(3, (40,), generator=generator), Classification()


def backward(model: nn.Module, inputs, targets, likelihood, precision: float = 0.0) -> torch.Tensor:
    """The mean loss with the prior's part, whose gradients are set."""
    model.zero_grad()
    prior = sum(p.square().sum() for p in model.parameters() if p.requires_grad) * (precision / (2 * len(inputs)))
    loss = likelihood.losses(model(inputs), targets).mean() + prior
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", ["gaussian", "deep gaussian", "softmax"])
def test_of_a_linear_network_the_direction_is_the_exact_natural_gradient(name):
    model, inputs, targets, likelihood = linear_problem(name)
    optimiser = NaturalGradient(model, damping=UNDAMPED, likelihood=likelihood, passes=None)
    backward(model, inputs, targets, likelihood)
    optimiser.observe(inputs)
    whole = exact_ggn(model, inputs, likelihood) / len(inputs)
    for tensor, place in parameter_slices(model).items():
        gradient = model.get_parameter(tensor).grad
        wanted = torch.linalg.solve(whole[place, place], gradient.flatten())
        assert_close(optimiser.direction(tensor, gradient).flatten(), wanted, 1e-8)
        assert relative_error(gradient.flatten() * (wanted.norm() / gradient.norm()), wanted) > 0.05, "control"


def test_one_step_of_a_given_size_goes_along_the_direction():
    model, inputs, targets, likelihood = linear_problem("gaussian")
    optimiser = NaturalGradient(model, lr=0.03, likelihood=likelihood)
    before = model.weight.detach().clone()
    backward(model, inputs, targets, likelihood)
    optimiser.observe(inputs)
    direction = optimiser.direction("weight", model.weight.grad)
    optimiser.step()
    step = before - model.weight.detach()
    assert_close(step / step.norm(), direction / direction.norm())
    assert step.square().mean().sqrt() == pytest.approx(0.03 * before.square().mean().sqrt())


@pytest.mark.parametrize("kl_clip", [1e-4, 1e-8])
def test_a_clipped_step_has_the_divergence_that_it_may_have(kl_clip):
    """By the exact GGN, tensor by tensor; one that does not reach the limit is as it would be without."""
    model, inputs, targets, likelihood = linear_problem("deep gaussian")
    whole = exact_ggn(model, inputs, likelihood) / len(inputs)
    start = [p.detach().clone() for p in model.parameters()]
    divergences = []
    for limit in (None, kl_clip, 1e3):
        for p, value in zip(model.parameters(), start, strict=True):
            p.data.copy_(value)
        optimiser = NaturalGradient(model, lr=0.03, damping=UNDAMPED, kl_clip=limit, likelihood=likelihood, passes=None)
        backward(model, inputs, targets, likelihood)
        optimiser.observe(inputs)
        optimiser.step()
        steps = [(p.detach() - value).flatten() for p, value in zip(model.parameters(), start, strict=True)]
        places = parameter_slices(model).values()
        divergences.append(sum(s @ whole[at, at] @ s / 2 for s, at in zip(steps, places, strict=True)).item())
    free, clipped, loose = divergences
    assert clipped == pytest.approx(kl_clip) and free == loose
    assert free > 1.1 * kl_clip, "the control: the step is longer without the limit"


@pytest.mark.parametrize("size", [1e-15, 1e-24, 1e-30, 1e-40, 0.0])
def test_no_gradient_is_so_small_that_a_step_exceeds_its_size(size):
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3, bias=False), torch.randn(12, 5)
    optimiser = NaturalGradient(model, lr=0.03)
    before = model.weight.detach().clone()
    optimiser.observe(inputs)
    model.weight.grad = torch.full_like(model.weight, size)
    optimiser.step()
    step, most = ((before - model.weight.detach()).norm().item(), 0.03 * before.norm().item())
    assert step <= 1.001 * most
    assert size < 1e-15 or step == pytest.approx(most, rel=1e-3), "the control: a small gradient does move it"


def map_found_by(optimiser_of, prior_after: bool = False) -> torch.Tensor:
    """Weights of a softmax regression with a prior at the end of a run with a falling rate, full batches."""
    _, inputs, targets, likelihood = linear_problem("softmax")
    torch.manual_seed(6)
    model = nn.Linear(5, 3, bias=False).double()
    optimiser = optimiser_of(model)
    start = optimiser.param_groups[0]["lr"]
    for step in range(600):
        rate = optimiser.param_groups[0]["lr"] = start * min(1.0, 0.97 ** (step - 100))
        backward(model, inputs, targets, likelihood, precision=0.0 if prior_after else 10.0)
        if isinstance(optimiser, NaturalGradient):
            optimiser.observe(inputs)
        optimiser.step()
        if prior_after:
            with torch.no_grad():
                model.weight.mul_(1 - rate * 10.0 / len(inputs))
    return model.weight.detach()


def test_the_maximum_a_posteriori_is_that_of_gradient_descent():
    _, inputs, targets, likelihood = linear_problem("softmax")
    wanted = nn.Linear(5, 3, bias=False).double()
    newton = torch.optim.LBFGS(wanted.parameters(), max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    newton.step(lambda: (backward(wanted, inputs, targets, likelihood, 10.0), newton.zero_grad)[0])
    optimum = wanted.weight.detach()
    assert_close(map_found_by(lambda model: torch.optim.SGD(model.parameters(), lr=0.3)), optimum, 1e-3)
    assert_close(map_found_by(lambda model: NaturalGradient(model, lr=0.05)), optimum, 1e-3)
    beside = map_found_by(lambda model: NaturalGradient(model, lr=0.05), prior_after=True)
    assert relative_error(beside, optimum) > 0.05, "control: a prior past the preconditioner has another fixed point"


def train(model: nn.Module, optimiser: NaturalGradient, steps: range, inputs, labels) -> list[float]:
    losses = []
    for step in steps:
        batch = torch.arange(8).add(8 * step) % len(inputs)
        losses.append(backward(model, inputs[batch], labels[batch], Classification(), precision=0.1).item())
        optimiser.observe(inputs[batch])
        optimiser.step()
    return losses


@pytest.mark.parametrize("wide", [moving.WIDE, 16], ids=["matrices", "rows"])
def test_a_run_continued_at_any_step_equals_an_uninterrupted_one(wide, monkeypatch):
    monkeypatch.setattr(moving, "WIDE", wide)
    monkeypatch.setattr(moving, "KEPT", 20)
    inputs, labels = small_data(24)
    whole = small_network()
    train(whole, NaturalGradient(whole, every=3), range(8), inputs, labels)
    for stop in range(8):
        first = small_network()
        optimiser = NaturalGradient(first, every=3)
        train(first, optimiser, range(stop), inputs, labels)
        file = io.BytesIO()
        torch.save({"model": first.state_dict(), "optimiser": optimiser.state_dict()}, file)
        file.seek(0)
        kept = torch.load(file, weights_only=True)
        second = small_network(seed=1)
        second.load_state_dict(kept["model"])
        continued = NaturalGradient(second, every=3, seed=9)
        continued.load_state_dict(kept["optimiser"])
        train(second, continued, range(stop, 8), inputs, labels)
        for got, wanted in zip(second.parameters(), whole.parameters(), strict=True):
            assert torch.equal(got, wanted), f"stopped before step {stop}"


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_the_loss_of_every_layer_type_falls(layer):
    torch.manual_seed(0)
    anchors = AnchorSettings(learn_omega=True) if layer.startswith("s_") else None
    model = build_network(layer, in_channels=1, num_classes=3, alpha=1, image_size=8, anchors=anchors, group="c4")
    images, labels = small_data(48)
    before = [p.detach().clone() for p in model.parameters()]
    optimiser = NaturalGradient(model, lr=0.03)
    losses = train(model, optimiser, range(1), images.float(), labels)
    assert not any(torch.equal(old, p) for old, p in zip(before, model.parameters(), strict=True)), "all tensors move"
    losses += train(model, optimiser, range(1, 40), images.float(), labels)
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_stock_layers_take_steps():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(256, 3)
    model = nn.Sequential(*layers)
    images, labels = small_data(48, channels=2)
    losses = train(model, NaturalGradient(model, lr=0.03), range(40), images.float(), labels)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def two_steps(device: torch.device, waited: Callable[[], int] = lambda: 0) -> list[torch.Tensor]:
    network = small_network("f_fc_conv_gconv", group="c4").to(device)
    images, labels = (part.to(device) for part in small_data(8))
    optimiser = NaturalGradient(network, every=1)
    for _ in range(2):
        network.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        before = waited()
        optimiser.observe(images)
        optimiser.step()
        assert waited() == before
    return [p.detach().cpu() for p in network.parameters()]


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "never")
def test_a_device_computes_the_same_and_the_host_never_waits_for_it():
    wanted = two_steps(torch.device("cpu"))
    with Valued() as device:
        found = two_steps(THERE, lambda: device.reads.total() + device.sends)
    for got, here in zip(found, wanted, strict=True):
        assert_close(got, here, 1e-9)


@pytest.mark.parametrize(
    ("broken", "dtype"), [(torch.inf, torch.float64), (torch.nan, torch.float32), (1e8, torch.float32)]
)
def test_what_cannot_be_inverted_is_never_a_step_to_take(broken, dtype):
    """Not finite, or of rank one and so large that rounding takes the damping away."""
    _, model = moved([torch.randn(50, 40, dtype=torch.float64)], decay=0.5)
    model.to(dtype)
    average = MovingBlocks(0.5)
    fit = GGN(model, tolerance=0)
    fit.update(torch.full((50, 40), broken, dtype=dtype))
    average.add(fit.blocks(1), 50)
    assert DampedInverses(average.blocks(), 0.1).times("0.weight", model[0].weight).isnan().all()


def moved(batches: list[torch.Tensor], decay: float) -> tuple[MovingBlocks, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3)).double()
    average = MovingBlocks(decay)
    for batch in batches:
        fit = GGN(model, tolerance=0)
        fit.update(batch)
        average.add(fit.blocks(1), len(batch))
    return average, model


def test_averages_are_a_datum_s_and_decay():
    batches = list(torch.randn(3, 50, 40, dtype=torch.float64))
    average, _ = moved(batches, decay=0.6)
    got = average.blocks(7)["0.weight"].factors[1]
    weights = [0.3, 0.3, 0.4]  # the first two alike, as 1/2 is below 0.6; then 0.6 and 0.4
    wanted = sum(weight * batch.T @ batch / 50 for weight, batch in zip(weights, batches, strict=True))
    assert_close(got[0], 7 * wanted)


@pytest.mark.parametrize(("wide", "large"), [(40, damping.LARGE), (30, damping.LARGE), (30, 0)])
def test_wide_factors_are_means_over_their_last_rows(wide, large, monkeypatch):
    """One of the two factors or both, in a small weight and in one that counts as large."""
    monkeypatch.setattr(damping, "LARGE", large)
    monkeypatch.setattr(moving, "WIDE", wide)
    monkeypatch.setattr(moving, "KEPT", 24)
    batches = list(torch.randn(3, 10, 40, dtype=torch.float64))
    average, model = moved(batches, decay=0.6)
    block = average.blocks()["0.weight"]
    last = torch.cat(batches)[-24:]
    assert_close(block.factors[1][0], last.T @ last / 24)
    gradient = torch.randn(30, 40, dtype=torch.float64)
    by_rows = DampedInverses(average.blocks(), 0.1).times("0.weight", gradient)
    means = [factor[0].trace() / len(factor[0]) for factor in block.factors]
    pi = (means[0] / means[1]).sqrt()
    shifts = pi * 0.1**0.5, 0.1**0.5 / pi
    damped = [f[0] + s * torch.eye(len(f[0])).to(f) for f, s in zip(block.factors, shifts, strict=True)]
    assert_close(by_rows, torch.linalg.inv(damped[0]) @ gradient @ torch.linalg.inv(damped[1]))


def test_of_many_rows_few_stand_for_all():
    rows = torch.randn(1, 1000, 600, dtype=torch.float64)
    few = moving._few(rows, samples=100)
    assert few.shape[1] <= moving.KEPT // 2
    assert few.square().sum() / few.shape[1] == pytest.approx((rows.square().sum() / 100).item(), rel=0.02)


def test_what_no_rule_covers_is_refused():
    with pytest.raises(UnclaimedParameterError, match="no curvature rule claims .* 1.weight of PReLU"):
        NaturalGradient(nn.Sequential(nn.Linear(3, 2), nn.PReLU()))


def test_a_step_without_a_curvature_is_refused():
    model, inputs, targets, likelihood = linear_problem("gaussian")
    optimiser = NaturalGradient(model)
    backward(model, inputs, targets, likelihood)
    with pytest.raises(RuntimeError, match=r"call observe\(inputs\)"):
        optimiser.step()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("momentum", 1.0), ("damping", 0.0), ("kl_clip", 0.0), ("decay", 1.0), ("every", 0), ("share", 0.0)],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got"):
        NaturalGradient(nn.Linear(3, 2), **{name: value})
