"""Anchors: the sparse layers beside the layers that they stand for, their limits, their curvature, their prior."""

from itertools import pairwise, product

import pytest
import torch
from helpers import Probe, assert_close, perturb_biases, relative_error, small_data
from torch import nn

from ellarepro.config.compose import compose
from ellarepro.config.resolve import check_combination
from ellarepro.curvature import EllaGGN
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.oracle import assert_rule_matches_oracle
from ellarepro.data import Samples
from ellarepro.errors import UserError
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.layers import anchors
from ellarepro.layers.anchors import grid_positions
from ellarepro.layers.conv import Conv
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.paths import PathMean
from ellarepro.layers.sparse import SparseConv, SparseDense
from ellarepro.network import PATHS, build_network, priors_of
from ellarepro.settings.parts import AnchorSettings

SPARSE = {"s_fc": SparseDense, "s_conv": SparseConv}
STANDS_FOR = {"s_fc": FactoredDense, "s_conv": Conv}
FULL = AnchorSettings(basis="posterior_mean", noise=0.0, share=1.0, per_filter=9)
LEARNED = AnchorSettings(learn_omega=True, omega=0.7)


def images(batch: int = 3, channels: int = 2, side: int = 4) -> torch.Tensor:
    return small_data(batch, channels=channels, side=side)[0]


def make(path: str, settings: AnchorSettings, stride: int = 1, side: int = 4) -> nn.Module:
    torch.manual_seed(0)
    shapes = (side, side), (side // stride, side // stride)
    return perturb_biases(SPARSE[path](2, 3, *shapes, anchors=settings)).double()


def filters_by_loops(leaf, basis: str) -> torch.Tensor:
    """theta(d, c, x) from the values at the anchors, one entry at a time, `(D, C, *grid)`."""
    omega, noise = leaf.omega.item(), leaf.settings.noise
    cells = list(product(*map(range, leaf.grid)))

    def kernel(a, b):
        return torch.exp(torch.tensor(-(omega**2) * ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2), dtype=torch.float64))

    places = [tuple(z.tolist()) for z in leaf.anchors]
    theta = torch.zeros(*leaf.weight.shape[:2], len(cells), dtype=torch.float64)
    for (d, c), (index, cell) in product(product(*map(range, theta.shape[:2])), enumerate(cells)):
        values = leaf.weight[d, c].detach()
        seen = torch.stack([kernel(z, cell) for z in places])
        if basis == "posterior_mean":
            gram = torch.stack([torch.stack([kernel(a, b) for b in places]) for a in places])
            values = torch.linalg.inv(gram + noise * torch.eye(len(places))) @ values
        theta[d, c, index] = seen @ values
    return theta.unflatten(2, leaf.grid)


def twin(path: str, layer: nn.Module, filters=filters_by_loops) -> nn.Module:
    """The layer that `layer` stands for, with the weights that its anchors make."""
    other = STANDS_FOR[path](2, 3, layer.in_shape, layer.out_shape).double()
    with torch.no_grad():
        if path == "s_conv":
            other.weight.copy_(filters(layer.u, layer.u.settings.basis))
            other.bias.copy_(layer.u.bias)
        else:
            other.theta2.weight.copy_(filters(layer.u2, layer.u2.settings.basis))
            other.theta1.weight.copy_(filters(layer.u1, layer.u1.settings.basis))
            other.theta1.bias.copy_(layer.u1.bias)
    return other


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("basis", ["rbf", "posterior_mean"])
@pytest.mark.parametrize("path", SPARSE)
@torch.no_grad()
def test_a_sparse_layer_is_its_equation(path, basis, stride):
    layer, x = make(path, AnchorSettings(basis=basis, omega=0.8), stride), images()
    assert_close(layer(x), twin(path, layer)(x), 1e-5 if basis == "posterior_mean" else 1e-6)
    changed = make(path, AnchorSettings(basis=basis, omega=0.4), stride)
    assert relative_error(changed(x), twin(path, layer)(x)) > 0.01, "the control: another lengthscale"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("path", SPARSE)
@torch.no_grad()
def test_with_an_anchor_on_every_position_it_is_the_layer_that_it_stands_for(path, stride):
    def values(leaf, basis):
        return leaf.weight.unflatten(2, leaf.grid)

    layer, x = make(path, FULL, stride), images()
    assert_close(layer(x), twin(path, layer, values)(x), 1e-12)
    for other in ({"basis": "rbf"}, {"noise": 0.1}):
        changed = make(path, AnchorSettings(**{**vars(FULL), **other}), stride)
        assert relative_error(changed(x), twin(path, changed, values)(x)) > 0.01, f"the control: {other}"


