"""Separable group convolutions: GCONV at the product of their factors, equivariance with controls, their curvature."""

from itertools import product

import pytest
import torch
from helpers import Probe, assert_close, relative_error, small_data
from test_curvature_rules import N, factors, logit_gradients, patch, weighted
from test_gconv import CLAIMS, equivariance_error
from test_layers import images
from torch import Tensor, nn

from ellarepro.curvature.factors import second_moment
from ellarepro.curvature.oracle import assert_rule_matches_oracle
from ellarepro.curvature.rule import rule_for
from ellarepro.layers.conv import Conv
from ellarepro.layers.gconv import GroupConv
from ellarepro.layers.groups import GROUPS, PointGroup
from ellarepro.layers.separable import SeparableGroupConv
from ellarepro.layers.spatial import SpatialLayer
from ellarepro.network import PATHS, build_network

PRODUCTS = ("pgconv", "sgconv", "gsconv", "dgconv")
CASES = list(product(PRODUCTS, GROUPS, (False, True), (1, 2)))
SHAPE = (6, 6)


def make(path: str, group: str, lifting=False, stride=1, channels=(2, 3), shape=SHAPE) -> SeparableGroupConv:
    """A layer from and to `channels` times the order of the group, with a bias that is not zero."""
    torch.manual_seed(0)
    order = GROUPS[group].order
    folded = channels[0] * (1 if lifting else order), channels[1] * order
    half = (shape[0] // stride, shape[1] // stride)
    layer = PATHS[path](*folded, shape, half, group=group, lifting=lifting).double()
    nn.init.normal_(list(layer.parameters())[-1])
    return layer


def data(layer: SpatialLayer, batch: int = 2) -> Tensor:
    return images(batch, layer.in_channels, *layer.in_shape)


def moved_pixel(group: PointGroup, element: int, row: int, column: int) -> tuple[int, int]:
    i, j = (torch.tensor(group.elements[element]) @ torch.tensor([row - 1, column - 1]) + 1).tolist()
    return i, j


ENTRY = {
    "pgconv": lambda f, d, c, u, v, back: f["k"][d, c][v] * (u == 0),
    "sgconv": lambda f, d, c, u, v, back: f["h"][d, c, u] * f["k"][c][back],
    "gsconv": lambda f, d, c, u, v, back: f["h"][d, c, u % f["h"].shape[2]] * f["k"][d][v],
    "dgconv": lambda f, d, c, u, v, back: f["m"][d, c] * f["g"][c, u] * f["k"][c][back],
}
"""w[d, c, u, v] from the factors; `back` is u^-1 v."""


def product_weight(path: str, layer: SeparableGroupConv) -> Tensor:
    """w[d, c, u, v], lifting w[d, c, v], entry by entry as the layer's docstring defines it."""
    group, d_size = layer.group, layer.out_channels // layer.group.order
    c_size = layer.in_channels if layer.lifting else layer.in_channels // group.order
    parts = {name.removesuffix(".weight"): p for name, p in layer.named_parameters() if name.endswith("weight")}
    weight = torch.zeros(d_size, c_size, group.order, 3, 3, dtype=torch.float64)
    for d, c, u, i, j in product(*map(range, weight.shape)):
        back = moved_pixel(group, group.inverses[u], i, j)
        weight[d, c, u, i, j] = ENTRY[path](parts, d, c, u, (i, j), back)
    if not layer.lifting:
        return weight
    return weight[:, :, 0] if path == "gsconv" else weight.sum(2)


@pytest.mark.parametrize(("path", "group", "lifting", "stride"), CASES)
@torch.no_grad()
def test_the_layer_is_gconv_at_the_product_of_its_factors(path, group, lifting, stride):
    layer = make(path, group, lifting, stride)
    whole = GroupConv(
        layer.in_channels, layer.out_channels, layer.in_shape, layer.out_shape, group=group, lifting=lifting
    )
    whole = whole.double()
    whole.weight.copy_(product_weight(path, layer))
    whole.bias.copy_(list(layer.parameters())[-1])
    x = data(layer)
    assert_close(layer(x), whole(x), 1e-12)
    if layer.group.order > 1:
        whole.weight.copy_(whole.weight.flip(-1) if lifting else whole.weight.roll(1, 2))
        assert relative_error(layer(x), whole(x)) > 0.05, "the control: the weight of other elements or pixels"


@pytest.mark.parametrize(("path", "group", "lifting", "stride"), CASES)
@torch.no_grad()
def test_equivariance_to_all_shifts_and_all_elements(path, group, lifting, stride):
    layer = make(path, group, lifting, stride, channels=(1, 2))
    assert layer.equivariant_to == CLAIMS[group]
    x = data(layer, 1)
    assert equivariance_error(layer, layer.group, x, plain=lifting) < 1e-12
    if layer.group.order > 1:
        conv = Conv(layer.in_channels, layer.out_channels, layer.in_shape, layer.out_shape).double()
        assert equivariance_error(conv, layer.group, x, plain=lifting) > 0.1, "the control: an ordinary layer"


@pytest.mark.parametrize(("path", "lifting"), [*product(("sgconv", "gsconv", "dgconv"), (False,)), ("sgconv", True)])
@torch.no_grad()
def test_filters_that_do_not_turn_break_rotations_alone(path, lifting):
    layer = make(path, "c4", lifting, channels=(1, 2))
    layer.k.moves.copy_(layer.k.moves[:1].expand_as(layer.k.moves))
    assert equivariance_error(layer, layer.group, data(layer, 1), plain=lifting, elements=[0]) < 1e-12
    assert equivariance_error(layer, layer.group, data(layer, 1), plain=lifting) > 0.1


@pytest.mark.parametrize(("path", "stride"), product(PRODUCTS, (1, 2)))
def test_gradients_against_finite_differences(path, stride):
    layer = make(path, "d4", stride=stride, channels=(1, 1), shape=(2, 2))
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (data(layer).requires_grad_(), *layer.parameters()))


