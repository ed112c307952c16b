"""The kernel form of the evidence beside the dense GGN of automatic Jacobians, for every layer type; its bounds."""

import pytest
import torch
from helpers import Probe, assert_close, parameter_slices, perturb_biases, relative_error, small_data, small_network
from torch import nn

from ellarepro.curvature.exact import FullCurvature, exact_ggn, ggn_rows, jacobians
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.kernel import KernelAccumulator, KernelCurvature
from ellarepro.curvature.likelihood import Regression
from ellarepro.curvature.memory import FactorsTooLarge
from ellarepro.curvature.rows import DenseRows, FactoredRows
from ellarepro.evidence.bracket import bracket_forecast, chances, log_det_bounds
from ellarepro.layers.conv import Conv
from ellarepro.layers.dense import Dense
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.gconv import GroupConv
from ellarepro.layers.separable import DepthwiseGroupConv, GroupSpaceConv
from ellarepro.layers.sparse import SparseConv, SparseDense
from ellarepro.layerwise import LayerwiseLaplace
from ellarepro.settings.parts import AnchorSettings, BracketSettings, FitSettings

ANCHORS = AnchorSettings(learn_omega=True)
MAPS = (2, 3, (4, 4), (2, 2))
LAYERS = {
    "fc": lambda: Dense(*MAPS),
    "conv": lambda: Conv(*MAPS),
    "conv, zeros": lambda: Conv(2, 3, (4, 4), (4, 4), padding_mode="zeros"),
    "f_fc": lambda: FactoredDense(*MAPS),
    "s_fc": lambda: SparseDense(*MAPS, anchors=ANCHORS),
    "s_conv": lambda: SparseConv(*MAPS, anchors=ANCHORS),
    "gconv, lifting": lambda: GroupConv(2, 4, (4, 4), (4, 4), lifting=True),
    "dgconv, lifting": lambda: DepthwiseGroupConv(2, 4, (4, 4), (2, 2), lifting=True),
    "gsconv": lambda: GroupSpaceConv(2, 4, (4, 4), (4, 4), group="c2"),
    "stock": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2, stride=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Flatten(2),
        nn.Linear(4, 3),
        nn.LayerNorm(3),
    ),
    "embedding": lambda: nn.Sequential(nn.Flatten(), Words(), nn.Embedding(5, 3)),
}


class Words(nn.Module):
    """Real numbers as indices of an embedding of five words."""

    def forward(self, x):
        return (x.abs() * 2).long().clamp_max(4)


def probe(layer):
    torch.manual_seed(0)
    return Probe(LAYERS[layer](), (2, 4, 4))


def precisions_of(model):
    return torch.linspace(-2, 3, len(list(model.parameters())), dtype=torch.float64).exp()


def gathered(model, *batches, **options):
    accumulator = KernelAccumulator(model, **options)
    for batch in batches:
        accumulator.update(batch)
    return accumulator


def dense(model, x, likelihood=None):
    return FullCurvature(exact_ggn(model, x, likelihood), [p.numel() for p in model.parameters()])