def test_anchors_are_drawn_once_for_the_layer_and_kept_with_it():
    torch.manual_seed(0)
    layer, other = SparseDense(1, 1, (8, 8), (4, 4)), SparseDense(1, 1, (8, 8), (4, 4))
    assert layer.u2.anchors.shape == (32, 2) and layer.u1.anchors.shape == (8, 2)
    assert len({tuple(z) for z in layer.u2.anchors.tolist()}) == 32
    assert not torch.equal(layer.u2.anchors, other.u2.anchors)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(layer(x), other(x)), "anchors and basis come with the state"
    torch.manual_seed(0)
    again = SparseDense(1, 1, (8, 8), (4, 4))
    assert torch.equal(again.u2.anchors, layer.u2.anchors)
    torch.manual_seed(0)
    fewer = SparseDense(1, 1, (8, 8), (4, 4), anchors=AnchorSettings(share=0.1))
    assert torch.isin(
        fewer.u2.anchors @ torch.tensor([8.0, 1.0]), grid_positions((8, 8)) @ torch.tensor([8.0, 1.0])
    ).all()


@pytest.mark.parametrize(("settings", "calls"), [(AnchorSettings(), 0), (LEARNED, 1)])
def test_the_basis_is_computed_once_where_it_is_fixed_and_once_a_step_where_it_is_learned(settings, calls, monkeypatch):
    layer, count = make("s_conv", settings), []
    rbf = anchors.rbf
    monkeypatch.setitem(anchors.BASES, "rbf", lambda *given: (count.append(1), rbf(*given))[1])
    for step in (1, 2, 3):
        layer(images()).sum().backward()
        assert len(count) == step * calls


@pytest.mark.parametrize("basis", ["rbf", "posterior_mean"])
@torch.no_grad()
def test_towards_omega_zero_weights_are_constant(basis):
    """Section 3.2: then S-FC sees the mean of the input alone, and says the same everywhere."""
    settings, x = AnchorSettings(basis=basis, learn_omega=True), images()
    layer, shuffled = make("s_fc", settings), images().flatten(2)[:, :, torch.randperm(16)].view(3, 2, 4, 4)
    assert relative_error(layer(shuffled), layer(x)) > 0.1, "the control: omega = 1"
    layer.u2.omega.zero_()
    layer.u1.omega.zero_()
    assert_close(layer(shuffled), layer(x), 1e-10)
    assert_close(layer(x), layer(x).mean((2, 3), keepdim=True).expand(3, 3, 4, 4), 1e-10)


def drawn_from_prior(path: str, strict: str, delta: float, names: tuple[str, ...]) -> float:
    """Error of translation equivariance of a mean of two paths, `names` of the first drawn from N(0, 1/delta)."""
    options = {"anchors": AnchorSettings(learn_omega=True)} if path == "s_fc" else {}
    torch.manual_seed(0)
    paths = {name: PATHS[name](2, 3, (4, 4), (4, 4), **options) for name in (path, strict)}
    generator = torch.Generator().manual_seed(1)
    drawn = 0
    with torch.no_grad():
        for name, p in paths[path].named_parameters():
            if name.endswith(names):
                p.copy_(torch.randn(p.shape, generator=generator) / delta**0.5)
                drawn += 1
    assert drawn
    layer, x = PathMean(paths).double(), images()
    with torch.no_grad():
        return relative_error(layer(x.roll((1, 2), (2, 3))), layer(x).roll((1, 2), (2, 3)))


@pytest.mark.parametrize(
    ("path", "strict", "names"),
    [
        ("fc", "conv", ("weight", "bias")),
        ("f_fc", "conv", ("weight",)),
        ("s_fc", "s_conv", ("weight",)),
        ("s_fc", "s_conv", ("omega",)),
    ],
    ids=["theta, FC", "theta, F-FC", "u", "omega"],
)
def test_the_prior_is_strictly_equivariant_in_the_limit_of_infinite_precision(path, strict, names):
    """Eq. 8, for priors on theta, u and omega: draws from the prior at growing precision."""
    errors = [drawn_from_prior(path, strict, delta, names) for delta in (1.0, 1e2, 1e4, 1e8)]
    assert errors[0] > 0.05, "the control: at a finite precision it is relaxed"
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-3


def blocks(model, x, structure="kron"):
    ggn = GGN(model, structure, tolerance=0)
    ggn.update(x)
    return ggn.blocks(7)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [4, 8])
def test_factors_are_projected_onto_anchors(stride, side):
    """Section 5.2: those of the layer that it stands for, which `test_curvature_rules.py` checks, between Psi."""
    x = images(side=side)
    for path in SPARSE:
        model = Probe(make(path, AnchorSettings(omega=0.8), stride, side), (2, side, side))
        other = Probe(twin(path, model.layer), (2, side, side))
        other.layer, other.readout = twin(path, model.layer), model.readout
        ours, theirs = blocks(model, x), blocks(other, x)
        if path == "s_conv":
            psi = torch.block_diag(*[model.layer.u.psi] * 2)
            output, source = theirs["layer.weight"].factors
            assert_close(ours["layer.u.weight"].factors[0], output, 1e-5)
            assert_close(ours["layer.u.weight"].factors[1], psi @ source @ psi.T, 1e-5)
            continue
        psi2, psi1 = model.layer.u2.psi, model.layer.u1.psi
        output, source = theirs["layer.theta2.weight"].factors
        assert_close(ours["layer.u2.weight"].factors[0], output, 1e-5)
        assert_close(ours["layer.u2.weight"].factors[1], psi2 @ source @ psi2.T, 1e-5)
        hidden, output = theirs["layer.theta1.weight"].factors
        assert_close(ours["layer.u1.weight"].factors[0], hidden, 1e-5)
        assert_close(ours["layer.u1.weight"].factors[1], psi1 @ output @ psi1.T, 1e-5)
        assert relative_error(ours["layer.u2.weight"].factors[1], source[:, : len(psi2), : len(psi2)]) > 0.1