def weights_by_hand(path: str, order: int, c: int, d: int, lifting: bool) -> int:
    mixed = 1 if lifting and path == "gsconv" else order
    return {
        "gconv": 9 * d * c * (1 if lifting else order),
        "pgconv": 9 * d * c,
        "sgconv": mixed * d * c + 9 * c,
        "gsconv": mixed * d * c + 9 * d,
        "dgconv": d * c + order * c + 9 * c,
    }[path]


@pytest.mark.parametrize(("path", "group"), product(("gconv", *PRODUCTS), ("c4", "d4")))
def test_weights_are_as_few_as_said(path, group):
    order = GROUPS[group].order
    network = build_network(path, in_channels=3, num_classes=10, alpha=2, group=group)
    channels = [3, *(2 * width for width in (1, 2, 2, 4, 4, 8, 8, 16))]
    for index, (c, d) in enumerate(zip(channels, channels[1:], strict=False)):
        sizes = {name: p.numel() for name, p in network.blocks[index].named_parameters()}
        assert sum(size for name, size in sizes.items() if name.endswith("weight")) == weights_by_hand(
            path, order, c, d, index == 0
        )
        assert [size for name, size in sizes.items() if name.endswith("bias")] == [d]
    if group == "c4":
        last = weights_by_hand(path, 4, 16, 32, False)
        assert last == {"gconv": 18432, "pgconv": 4608, "sgconv": 2192, "gsconv": 2336, "dgconv": 720}[path]


@pytest.mark.parametrize("path", PRODUCTS)
def test_the_factors_of_a_path_are_one_group_of_tensors(path):
    network = build_network(
        f"f_fc_conv_{path}" if path in ("sgconv", "dgconv") else path, in_channels=1, num_classes=3, alpha=1
    )
    names = {"pgconv": (), "sgconv": ("k", "h"), "gsconv": ("h", "k"), "dgconv": ("k", "g", "m")}[path]
    own = [names_ for names_ in network.factor_groups() if f".{path}." in names_[0]]
    assert own == [[f"blocks.{i}.paths.{path}.{name}.weight" for name in names] for i in range(8) if names]


@pytest.mark.parametrize(("path", "factor"), [("sgconv", 3.0), ("gsconv", 0.25), ("dgconv", 2.0)])
@torch.no_grad()
def test_scale_moves_between_factors_without_changing_the_map(path, factor):
    layer = make(path, "c4", stride=2)
    x = data(layer)
    before = layer(x)
    first, *_, last = layer.children()
    first.weight.mul_(factor)
    assert relative_error(layer(x), before) > 0.1, "the control: one factor alone"
    last.weight.div_(factor)
    assert_close(layer(x), before, 1e-12)


@pytest.mark.parametrize("path", PRODUCTS)
@torch.no_grad()
def test_the_prior_variance_of_a_product_is_that_of_many_draws(path, monkeypatch):
    monkeypatch.setattr("ellarepro.layers.spatial.VARIANCE_DRAWS", 3000)
    for lifting in (False, True):
        layer = make(path, "c4", lifting, channels=(2, 3), shape=(2, 2))
        told, x = layer.unit_variance(data(layer)).item(), data(layer)
        assert told == pytest.approx(SpatialLayer.unit_variance(layer, x).item(), rel=0.15)


