"""Learned invariances: the average's curvature, and the adjoint gradient of the evidence by finite differences."""

import math
from copy import deepcopy

import pytest
import torch
from helpers import relative_error, small_data, small_network, weight_settings
from torch import nn

from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.likelihood import Classification
from ellarepro.data import Samples, Task
from ellarepro.errors import UserError
from ellarepro.evidence.adjoint import evidence_gradient
from ellarepro.evidence.marglik import Fit, fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layerwise import LayerwiseLaplace
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import FitSettings, LaplaceSettings, LilaSettings
from ellarepro.symmetry.affine import GENERATORS, Affine, Averaging

EXACT = FitSettings(tolerance=0.0)


class Smooth(nn.Module):
    """A tiny network of smooth units in float64."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1).double(), nn.Linear(3 * 64, 3).double()

    def forward(self, images):
        return self.head(self.conv(images).tanh().flatten(1))


def averaged(network: nn.Module, copies: int = 4, start: float = 0.2) -> tuple[nn.Module, Affine]:
    affine = Affine(start, copies=copies).double()
    affine.eta.requires_grad_()
    Averaging(network, affine, torch.Generator().manual_seed(0))
    return network.eval(), affine


def test_generators_are_what_they_are_called():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    image[0, 0, 4, 7] = 1.0
    turn = torch.zeros(1, 1, 6, dtype=torch.float64)
    turn[0, 0, list(GENERATORS).index("rotation")] = 1.0
    affine = Affine(math.pi / 2).double()
    turned = affine(image, turn)[0, 0]
    assert turned.sum() == pytest.approx(1.0, abs=1e-6) and turned[4, 7] < 1e-6 and turned[[1, 7], 4].sum() > 0.99
    shift = torch.zeros(1, 1, 6, dtype=torch.float64)
    shift[0, 0, 0] = 2 / 9 / (math.pi / 2)  # a pixel, as the image reaches from -1 to 1
    assert affine(image, shift)[0, 0, 4, 6] == pytest.approx(1.0)
    still = affine(image, torch.zeros(1, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(still, image, rtol=0, atol=1e-12)


def test_copies_that_are_all_the_identity_give_the_plain_curvature():
    data = small_data()
    plain = fit(Smooth(), LayerwisePrior(Smooth()), data, EXACT)
    network, affine = averaged(Smooth())
    with torch.no_grad():
        affine.eta.zero_()
    found = fit(network, LayerwisePrior(network), data, EXACT)
    deltas = torch.rand(4, dtype=torch.float64) + 0.5
    wanted = plain.curvature.log_det_ratio(deltas).item()
    assert found.curvature.log_det_ratio(deltas).item() == pytest.approx(wanted, rel=1e-9)
    with torch.no_grad():
        affine.eta.fill_(0.3)
    moved = fit(network, LayerwisePrior(network), data, EXACT)
    assert moved.curvature.log_det_ratio(deltas).item() != pytest.approx(wanted, rel=1e-3), "the control"


def test_biases_of_the_average_have_their_exact_block():
    """Their gradients are summed over copies: nothing is reduced."""
    images, _ = small_data()
    network, _ = averaged(Smooth())
    dense = exact_ggn(network, images)
    blocks = fit(network, LayerwisePrior(network), small_data(), EXACT).curvature.blocks
    sizes = [p.numel() for p in network.parameters()]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for index, (name, p) in enumerate(network.named_parameters()):
        if name.endswith("bias"):
            part = slice(starts[index], starts[index] + p.numel())
            assert relative_error(blocks[name].factors[0][0], dense[part, part]) < 1e-9


def evidence_at(network, affine, eta, data, prior, settings=EXACT, data_size=None) -> float:
    with torch.no_grad():
        affine.eta.copy_(eta)
    whole = Fit(network, prior, data, settings, data_size=data_size)
    return whole.whole().evidence(prior.log_precision.detach()).value.item()


def gradient_error(network, data, settings=EXACT, step: float = 1e-5, data_size: int | None = None) -> float:
    """Relative distance of the adjoint gradient in eta to central differences."""
    network, affine = averaged(network)
    prior = LayerwisePrior(network, 1.3)
    start = torch.tensor([0.11, -0.07, 0.3, 0.08, -0.12, 0.05], dtype=torch.float64)
    with torch.no_grad():
        affine.eta.copy_(start)
    whole = Fit(network, prior, data, settings, None, Classification(), data_size=data_size)
    (found,) = evidence_gradient(whole, whole.whole(), prior.log_precision, [affine.eta])
    wanted = torch.zeros_like(start)
    for index in range(6):
        moved = torch.zeros_like(start)
        moved[index] = step
        ends = [evidence_at(network, affine, start + s * moved, data, prior, settings, data_size) for s in (1, -1)]
        wanted[index] = (ends[0] - ends[1]) / (2 * step)
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise"])
def test_the_gradient_is_that_of_finite_differences(structure):
    assert gradient_error(Smooth(), small_data(), FitSettings(structure, tolerance=0.0), step=5e-6) < 1e-9


def test_the_gradient_of_a_part_scaled_up_is_that_of_finite_differences():
    assert gradient_error(Smooth(), small_data(), data_size=1000) < 1e-6


@pytest.mark.parametrize("layer", ["fc", "conv", "f_fc", "s_fc", "s_conv", "gconv", "sgconv", "f_fc_conv_gconv"])
def test_the_gradient_holds_for_layers_of_the_project(layer):
    assert gradient_error(small_network(layer, smooth=True), small_data(4)) < 1e-6


def run(layer: str = "f_fc", seed: int = 3, smooth: bool = True):
    pixels, labels = small_data(24)
    data = Samples(pixels.float(), labels)
    task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), False, ("a", "b", "c"))
    prior = LayerwisePrior(small_network(layer, seed, smooth=smooth).float())
    weights = weight_settings(epochs=3, batch_size=8, kind="Adam", lr=0.003)
    settings = LilaSettings(burn_in=1, frequency=1, steps=2, copies=3, fit=FitSettings(passes=1))
    return trainer_of(prior, task, weights, ("lila", settings), torch.Generator().manual_seed(seed))


def test_a_run_learns_ranges_and_continues_to_the_same_bits():
    whole, states = run(), []
    whole.pause = lambda state: states.append(deepcopy(state()))
    whole.run()
    ranges = whole.history["hyperparameters"]
    assert set(ranges) == {f"range_{name}" for name in GENERATORS}
    assert all(len(values) == 2 and values[0] != pytest.approx(0.1) for values in ranges.values())
    assert "invariance.eta" in whole.model.state_dict(), "kept with the weights"
    for state in states[1::4]:
        continued = run(seed=9)
        continued.load_state_dict(state)
        continued.run()
        assert continued.history == whole.history


@pytest.mark.parametrize("layer", ["conv", "f_fc_conv", "conv_gconv"])
def test_networks_whose_phase_jumps_are_refused(layer):
    with pytest.raises(UserError, match="keeps the largest of four phases.*take smooth=true"):
        run(layer, smooth=False)


def test_networks_whose_units_have_a_kink_are_refused():
    with pytest.raises(UserError, match="head.1 has a kink at zero.*take smooth=true"):
        run("f_fc", smooth=False)


@pytest.mark.parametrize("layer", ["fc", "conv", "f_fc_conv", "s_fc_s_conv", "conv_gconv"])
def test_a_smooth_network_learns_ranges(layer):
    found = run(layer)
    found.run()
    assert all(values[0] != pytest.approx(0.1) for values in found.history["hyperparameters"].values())


def missed(network: nn.Module, steps: int = 8, width: float = 0.3) -> float:
    """What the integrated gradient in the rotation misses of the evidence's change, as a share of it."""
    network, affine = averaged(network)
    prior, data, index = LayerwisePrior(network), small_data(8), list(GENERATORS).index("rotation")
    values, slopes = [], []
    for step in range(steps + 1):
        with torch.no_grad():
            affine.eta.zero_()[index] = 0.3 + width * step / steps
        whole = Fit(network, prior, data, EXACT, None, Classification())
        marglik = whole.whole()
        values.append(marglik.evidence(prior.log_precision.detach()).value.item())
        slopes.append(evidence_gradient(whole, marglik, prior.log_precision, [affine.eta])[0][index].item())
    found = torch.cumulative_trapezoid(torch.tensor(slopes), dx=width / steps)
    wanted = torch.tensor(values[1:]) - values[0]
    return ((found - wanted).norm() / wanted.norm()).item()