@pytest.mark.parametrize("basis", ["rbf", "posterior_mean"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("path", SPARSE)
def test_omega_and_bias_blocks_and_the_diagonal_are_exact(path, stride, basis):
    settings = AnchorSettings(basis=basis, learn_omega=True, omega=0.7)
    reports = assert_rule_matches_oracle(make(path, settings, stride), images())
    omegas = {report.tensor for report in reports if report.tensor.endswith("omega")}
    assert len(omegas) == (2 if path == "s_fc" else 1)


@pytest.mark.parametrize("layer", ["s_fc", "s_conv", "s_fc_s_conv"])
def test_whole_networks_by_both_engines(layer):
    torch.manual_seed(0)
    options = {"in_channels": 1, "num_classes": 5, "alpha": 1, "image_size": 8, "anchors": LEARNED}
    model = perturb_biases(build_network(layer, **options)).double()
    x, y = small_data(6, classes=5)
    native = EllaGGN(model).kron(x, y, N=6)[1].to_matrix()
    assert_close(EllaGGN(model, engine="asdl").kron(x, y, N=6)[1].to_matrix(), native, 1e-9)


def test_prior_omega_learns_every_precision_but_those_of_anchor_values():
    torch.manual_seed(0)
    options = {"in_channels": 1, "num_classes": 3, "alpha": 1, "image_size": 8, "anchors": LEARNED}
    model = build_network("s_fc_s_conv", **options)
    prior = LayerwisePrior(model, 2.0, fixed=model.anchor_values())
    images_, labels = small_data(12)
    marglik = fit(model, prior, Samples(images_.float(), labels))
    optimiser = torch.optim.Adam([prior.log_precision], lr=0.1)
    before = marglik.evidence(prior.log_precision).value.item()
    marglik.ascend(prior.log_precision, optimiser, 5)
    assert marglik.evidence(prior.log_precision).value.item() > before
    after = prior.precisions()
    still = {name for name, value in after.items() if value == 2.0 or abs(value - 2) < 1e-12}
    assert still == model.anchor_values() == {n for n in after if n.endswith((".u.weight", ".u1.weight", ".u2.weight"))}
    assert sum(name.endswith("omega") for name in set(after) - still) == 8 * 3
    with pytest.raises(ValueError, match=r"not trainable: \['blocks.9'\]"):
        LayerwisePrior(model, fixed=["blocks.9"])


PAIRS = [("conv", "omega"), ("conv", "u"), ("f_fc_conv", "omega"), ("fc", "u"), ("s_conv", "theta")]


@pytest.mark.parametrize(("layer", "prior"), PAIRS)
def test_pairs_without_a_meaning_are_refused_with_the_reason(layer, prior):
    config = compose([f"layer={layer}", f"prior={prior}"])
    with pytest.raises(UserError, match=rf"prior={prior} is not possible with layer={layer}: its|it has no") as error:
        check_combination(config)
    assert f"layer={layer} takes prior={' or '.join(priors_of(layer))}" in str(error.value)
    check_combination(compose([f"layer={layer}", f"prior={priors_of(layer)[0]}"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"basis": "spline"}, "basis must be one of rbf, posterior_mean; got 'spline'"),
        ({"omega": 0.0}, "omega must be above 0 and at most 1000; got 0.0"),
        ({"noise": -1.0}, "noise must be at least 0; got -1.0"),
        ({"noise": 0.0, "learn_omega": True, "basis": "posterior_mean"}, "noise must be positive .* got 0"),
        ({"share": 0.0}, "share must be above 0 and at most 1; got 0.0"),
        ({"per_filter": 10}, "per_filter must be at least 1 and at most 9; got 10"),
    ],
)
def test_impossible_anchors_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        AnchorSettings(**changes)


def test_a_posterior_mean_that_rounding_decides_is_refused():
    for omega in (0.1, 1.0):
        SparseDense(2, 3, (8, 8), (8, 8), anchors=AnchorSettings(basis="posterior_mean", omega=omega, noise=0))
    with pytest.raises(ValueError, match=r"anchors.omega=0.01 is too small for anchors.noise=0 on a grid of 8 x 8"):
        SparseDense(2, 3, (8, 8), (8, 8), anchors=AnchorSettings(basis="posterior_mean", omega=0.01, noise=0))
    SparseDense(2, 3, (8, 8), (8, 8), anchors=AnchorSettings(basis="posterior_mean", omega=0.01))