@pytest.mark.parametrize(("path", "group", "lifting", "stride"), CASES)
def test_rows_diagonals_and_bias_blocks_are_exact(path, group, lifting, stride):
    layer = make(path, group, lifting, stride, channels=(2, 2), shape=(4, 4))
    reports = assert_rule_matches_oracle(layer, small_data(2, channels=layer.in_channels, side=4)[0])
    exact = {report.tensor: report.error for report in reports if report.structure == "kron"}
    last = list(layer.named_parameters())[-1][0]
    assert exact.pop(last) < 1e-10
    assert min(exact.values()) > 0.05, "the control: weights shared by positions have no exact Kronecker block"


@pytest.mark.parametrize("path", PRODUCTS)
@torch.no_grad()
def test_input_factors_of_large_maps_are_those_of_their_rows(path):
    layer = make(path, "d4", shape=(8, 8))
    features = data(layer)
    for factor in layer.children():
        rule = rule_for(factor)
        rows = rule.input_rows(features)
        assert_close(rule.input_factor(features), second_moment(rows) / rows.shape[2])
        if rows.shape[3] > 2:
            one_element = rows[:, :, : rows.shape[2] // 8]
            assert relative_error(rule.input_factor(features), second_moment(one_element) / 64) > 0.05, "one element"
        features = factor(features)


@pytest.mark.parametrize(("group", "stride"), product(("c4", "d4"), (1, 2)))
def test_kron_factors_of_mixing_and_of_depthwise_filters(group, stride):
    """`sgconv` sample by sample, position by position, element by element, from the definitions of its factors."""
    layer = make("sgconv", group, stride=stride, channels=(2, 2), shape=(4, 4))
    model, order = Probe(layer, (layer.in_channels, 4, 4)), layer.group.order
    x = small_data(2, channels=layer.in_channels, side=4)[0]
    mixing, filters, mixed_out, filtered_out = 0, [0, 0], 0, [0, 0]
    for image in x:
        hidden = layer.k(image[None])
        for i, j, r in product(range(4), range(4), range(order)):
            seen = hidden[0, :, i, j].unflatten(0, (2, order))[:, layer.group.products[r]].flatten()
            mixing = mixing + seen.outer(seen).detach()
            for c in range(2):
                around = patch(image[c * order + r][None], i - 1, j - 1, 3, 1, "circular").view(3, 3)
                turned = torch.stack(
                    [around[moved_pixel(layer.group, r, a, b)] for a, b in product(range(3), range(3))]
                )
                filters[c] = filters[c] + turned.outer(turned)
        at_output, lam = logit_gradients(model.tail, layer(image[None]))
        at_hidden, _ = logit_gradients(lambda h: model.tail(layer.h(h)), hidden)
        at_output, at_hidden = ([g.unflatten(0, (2, order)) for g in found] for found in (at_output, at_hidden))
        for r, i, j in product(range(order), *map(range, at_output[0].shape[2:])):
            mixed_out = mixed_out + weighted(at_output, lam, lambda g, at=(r, i, j): g[:, *at])
        for c, r, i, j in product(range(2), range(order), range(4), range(4)):
            filtered_out[c] = filtered_out[c] + weighted(at_hidden, lam, lambda g, at=(c, r, i, j): g[at][None])
    shared = 16 * order
    output_factor, input_factor = factors(model, x, "layer.h.weight")
    assert_close(input_factor[0], mixing / shared / N)
    assert_close(output_factor[0], mixed_out)
    output_factor, input_factor = factors(model, x, "layer.k.weight", "kron_blockwise")
    assert_close(input_factor, torch.stack(filters) / shared / N)
    assert_close(output_factor, torch.stack(filtered_out))
    output_factor, input_factor = factors(model, x, "layer.k.weight")
    assert_close(input_factor, torch.stack(filters) / shared / N / 2)
    assert_close(output_factor[0], sum(filtered_out))
    assert relative_error(input_factor, torch.stack(filters) / shared / N) > 0.4, "the control: no division by D"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": "c3"}, "group must be one of c1, c2, c4, d4; got 'c3'"),
        ({"in_channels": 6}, "in_channels must be a multiple of 4, the order of the group; got 6"),
        ({"out_channels": 6, "lifting": True}, "out_channels must be a multiple of 4, the order of the group; got 6"),
    ],
)
def test_impossible_layers_are_refused(changes, said):
    given = {"in_channels": 4, "out_channels": 4, "in_shape": (4, 4), "out_shape": (4, 4)}
    with pytest.raises(ValueError, match=said):
        PATHS["sgconv"](**(given | changes))