def value_and_gradient(curvature, deltas):
    eta = deltas.log().requires_grad_()
    value = curvature.log_det_ratio(eta.exp())
    return value.detach(), torch.autograd.grad(value, eta)[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_all_rows_give_the_dense_log_determinant_and_effective_numbers(layer):
    model, x = probe(layer), small_data(4, channels=2, side=4)[0]
    deltas, full = precisions_of(model), dense(model, x)
    value, slope = value_and_gradient(gathered(model, x).curvature(4), deltas)
    assert_close(value, full.log_det_ratio(deltas), 1e-9)
    posterior = torch.linalg.inv(full.matrix + full.each_entry(deltas).diag())
    own = [(posterior @ full.matrix).diagonal()[place].sum() for place in parameter_slices(model).values()]
    assert_close(-slope, torch.stack(own), 1e-7)
    in_two = gathered(model, x[:1], x[1:]).curvature(4).log_det_ratio(deltas)
    assert_close(in_two, value, 1e-10)
    without_one = gathered(model, x[1:]).curvature(3).log_det_ratio(deltas)
    assert relative_error(without_one, value) > 1e-3, "the control: a datum left out"


@pytest.mark.parametrize("layer", ["fc_conv", "f_fc_conv", "s_fc_s_conv"])
def test_in_whole_networks_rows_are_those_of_automatic_gradients(layer):
    model, (x, _) = small_network(layer, anchors=ANCHORS), small_data(3)
    deltas = precisions_of(model)
    rows = ggn_rows(model, x).split([p.numel() for p in model.parameters()], dim=1)
    kernel = sum((part @ part.mT / delta for part, delta in zip(rows, deltas, strict=True)), torch.eye(6))
    accumulator = gathered(model, x)
    assert {type(own) for own in accumulator.kept[0].values()} == {DenseRows, FactoredRows}
    assert_close(accumulator.curvature(3).log_det_ratio(deltas), torch.linalg.slogdet(kernel).logabsdet, 1e-9)


def test_gradients_are_finite_differences():
    model, (x, _) = small_network("f_fc_conv"), small_data(3)
    curvature, deltas = gathered(model, x).curvature(3), precisions_of(model)
    _, slope = value_and_gradient(curvature, deltas)
    for index in range(len(deltas)):
        step = torch.zeros_like(deltas)
        step[index] = 1e-5
        sides = [curvature.log_det_ratio((deltas.log() + sign * step).exp()) for sign in (1, -1)]
        assert abs((sides[0] - sides[1]) / 2e-5 - slope[index]) < 1e-7 * slope.abs().max()


def test_a_regression_has_the_kernel_of_its_noise():
    model, x = nn.Linear(5, 2).double(), torch.randn(6, 5, dtype=torch.float64)
    deltas = precisions_of(model)
    found = gathered(model, x, likelihood=Regression()).curvature(6)
    assert_close(found.log_det_ratio(deltas), dense(model, x, Regression()).log_det_ratio(deltas), 1e-10)


def test_fewer_data_are_scaled_up_and_batches_are_summed():
    model, x = probe("f_fc"), small_data(4, channels=2, side=4)[0]
    deltas, full = precisions_of(model), dense(model, x)
    scaled = FullCurvature(2.5 * full.matrix, full.sizes.tolist()).log_det_ratio(deltas)
    assert_close(gathered(model, x).curvature(10).log_det_ratio(deltas), scaled, 1e-9)
    parts = sum(dense(model, part).log_det_ratio(deltas) for part in (x[:3], x[3:]))
    apart = gathered(model, x[:3], x[3:], batch_size=3)
    assert_close(apart.curvature(4).log_det_ratio(deltas), parts, 1e-9)
    assert_close(apart.curvature(10).log_det_ratio(deltas), 2.5 * parts, 1e-9)
    assert relative_error(parts, full.log_det_ratio(deltas)) > 1e-3, "the control: they are not the same"


def test_a_tolerance_leaves_out_rows_and_hardly_changes_the_whole():
    model, (x, _) = small_network("conv", num_classes=6), small_data(6, classes=6)
    with torch.no_grad():
        model.head[-1].bias += torch.tensor([12.0, 11, 0, 0, 0, 0])
    deltas = precisions_of(model)
    exact, some = (gathered(model, x, tolerance=tolerance) for tolerance in (0.0, 1e-3))
    assert some.class_passes < exact.class_passes
    assert_close(some.curvature(6).log_det_ratio(deltas), exact.curvature(6).log_det_ratio(deltas), 1e-3)


def test_samples_that_need_more_passes_make_a_chunk_of_their_own():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 6).double(), torch.randn(5, 3, dtype=torch.float64)
    x[0], x[1:] = 0.1 * x[0], 300 * x[1:]
    deltas, accumulator = precisions_of(model), gathered(model, x, tolerance=1e-9)
    assert len(accumulator.kept) == 2 and sum(len(chunk["weight"]) for chunk in accumulator.kept) < 25
    assert_close(accumulator.curvature(5).log_det_ratio(deltas), dense(model, x).log_det_ratio(deltas), 1e-6)