def test_the_integrated_gradient_is_the_change_of_the_evidence_and_the_refused_networks_miss_of_it():
    """Of smooth networks the rest falls with the steps, to 0.01 at 72; of the others it stays."""
    assert missed(small_network("f_fc", smooth=True)) < 0.1
    assert missed(small_network("conv", smooth=True), steps=24) < 0.1
    assert missed(small_network("f_fc")) > 0.5, "the control: kinks"
    assert missed(small_network("conv")) > 0.5, "the control: jumping phases"


def test_an_invariance_of_a_network_of_ones_own():
    """Also in an `nn.Sequential`, which calls all its modules; saved, copied and refused where it has no gradient."""
    images, labels = small_data(24)
    data = images.float(), labels
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    rotations = Affine(0.3, ("rotation",), copies=3)
    plain = network(data[0])
    laplace = LayerwiseLaplace(network, invariance=rotations)
    assert relative_error(network(data[0]), plain) > 1e-2
    laplace.train(data, epochs=4, schedule=LaplaceSettings(burn_in=1, frequency=1, steps=2))
    found = rotations.ranges()
    assert found["rotation"] != pytest.approx(0.3) and found["shear"] == 0.0
    assert laplace.prior.names == ["1.weight", "1.bias", "3.weight", "3.bias"]
    copied = deepcopy(laplace)
    assert copied.log_marginal_likelihood() == laplace.log_marginal_likelihood()
    torch.testing.assert_close(copied.predict(data[0]).mean, laplace.predict(data[0]).mean)
    with torch.no_grad():
        rotations.eta.mul_(2)
    with pytest.raises(ValueError, match="invariance.eta changed after the last fit"):
        laplace.predict(data[0])
    with pytest.raises(ValueError, match="has an invariance already"):
        LayerwiseLaplace(network, invariance=Affine())
    with pytest.raises(ValueError, match="structure must be kron or kron_blockwise for an invariance"):
        LayerwiseLaplace(Smooth(), settings=FitSettings("diag"), invariance=Affine())
