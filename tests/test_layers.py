"""Layers: the paper's equations by plain loops, the claims of equivariance with controls, sizes and scale."""

from itertools import product

import pytest
import torch
from helpers import assert_close, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ellarepro.layers.conv import Conv, convolve
from ellarepro.layers.dense import Dense
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.groups import GROUPS
from ellarepro.layers.paths import PathMean
from ellarepro.layers.subsample import keep_largest_phase, largest_phase, take_phase
from ellarepro.network import LAYERS, PATHS, build_network

CASES = list(product(PATHS, (1, 2)))
DENSE_CASES = list(product(("fc", "conv", "f_fc"), (1, 2)))
"""Layers whose equation is checked here; `test_sparse.py` has the others, which are these with other weights."""


def make(path: str, stride: int = 1, channels=(2, 3), shape=(4, 4), **options) -> nn.Module:
    torch.manual_seed(0)
    if "group" in PATHS[path].options:
        # Three channels are no group features; test_gconv.py and test_separable.py have the groups.
        options = {"group": "c1"} | options
    layer = PATHS[path](*channels, shape, (shape[0] // stride, shape[1] // stride), **options).double()
    for name, p in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    return layer


def images(batch: int = 3, channels: int = 2, height: int = 4, width: int = 4, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("path", "stride"), CASES)
def test_output_shape(path, stride):
    layer = make(path, stride, shape=(4, 6))
    assert layer(images(width=6)).shape == (3, 3, 4 // stride, 6 // stride)


def by_loops(path: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output `(D, H', W')` for one image `(C, H, W)`, from eq. 1, 3 and 5; for `conv` before subsampling."""
    height, width = layer.in_shape if path == "conv" else layer.out_shape
    out = torch.zeros(layer.out_channels, height, width, dtype=x.dtype)
    for d, i, j in product(range(layer.out_channels), range(height), range(width)):
        if path == "fc":
            row = (d * height + i) * width + j
            out[d, i, j] = layer.bias[row]
            for column, value in enumerate(x.flatten()):
                out[d, i, j] += layer.weight[row, column] * value
        elif path == "conv":
            out[d, i, j] = layer.bias[d]
            for c, a, b in product(range(x.shape[0]), range(3), range(3)):
                out[d, i, j] += layer.weight[d, c, a, b] * x[c, (i + a - 1) % height, (j + b - 1) % width]
        else:
            out[d, i, j] = layer.theta1.bias[d]
            for c, k, m in product(range(x.shape[0]), *map(range, x.shape[1:])):
                out[d, i, j] += layer.theta1.weight[d, c, i, j] * layer.theta2.weight[d, c, k, m] * x[c, k, m]
    return out


def largest_of_four(full: torch.Tensor) -> torch.Tensor:
    phases = [full[:, a::2, b::2] for a, b in product(range(2), range(2))]
    return max(phases, key=lambda phase: phase.square().sum().item())


@pytest.mark.parametrize(("path", "stride"), DENSE_CASES)
def test_layer_is_its_equation(path, stride):
    layer, x = make(path, stride, shape=(2, 4)), images(height=2)
    with torch.no_grad():
        wanted = torch.stack([by_loops(path, layer, image) for image in x])
        if path == "conv" and stride == 2:
            plain_striding = wanted[:, :, ::2, ::2]
            wanted = torch.stack([largest_of_four(image) for image in wanted])
            assert relative_error(plain_striding, wanted) > 0.1, "the control: another phase is another output"
        assert_close(layer(x), wanted, 1e-12)
        assert relative_error(layer(x.flip(3)), wanted) > 0.1, "the control: another image is another output"


def shift_error(layer: nn.Module, x: torch.Tensor, stride: int) -> float:
    """Largest relative error, over all shifts, of layer(shifted x) against the shifted layer(x).

    After subsampling, the output is to be equal up to a circular shift of its own, found by trying all.
    """
    plain, worst = layer(x), 0.0
    for shift in product(range(x.shape[2]), range(x.shape[3])):
        got = layer(x.roll(shift, (2, 3)))
        own = [shift] if stride == 1 else list(product(range(got.shape[2]), range(got.shape[3])))
        for image, reference in zip(got, plain, strict=True):
            worst = max(worst, min(relative_error(image, reference.roll(s, (1, 2))) for s in own))
    return worst


@pytest.mark.parametrize(("path", "stride"), CASES)
@torch.no_grad()
def test_claim_of_translation_equivariance(path, stride):
    layer = make(path, stride, shape=(8, 8))
    error = shift_error(layer, images(2, 2, 8, 8), stride)
    if "translation" in layer.equivariant_to:
        assert error < 1e-12
    else:
        assert error > 0.1, "a layer that claims nothing is the control"


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_zero_padding_breaks_translation_and_claims_nothing(stride):
    layer = make("conv", stride, shape=(8, 8), padding_mode="zeros")
    assert layer.equivariant_to == frozenset()
    assert shift_error(layer, images(2, 2, 8, 8), stride) > 0.05
    assert_close(
        layer.full_resolution(images(2, 2, 8, 8)),
        nn.functional.conv2d(images(2, 2, 8, 8), layer.weight, layer.bias, padding=1),
    )


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_two_equivariant_paths_keep_the_same_phase(stride):
    """Each by itself keeps the phase that is largest for it: one then moves under an odd shift and the other not."""
    sides, x = (8, 8), images(8, 2, 8, 8)
    own = {path: make(path, stride, shape=sides) for path in ("conv", "gconv")}
    own["gconv"].weight.copy_(torch.randn_like(own["gconv"].weight))
    whole = {path: make(path, 1, shape=sides) for path in own}
    for path, layer in own.items():
        whole[path].load_state_dict(layer.state_dict())
    together = PathMean(whole, subsampled=whole if stride == 2 else ())
    assert shift_error(together, x, stride) < 1e-12
    if stride == 2:
        assert shift_error(PathMean(own), x, stride) > 0.1, "the control: each its own phase"
        with pytest.raises(ValueError, match="subsampled must name paths among conv, gconv; got fc"):
            PathMean(whole, subsampled=["fc"])


@pytest.mark.parametrize("group", ["c2", "c4", "d4"])
@torch.no_grad()
def test_networks_with_group_convolutions_are_invariant_to_what_they_claim(group):
    x, errors = images(2, 1, 16, 16).float(), {}
    shifted = [x.roll((row, column), (2, 3)) for row, column in product((0, 1, 5), (0, 2, 7))]
    turned = [GROUPS[group].transform_image(x, element) for element in range(GROUPS[group].order)]
    strict = ("gconv", "pgconv", "sgconv", "gsconv", "dgconv")
    for name in (*strict, "conv_gconv", "f_fc_conv_gconv", "f_fc_conv_sgconv"):
        torch.manual_seed(0)
        network = build_network(name, in_channels=1, num_classes=5, alpha=2, image_size=16, group=group)
        logits = network(x)
        for kind, moved in (("shift", shifted), ("turn", turned)):
            difference = max((network(other) - logits).abs().max() for other in moved)
            errors[name, kind] = (difference / logits.abs().max()).item()
    assert max(errors[name, kind] for name in strict for kind in ("shift", "turn")) < 1e-4
    assert errors["conv_gconv", "shift"] < 1e-4, "the two paths of a layer keep the same phase"
    assert errors["conv_gconv", "turn"] > 1e-2, "the control: CONV does not turn"
    mixed = [errors[name, kind] for name in ("f_fc_conv_gconv", "f_fc_conv_sgconv") for kind in ("shift", "turn")]
    assert min(mixed) > 1e-2, "the control: nor does F-FC"


def test_convolutions_are_the_only_translation_equivariant_paths():
    claims = {path: make(path).equivariant_to for path in PATHS}
    convolutions = {"conv", "s_conv", "gconv", "pgconv", "sgconv", "gsconv", "dgconv"}
    assert {path for path, claim in claims.items() if "translation" in claim} == convolutions


@torch.no_grad()
def test_conv_network_is_invariant_to_every_shift_and_the_mixed_one_is_not():
    x = images(1, 1, 16, 16).float()
    shifted = torch.cat([x.roll(shift, (2, 3)) for shift in product(range(16), range(16))])
    errors = {}
    for name in ("conv", "f_fc_conv"):
        torch.manual_seed(0)
        logits = build_network(name, in_channels=1, num_classes=5, alpha=2, image_size=16)(shifted)
        errors[name] = ((logits - logits[0]).abs().max() / logits[0].abs().max()).item()
    assert errors["conv"] < 1e-4
    assert errors["f_fc_conv"] > 1e-2


@pytest.mark.parametrize(("path", "stride"), CASES)
@torch.no_grad()
def test_output_does_not_depend_on_batch_mates(path, stride):
    layer, x = make(path, stride), images(batch=8)
    alone = torch.cat([layer(image[None]) for image in x])
    assert_close(layer(x), alone, 1e-12)
    assert_close(layer(x.flip(0)).flip(0), alone, 1e-12)


def test_phase_is_chosen_for_each_sample():
    features = images(batch=16)
    phases = largest_phase(features)
    assert len(phases.unique()) > 1
    kept = keep_largest_phase(features)
    for image, own in zip(features, kept, strict=True):
        assert torch.equal(own, largest_of_four(image))
    for_all = largest_phase(features.flatten(0, 1)[None]).expand(16)
    assert relative_error(take_phase(features, for_all), kept) > 0.1, "the control: one phase for the whole batch"
    with pytest.raises(ValueError, match="even maps, got 3 x 4"):
        keep_largest_phase(images(height=3))


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
@pytest.mark.parametrize("shape", [(2, 2), (2, 6), (8, 4)])
def test_a_subsampled_convolution_is_the_kept_phase_of_the_whole_one(shape, padding_mode):
    generator = torch.Generator().manual_seed(0)
    sizes = [(16, 3, *shape), (5, 3, 3, 3), (5,)]
    arguments, moves = (
        tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes) for _ in range(2)
    )

    def short(features, filters, bias):
        return convolve(features, filters, bias, padding_mode, subsamples=True)

    def long(features, filters, bias):
        return keep_largest_phase(convolve(features, filters, bias, padding_mode))

    phases = largest_phase(convolve(*arguments, padding_mode))
    assert len(phases.unique()) == 4
    found, turn = torch.func.vjp(short, *arguments)
    wanted, other_turn = torch.func.vjp(long, *arguments)
    assert_close(found, wanted, 1e-13)
    back = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(turn(back), other_turn(back), strict=True):
        assert_close(ours, theirs, 1e-13)
    assert_close(torch.func.jvp(short, arguments, moves)[1], torch.func.jvp(long, arguments, moves)[1], 1e-13)
    first = convolve(*arguments, padding_mode)[:, :, ::2, ::2]
    assert relative_error(first, wanted) > 0.1, "the control: one phase for all"


def test_what_a_subsampled_convolution_keeps_has_one_type_under_autocast():
    """A kernel of its backward pass that takes two is a vendor's own, and not on every processor."""
    conv = Conv(2, 3, (4, 4), (2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        node = conv(images().float()).grad_fn
    assert node.name() == "_KeptPhaseBackward"
    assert {tensor.dtype for tensor in node.saved_tensors} == {torch.bfloat16}


def test_path_mean_divides_by_the_number_of_paths():
    layers, x = {path: make(path) for path in PATHS}, images()
    wanted = sum(layer(x) for layer in layers.values()) / len(layers)
    assert_close(PathMean(layers)(x), wanted)
    assert torch.equal(PathMean({"fc": layers["fc"]})(x), layers["fc"](x))
    with pytest.raises(ValueError, match="at least one path"):
        PathMean({})


@pytest.mark.parametrize("name", ["f_fc_conv", "conv_gconv", "f_fc_conv_gconv"])
def test_a_sum_of_paths_and_its_gradient_have_the_pixels_of_a_channel_together_in_memory(name):
    network = build_network(name, in_channels=1, num_classes=3, alpha=1)
    seen = []
    features = torch.rand(5, network.blocks[0].paths["conv"].out_channels, 32, 32, requires_grad=True)
    features.register_hook(seen.append)
    output = network.blocks[1](features)
    output.square().sum().backward()
    assert output.is_contiguous() and seen[0].is_contiguous()
    alone = network.blocks[1].paths["conv"](features)
    assert not alone.is_contiguous(), "the control: a path has an order of its own"


def test_a_single_path_is_subsampled_where_it_is_told_to_be():
    torch.manual_seed(0)
    conv, x = Conv(2, 3, (4, 4), (4, 4)), torch.randn(2, 2, 4, 4)
    assert torch.equal(PathMean({"conv": conv}, subsampled=["conv"])(x), keep_largest_phase(conv(x)))
    fixed = PathMean({"conv": conv}, subsampled=["conv"], adaptive=False)(x)
    assert torch.equal(fixed, conv(x)[:, :, ::2, ::2]) and not torch.equal(fixed, keep_largest_phase(conv(x)))


RELEASED = {
    ("fc", 3, 10): 133_635_690,
    ("conv", 3, 10): 338_770,
    ("fc_conv", 3, 10): 133_865_010,
    ("s_fc", 3, 10): 831_820,
    ("s_fc_s_conv", 3, 10): 933_990,
}
"""Counted in networks that the paper's authors have released."""
PUBLISHED = {
    ("fc", 3, 10): 133.6,
    ("conv", 3, 10): 0.34,
    ("fc_conv", 3, 10): 133.9,
    ("f_fc", 3, 10): 1.5,
    ("f_fc_conv", 3, 10): 1.8,
    ("s_fc", 3, 10): 0.8,
    ("s_conv", 3, 10): 0.2,
    ("s_fc_s_conv", 3, 10): 0.9,
    ("fc", 1, 10): 112.7,
    ("conv", 1, 40): 0.36,
    ("f_fc_conv", 1, 40): 1.75,
    ("f_fc_conv_gconv", 1, 10): 1.1,
    ("f_fc_conv_gconv", 3, 10): 1.1,
}
"""Millions, as the paper prints them, but for S-FC+S-CONV, where it prints 1.0, and the three paths, where 1.2."""


def counted_by_hand(layer: str, in_channels: int, classes: int, alpha: int) -> int:
    order = 4 if "gconv" in layer else 1
    channels = [in_channels, *(order * alpha * width for width in (1, 2, 2, 4, 4, 8, 8, 16))]
    pixels = [size**2 for size in (32, 32, 16, 16, 8, 8, 4, 2, 1)]
    count = (16 * alpha + 1) * 64 * alpha + (64 * alpha + 1) * classes
    for c, d, x, y in zip(channels, channels[1:], pixels, pixels[1:], strict=False):
        by_path = {"fc": (c * x + 1) * d * y, "conv": (9 * c + 1) * d, "f_fc": d * c * (x + y) + d}
        by_path |= {"s_fc": d * c * (max(x // 2, 1) + max(y // 2, 1)) + d, "s_conv": (4 * c + 1) * d}
        by_path["gconv"] = (9 * c + 1) * d // order
        count += sum(by_path[path] for path in LAYERS[layer])
    return count


@pytest.mark.parametrize(("layer", "channels", "classes"), PUBLISHED)
def test_parameter_counts(layer, channels, classes):
    alpha = 2 if "gconv" in layer else 10
    with torch.device("meta"):
        network = build_network(layer, in_channels=channels, num_classes=classes, alpha=alpha)
    count, key = sum(p.numel() for p in network.parameters()), (layer, channels, classes)
    assert count == RELEASED.get(key, count) == counted_by_hand(*key, alpha)
    decimals = len(str(PUBLISHED[key]).partition(".")[2])
    assert round(count / 1e6, decimals) == PUBLISHED[key]
    assert count != counted_by_hand(*key, alpha - 1)


def scales(layer: str, factor: float = 1.0) -> list[float]:
    """Root mean square of an input and of the features after each block, weights times `factor`.

    The input is white, or for sparse layers smooth, as their scale is meant for.
    """
    torch.manual_seed(0)
    network = build_network(layer, in_channels=1, num_classes=10, alpha=6, image_size=16)
    features, found = torch.randn(32, 1, 16, 16), [1.0]
    if layer.startswith("s_"):
        features = nn.functional.interpolate(features[..., ::4, ::4], 16, mode="bilinear")
        features = features / features.square().mean().sqrt()
    with torch.no_grad():
        for block in network.blocks:
            features = block(features).relu() * factor
            found.append(features.square().mean().sqrt().item())
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_initialisation_keeps_the_scale_through_eight_layers(layer):
    least = 1 / 8 if layer.startswith("s_") else 1 / 3
    assert all(least < scale < 3 for scale in scales(layer)), scales(layer)
    assert scales(layer, factor=0.5**0.5)[-1] < least, "the control: gain 1 in place of sqrt(2)"


@pytest.mark.parametrize("relaxation", [0.1, 1.0, 3.0])
@torch.no_grad()
def test_relaxation_is_the_scale_of_the_other_paths_beside_an_equivariant_one(relaxation):
    """Root mean square of the paths' outputs in a wide layer, F-FC's over CONV's; no path beside F-FC, no change."""
    torch.manual_seed(0)
    block = build_network("f_fc_conv", in_channels=1, num_classes=2, alpha=40, relaxation=relaxation).blocks[2]
    features = torch.randn(4, 80, 16, 16)
    fc, conv = (block.paths[name](features).square().mean().sqrt().item() for name in ("f_fc", "conv"))
    assert fc / conv == pytest.approx(relaxation, rel=0.05)
    assert ((block(features).square().mean()).sqrt().item()) == pytest.approx(2**0.5, rel=0.05)
    alone = []
    for scale in (relaxation, 1.0):
        torch.manual_seed(0)
        network = build_network("f_fc", in_channels=1, num_classes=2, alpha=1, relaxation=scale)
        alone.append(network.blocks[0].paths["f_fc"].theta1.weight)
    assert torch.equal(*alone)


def test_factored_layer_under_function_transforms():
    layer, x = make("f_fc", 2), images()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def one(values, image):
        return torch.func.functional_call(layer, values, (image[None],))[0]

    reverse = torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0))(parameters, x)
    for n, image in enumerate(x):
        wanted = torch.autograd.functional.jacobian(
            lambda *values, image=image: one(dict(zip(parameters, values, strict=True)), image),
            tuple(parameters.values()),
        )
        for name, jacobian in zip(parameters, wanted, strict=True):
            assert_close(reverse[name][n], jacobian, 1e-12)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, forward = torch.func.jvp(lambda values: one(values, x[0]), (parameters,), (tangents,))
    assert_close(forward, sum(torch.tensordot(reverse[k][0], tangents[k], tangents[k].ndim) for k in tangents), 1e-12)


@pytest.mark.parametrize(("path", "stride"), CASES)
def test_gradients_against_finite_differences(path, stride):
    layer, x = make(path, stride), images(batch=2).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *layer.parameters()))
    if path == "f_fc":
        assert torch.autograd.gradgradcheck(outputs, (x, *layer.parameters()))


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_factored_layer_never_builds_a_block_diagonal_matrix():
    layer, x = FactoredDense(6, 4, (8, 8), (8, 8)), torch.randn(5, 6, 8, 8)
    allowed = max(x.numel(), layer.theta2.weight.numel(), layer.theta1.weight.numel(), 5 * 4 * 64)
    with LargestTensor() as seen:
        layer(x.requires_grad_()).sum().backward()
    assert 0 < seen.entries <= allowed
    with LargestTensor() as control:
        torch.stack([torch.block_diag(*image.flatten(1)) for image in x.detach()])
    assert control.entries == 6 * x.numel() > allowed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": "transformer"}, ("layer", "transformer", "f_fc_conv")),
        ({"image_size": 24}, ("image_size", "24", "32")),
        ({"in_channels": 0}, ("in_channels", "0", ">= 1")),
        ({"num_classes": 0}, ("num_classes", "0", ">= 1")),
        ({"alpha": 0}, ("alpha", "0", ">= 1")),
        ({"relaxation": 0.0}, ("relaxation", "0.0", "positive")),
        ({"relaxation": float("nan")}, ("relaxation", "nan", "positive")),
    ],
)
def test_impossible_networks_name_key_value_and_what_is_possible(changes, said):
    with pytest.raises(ValueError) as error:
        build_network(**({"layer": "conv", "in_channels": 1, "num_classes": 3, "alpha": 1} | changes))
    assert all(word in str(error.value) for word in said), str(error.value)


@pytest.mark.parametrize("layer_type", [Dense, Conv, FactoredDense])
def test_impossible_layers_are_refused(layer_type):
    with pytest.raises(ValueError, match=r"out_shape must be in_shape \(4, 4\) or half of it, got \(3, 3\)"):
        layer_type(1, 1, (4, 4), (3, 3))
    with pytest.raises(ValueError, match="positive"):
        layer_type(0, 1, (4, 4), (4, 4))
    with pytest.raises(ValueError, match="'reflect'"):
        Conv(1, 1, (4, 4), (4, 4), padding_mode="reflect")