def test_sampled_rows_are_one_a_datum_and_unbiased_for_the_curvature():
    model, (x, _) = small_network("conv"), small_data(3)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.stack([part.square().sum() for part in ggn_rows(model, x).split(parameter_sizes(model), dim=1)])
    draws = [gathered(model, x, passes=1, generator=generator).curvature(3).products[0] for _ in range(200)]
    assert draws[0].shape[1:] == (3, 3)
    traces = torch.stack([draw.diagonal(dim1=1, dim2=2).sum(1) for draw in draws])
    assert relative_error(traces.mean(0), wanted) < 0.1
    assert relative_error(traces[0], wanted) > 0.1, "the control: a single draw"


def parameter_sizes(model):
    return [p.numel() for p in model.parameters()]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_fit_continues_from_its_state(batch_size):
    model, (x, _) = small_network("f_fc_conv"), small_data(4)
    first, whole = gathered(model, x[:2], batch_size=batch_size), gathered(model, x[:2], x[2:], batch_size=batch_size)
    again = KernelAccumulator(model, batch_size)
    again.load_state_dict(first.state_dict(), torch.device("cpu"))
    again.update(x[2:])
    values = [found.curvature(4).log_det_ratio(precisions_of(model)) for found in (again, whole)]
    assert torch.equal(*values)


@pytest.mark.parametrize("layer", ["fc_conv", "f_fc_conv", "s_fc_s_conv"])
def test_the_forecast_is_what_is_kept(layer):
    model, (x, _) = small_network(layer, anchors=ANCHORS).float(), small_data(4)
    together = gathered(model, x.float())
    kept = sum(rows.nbytes for rows in together.kept[0].values())
    assert together.forecast(x.float()).total == kept + together.curvature(4).products[0].nbytes
    apart = gathered(model, x[:2].float(), x[2:].float(), batch_size=2)
    products = sum(products.nbytes for products in apart.products)
    assert apart.forecast(x.float()).total - kept / 2 == products


def test_bounds_that_do_not_fit_are_refused_with_what_to_change():
    model, (x, _) = small_network("conv").float(), small_data(30)
    small, large = (bracket_forecast(model, x.float(), BracketSettings(rows)) for rows in (6, 1000))
    assert 5 * small.peak < large.peak and large.peak == bracket_forecast(model, x.float(), BracketSettings(60)).peak
    with pytest.raises(FactorsTooLarge, match=r"lower objective\.bracket"):
        large.check(torch.device("cpu"), free=small.peak)


def accumulator_fit(model, x, structure):
    accumulator = accumulator_of(model, FitSettings(structure, tolerance=0))
    accumulator.update(x)
    return accumulator.curvature(len(x))


