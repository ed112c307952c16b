"""Group convolution: its definition by loops, exact equivariance with controls, and its curvature."""

from itertools import permutations, product

import pytest
import torch
from helpers import Probe, assert_close, relative_error, small_data
from test_curvature_exact import kron_and_exact
from test_curvature_rules import N, factors, logit_gradients, patch, weighted
from test_layers import images, largest_of_four
from torch import nn

from ellarepro.curvature.factors import second_moment
from ellarepro.curvature.oracle import assert_rule_matches_oracle
from ellarepro.curvature.rule import rule_for
from ellarepro.layers.conv import Conv
from ellarepro.layers.gconv import GroupConv
from ellarepro.layers.groups import GROUPS

CASES = list(product(GROUPS, (False, True), (1, 2)))
CLAIMS = {
    "c1": {"translation"},
    "c2": {"translation"},
    "c4": {"translation", "rotation"},
    "d4": {"translation", "rotation", "reflection"},
}


def make(group: str, lifting=False, stride=1, channels=(2, 1), shape=(4, 4)) -> GroupConv:
    """A layer from and to `channels` times the order of the group, with a bias that is not zero."""
    torch.manual_seed(0)
    order = GROUPS[group].order
    folded = channels[0] * (1 if lifting else order), channels[1] * order
    layer = GroupConv(*folded, shape, (shape[0] // stride, shape[1] // stride), group=group, lifting=lifting)
    nn.init.normal_(layer.bias)
    return layer.double()


def data(layer: GroupConv, batch: int = 2) -> torch.Tensor:
    return images(batch, layer.in_channels, *layer.in_shape)


def turned_weight(layer: GroupConv, r: int, d: int) -> torch.Tensor:
    """The filter `(C*|G|, 3, 3)` of output map (d, r), entry by entry from the definition."""
    group = layer.group
    inverse = torch.tensor(group.elements[r]).T
    filters = torch.zeros(layer.in_channels, 3, 3, dtype=torch.float64)
    for channel, row, column in product(range(layer.in_channels), (-1, 0, 1), (-1, 0, 1)):
        i, j = (inverse @ torch.tensor([row, column])).tolist()
        if layer.lifting:
            entry = layer.weight[d, channel, i + 1, j + 1]
        else:
            c, s = divmod(channel, group.order)
            moved = group.elements.index(tuple(map(tuple, (inverse @ torch.tensor(group.elements[s])).tolist())))
            entry = layer.weight[d, c, moved, i + 1, j + 1]
        filters[channel, row + 1, column + 1] = entry
    return filters


def by_loops(layer: GroupConv, image: torch.Tensor) -> torch.Tensor:
    """Output `(D*|G|, H, W)` for one image, before subsampling."""
    order, (height, width) = layer.group.order, layer.in_shape
    out = torch.zeros(layer.out_channels, height, width, dtype=torch.float64)
    for d, r in product(range(layer.out_channels // order), range(order)):
        filters = turned_weight(layer, r, d).flatten()
        for i, j in product(range(height), range(width)):
            seen = patch(image, i - 1, j - 1, 3, 1, "circular")
            out[d * order + r, i, j] = layer.bias[d] + filters @ seen
    return out


@pytest.mark.parametrize(("group", "lifting", "stride"), CASES)
@torch.no_grad()
def test_layer_is_its_definition(group, lifting, stride):
    layer = make(group, lifting, stride, channels=(1, 2), shape=(4, 6))
    x = data(layer)
    wanted = torch.stack([by_loops(layer, image) for image in x])
    assert_close(layer.full_resolution(x), wanted, 1e-12)
    if stride == 2:
        wanted = torch.stack([largest_of_four(image) for image in wanted])
    assert_close(layer(x), wanted, 1e-12)
    assert relative_error(layer(x.flip(3)), wanted) > 0.1, "the control: another image is another output"


def test_the_group_of_one_element_is_conv():
    layer = make("c1", stride=2, channels=(2, 3))
    torch.manual_seed(0)
    conv = Conv(2, 3, (4, 4), (2, 2)).double()
    assert torch.equal(layer.weight[:, :, 0], conv.weight), "the same draws, of the same scale"
    assert not torch.equal(layer(data(layer)), conv(data(layer))), "the control: another bias"
    conv.bias = layer.bias
    assert torch.equal(layer(data(layer)), conv(data(layer)))
    assert list(layer.state_dict()) == ["weight", "bias"], "the index is not saved"


def action(group, x: torch.Tensor, element: int, plain: bool) -> torch.Tensor:
    return group.transform_image(x, element) if plain else group.transform(x, element)


def equivariance_error(layer, group, x, plain=False, elements=None) -> float:
    """Largest relative error over all elements and shifts of layer(moved x) against the moved layer(x), x one image.

    After subsampling a shift of the input is some shift of the output, the nearest; no shift at all is none there too.
    """
    wanted, worst = layer(x), 0.0
    subsampled = wanted.shape[2:] != x.shape[2:]
    for element in range(group.order) if elements is None else elements:
        got = layer(every_shift(action(group, x, element, plain))).flatten(1)
        possible = every_shift(group.transform(wanted, element)).flatten(1)
        errors = torch.cdist(got, possible, compute_mode="donot_use_mm_for_euclid_dist") / wanted.norm()
        same_shift = errors[0, 0] if subsampled else errors.diagonal().max()
        worst = max(worst, errors.min(1).values.max().item(), same_shift.item())
    return worst


def every_shift(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.roll(shift, (2, 3)) for shift in product(*map(range, x.shape[2:]))])


@pytest.mark.parametrize(("group", "lifting", "stride"), CASES)
@torch.no_grad()
def test_equivariance_to_all_shifts_and_all_elements(group, lifting, stride):
    layer = make(group, lifting, stride, channels=(1, 2), shape=(6, 6))
    assert equivariance_error(layer, layer.group, data(layer, 1), plain=lifting) < 1e-12
    assert layer.equivariant_to == CLAIMS[group]
    if layer.group.order > 1:
        torch.manual_seed(0)
        conv = Conv(layer.in_channels, layer.out_channels, layer.in_shape, layer.out_shape).double()
        assert equivariance_error(conv, layer.group, data(layer, 1), plain=lifting, elements=[0]) < 1e-12
        assert equivariance_error(conv, layer.group, data(layer, 1), plain=lifting) > 0.1, "the control"


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_a_smaller_group_does_not_turn_by_90_degrees(stride):
    errors = {}
    for name in ("c2", "c4"):
        layer = make(name, True, stride, channels=(2, 1), shape=(6, 6))
        x = data(layer, 1)
        wanted, got = layer(x).rot90(1, (2, 3)), layer(x.rot90(1, (2, 3)))
        orders = permutations(range(layer.out_channels))
        errors[name] = min(relative_error(got, wanted[:, list(order)]) for order in orders)
    assert errors["c4"] < 1e-12
    assert errors["c2"] > 0.1, "whatever the order of its group channels"


@pytest.mark.parametrize("group", ["c4", "d4"])
@torch.no_grad()
def test_equivariance_of_a_stack(group):
    lifting = make(group, True, channels=(2, 1), shape=(6, 6))
    halving = make(group, stride=2, channels=(1, 2), shape=(6, 6))
    last = make(group, channels=(2, 1), shape=(3, 3))
    stack = nn.Sequential(lifting, nn.ReLU(), halving, nn.ReLU(), last)
    x = data(lifting, 1)
    assert equivariance_error(stack, lifting.group, x, plain=True) < 1e-12
    stack[2] = Conv(halving.in_channels, halving.out_channels, (6, 6), (3, 3)).double()
    assert equivariance_error(stack, lifting.group, x, plain=True) > 0.1, "the control: an ordinary layer between"


def test_rotation_is_claimed_for_square_maps_only():
    assert make("c4", shape=(4, 6)).equivariant_to == {"translation"}
    assert make("d4", shape=(4, 6)).equivariant_to == {"translation", "reflection"}


@pytest.mark.parametrize(("lifting", "stride"), product((False, True), (1, 2)))
@torch.no_grad()
def test_output_does_not_depend_on_batch_mates(lifting, stride):
    layer = make("c4", lifting, stride)
    x = data(layer, 8)
    assert_close(layer(x), torch.cat([layer(image[None]) for image in x]), 1e-12)
    assert relative_error(layer(x).flip(0), layer(x)) > 0.1


@pytest.mark.parametrize(("group", "lifting", "stride"), [("c4", True, 1), ("c4", False, 2), ("d4", False, 1)])
def test_gradients_against_finite_differences(group, lifting, stride):
    layer = make(group, lifting, stride, channels=(1, 1), shape=(2, 2))

    def outputs(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(outputs, (data(layer).requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("lifting", [False, True])
def test_initialisation_keeps_the_scale_through_a_relu(lifting):
    torch.manual_seed(0)
    layer = GroupConv(16, 64, (8, 8), (8, 8), lifting=lifting)
    x = torch.randn(16, 16, 8, 8)
    assert layer(x).relu().square().mean().sqrt().item() == pytest.approx(1, abs=0.15)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": "c3"}, "group must be one of c1, c2, c4, d4; got 'c3'"),
        ({"in_channels": 6}, "in_channels must be a multiple of 4, the order of the group; got 6"),
        ({"out_channels": 6, "lifting": True}, "out_channels must be a multiple of 4, the order of the group; got 6"),
        ({"out_shape": (3, 3)}, r"out_shape must be in_shape \(4, 4\) or half of it, got \(3, 3\)"),
    ],
)
def test_impossible_layers_are_refused(changes, said):
    given = {"in_channels": 4, "out_channels": 4, "in_shape": (4, 4), "out_shape": (4, 4)}
    assert GroupConv(**given).group is GROUPS["c4"]
    with pytest.raises(ValueError, match=said):
        GroupConv(**(given | changes))


def seen_by_element(layer: GroupConv, image: torch.Tensor, r: int, i: int, j: int) -> torch.Tensor:
    """a_{t, r} for t = (i, j): the derivative of output (d, r) at t in weight[d]."""
    group, values = layer.group, patch(image, i - 1, j - 1, 3, 1, "circular").view(layer.in_channels, 3, 3)
    inverse, seen = torch.tensor(group.elements[r]).T, torch.zeros_like(layer.weight[0])
    for channel, row, column in product(range(layer.in_channels), (-1, 0, 1), (-1, 0, 1)):
        a, b = (inverse @ torch.tensor([row, column]) + 1).tolist()
        c, s = (channel, None) if layer.lifting else divmod(channel, group.order)
        place = (c, a, b) if layer.lifting else (c, group.products[group.inverses[r]][s], a, b)
        seen[place] = values[channel, row + 1, column + 1]
    return seen.flatten()


def probe(group: str, lifting: bool, stride: int, side: int = 4) -> tuple[Probe, torch.Tensor]:
    layer = make(group, lifting, stride, channels=(2 if lifting else 1, 2), shape=(side, side))
    return Probe(layer, (layer.in_channels, side, side)), small_data(2, channels=layer.in_channels, side=side)[0]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("lifting", "stride"), [(False, 1), (False, 2), (True, 1)])
def test_kron_factors(group, lifting, stride):
    model, x = probe(group, lifting, stride)
    layer, order = model.layer, model.layer.group.order
    unpermuted, a, shared, bias = 0, 0, 0, 0
    for image in x:
        for i, j, r in product(range(4), range(4), range(order)):
            row, plain = seen_by_element(layer, image, r, i, j), seen_by_element(layer, image, 0, i, j)
            a, unpermuted = a + row.outer(row), unpermuted + plain.outer(plain)
        gradients, lam = logit_gradients(model.tail, layer(image[None]))
        gradients = [g.unflatten(0, (2, order)) for g in gradients]
        for r, i, j in product(range(order), *map(range, gradients[0].shape[2:])):
            shared = shared + weighted(gradients, lam, lambda g, at=(r, i, j): g[:, *at])
        bias = bias + weighted(gradients, lam, lambda g: g.sum((1, 2, 3)))
    output_factor, input_factor = factors(model, x, "layer.weight")
    assert_close(input_factor[0], a / (16 * order) / N)
    assert_close(output_factor[0], shared)
    assert_close(factors(model, x, "layer.bias")[0][0], bias)
    assert relative_error(factors(model, x, "layer.bias")[0][0], shared) > 0.1, "the control: no sum within a sample"
    if order > 1:
        assert relative_error(input_factor[0], a / 16 / N) > 0.1, "the control: no division by |G|"
        assert relative_error(input_factor[0], unpermuted / (16 * order) / N) > 0.05, "the control: no turns"


@pytest.mark.parametrize(("side", "lifting"), [(2, False), (8, False), (8, True)])
@torch.no_grad()
def test_input_factor_of_a_large_map_is_that_of_its_rows(side, lifting):
    layer = make("d4", lifting, shape=(side, side))
    rule, x = rule_for(layer), data(layer)
    rows = rule.input_rows(x)
    assert rows.shape == (1, 2, 8 * side**2, layer.weight[0].numel())
    assert_close(rule.input_factor(x), second_moment(rows) / rows.shape[2])
    assert relative_error(rule.input_factor(x), second_moment(rows[:, :, : side**2]) / side**2) > 0.1, "one element"


@pytest.mark.parametrize(("group", "lifting", "stride"), CASES)
def test_diag_and_the_bias_block_are_exact(group, lifting, stride):
    layer = make(group, lifting, stride, channels=(2 if lifting else 1, 2), shape=(4, 4))
    assert_rule_matches_oracle(layer, small_data(2, channels=layer.in_channels, side=4)[0])


def test_kron_is_exact_on_one_pixel_without_a_group_and_not_with_one():
    x = torch.randn(1, 4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for group, channels in (("c1", (4, 2)), ("c4", (1, 2))):
        model = Probe(make(group, channels=channels, shape=(1, 1)), (4, 1, 1))
        found = kron_and_exact(model, x, "kron")
        assert_close(*found["layer.bias"])
        error = relative_error(*found["layer.weight"])
        assert error < 1e-10 if group == "c1" else error > 0.05