def test_a_library_user_learns_precisions_from_the_kernel():
    torch.manual_seed(0)
    model = perturb_biases(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    found = {}
    for structure in ("full", "kernel", "kernel_batches"):
        settings = FitSettings(structure, tolerance=0, batch_size=10)
        laplace = LayerwiseLaplace(model, settings=settings).fit((x, y)).learn(steps=20)
        found[structure] = laplace.log_marginal_likelihood()
        effective = laplace.effective_numbers()
        assert all(0 < effective[name] < p.numel() for name, p in model.named_parameters())
    assert found["kernel"] == pytest.approx(found["full"], rel=1e-9)
    assert found["kernel_batches"] < found["kernel"], "batches bound the evidence from below"
    with pytest.raises(ValueError, match="take kron, kron_blockwise, diag or full"):
        laplace.predict(x)


def test_rows_that_are_not_finite_are_refused():
    with pytest.raises(ArithmeticError, match="not finite"):
        KernelCurvature([torch.full((1, 2, 2), torch.nan, dtype=torch.float64)]).log_det_ratio(torch.ones(1))


def random_network(generator):
    """A small network of random depth, width and scale in float64, its data and precisions."""

    def number(least, most):
        return int(torch.randint(least, most + 1, (), generator=generator))

    widths = [number(2, 4), *(number(2, 5) for _ in range(number(0, 2))), number(2, 4)]
    layers = [module for pair in zip(widths, widths[1:], strict=False) for module in (nn.Linear(*pair), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 1.5)
    x = torch.randn(number(3, 9), widths[0], generator=generator, dtype=torch.float64)
    deltas = (2 * torch.randn(len(parameter_sizes(model)), generator=generator, dtype=torch.float64) + 1).exp()
    return model, x, deltas


def single_outputs(model, x, deltas):
    """What takes p (1 - p) of each class by itself: sum over classes of log|I + K_k|, K_k of one row a datum."""
    jacobian, logits = jacobians(model, x)
    p = logits.softmax(1)
    scaled = jacobian / dense(model, x).each_entry(deltas).sqrt() * (p * (1 - p)).sqrt()[:, :, None]
    kernels = torch.einsum("nkp,mkp->knm", scaled, scaled)
    return torch.linalg.slogdet(torch.eye(len(x), dtype=torch.float64) + kernels).logabsdet.sum().item()


def test_both_bounds_hold_in_the_mean_on_random_networks_and_that_of_single_outputs_does_not():
    generator = torch.Generator().manual_seed(0)
    gaps, broken, single = [], 0, 0
    for index in range(200):
        model, x, deltas = random_network(generator)
        exact = dense(model, x).log_det_ratio(deltas).item()
        settings = BracketSettings(rows=2 + index % 4, fresh=2 + index % 3)
        draws = [log_det_bounds(model, deltas, x, settings, generator) for _ in range(20)]
        below, above = (torch.tensor([getattr(one, name) for one in draws]) for name in ("lower", "upper"))
        slack = 5 / len(draws) ** 0.5 * torch.stack([below.std(), above.std()]) + 1e-6
        broken += int(below.mean() > exact + slack[0]) + int(above.mean() < exact - slack[1])
        gaps.append(((exact - below.mean()) / max(exact, 1e-9), (above.mean() - exact) / max(exact, 1e-9)))
        single += single_outputs(model, x, deltas) < exact * (1 - 1e-9)
    assert not broken
    assert (torch.tensor(gaps).median(0).values > 0.01).all(), "mostly they are bounds and not the number itself"
    assert single > 3, "the control: this form is no bound"


def test_two_opposite_outputs_are_more_than_their_single_ones():
    class Opposite(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False).double()
            self.layer.weight.data.zero_()

        def forward(self, x):
            found = self.layer(x)
            return torch.cat([found, -found], dim=1)

    model, x, deltas = Opposite(), torch.full((1, 1), 0.3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    exact = dense(model, x).log_det_ratio(deltas).item()
    assert exact == pytest.approx(0.0862, abs=1e-4) and single_outputs(model, x, deltas) < 0.6 * exact
    assert log_det_bounds(model, deltas, x, BracketSettings(), torch.Generator()).upper == pytest.approx(exact)


def test_all_rows_are_the_exact_log_determinant_whatever_their_number():
    model, (x, _) = small_network("f_fc_conv"), small_data(5)
    deltas, generator = precisions_of(model), torch.Generator().manual_seed(0)
    exact = gathered(model, x).curvature(5).log_det_ratio(deltas).item()
    for rows in (10, 5000):
        found = log_det_bounds(model, deltas, x, BracketSettings(rows), generator)
        assert found.lower == pytest.approx(exact, rel=1e-10) and found.upper == pytest.approx(exact, rel=1e-10)
        assert found.errors == (0, 0)


def test_bounds_say_how_far_off_a_draw_may_be():
    model, (x, _) = small_network("conv"), small_data(40)
    deltas, generator = precisions_of(model), torch.Generator().manual_seed(0)
    exact = gathered(model, x).curvature(40).log_det_ratio(deltas).item()
    draws = [log_det_bounds(model, deltas, x, BracketSettings(30, 15), generator) for _ in range(60)]
    for which, name in enumerate(("lower", "upper")):
        found = torch.tensor([getattr(draw, name) for draw in draws])
        said = torch.tensor([draw.errors[which] for draw in draws]).square().mean().sqrt()
        assert 0.6 < found.std() / said < 1.5
        assert (found.mean() - exact) * (-1, 1)[which] > 0


def test_chances_are_in_proportion_and_add_up_to_the_rows():
    sizes = torch.tensor([8.0, 1, 1, 0, 2], dtype=torch.float64)
    assert chances(sizes, 2).tolist() == [1, 0.25, 0.25, 0, 0.5]
    assert chances(sizes, 4).tolist() == chances(sizes, 9).tolist() == [1, 1, 1, 0, 1]
    with pytest.raises(ArithmeticError, match="not finite"):
        chances(sizes / 0, 2)
