"""Every curvature rule against plain loops over samples, classes and positions.

The loops below are written from the formulas alone: autograd gives the Jacobian of the logits in a layer's output,
everything else is sums of outer products.
"""

from itertools import product

import pytest
import torch
from helpers import Probe, assert_close, perturb_biases, relative_error, small_data
from laplace.curvature import AsdlGGN
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.patches import circular_patch_moment
from ellarepro.layers.conv import Conv
from ellarepro.layers.dense import Dense
from ellarepro.layers.factored import FactoredDense

N = 10
"""Size of the pretended training set: not the size of the batch, so that a division by the wrong one shows."""


def blocks(model, x, structure="kron", data_size=N):
    ggn = GGN(model, structure, tolerance=0)
    ggn.update(x)
    return ggn.blocks(data_size)


def factors(model, x, parameter, structure="kron"):
    return blocks(model, x, structure)[parameter].factors


def logit_gradients(tail, point):
    """For one sample: the gradient of each logit in `point (1, ...)`, without the sample axis, and Lambda (K, K)."""
    point = point.detach().requires_grad_()
    logits = tail(point)[0]
    gradients = [torch.autograd.grad(logit, point, retain_graph=True)[0][0] for logit in logits]
    p = logits.detach().softmax(0)
    return gradients, p.diag() - p.outer(p)


def weighted(gradients, lam, pick):
    """Sum over class pairs of Lambda[k, l] pick(g_k) pick(g_l)^T."""
    pairs = product(range(len(lam)), repeat=2)
    return sum(lam[k, m] * torch.outer(pick(gradients[k]), pick(gradients[m])) for k, m in pairs)


def source(index: int, size: int, mode: str) -> int | None:
    """The pixel that a padded map shows at `index`; None for a zero."""
    if 0 <= index < size:
        return index
    outside = {
        "circular": index % size,
        "zeros": None,
        "replicate": min(max(index, 0), size - 1),
        "reflect": -index if index < 0 else 2 * (size - 1) - index,
    }
    return outside[mode]


def patch(image, top, left, kernel, dilation, mode):
    """The pixels, channel by channel, that a filter sees with its first one at (top, left)."""
    values = []
    for c, a, b in product(range(image.shape[0]), range(kernel), range(kernel)):
        row = source(top + a * dilation, image.shape[1], mode)
        column = source(left + b * dilation, image.shape[2], mode)
        values.append(image.new_zeros(()) if row is None or column is None else image[c, row, column])
    return torch.stack(values)


def patch_factor(x, positions, kernel=3, dilation=1, mode="circular"):
    """Sum over samples, mean over positions, of p p^T."""
    total = 0
    for image, (top, left) in product(x, positions):
        seen = patch(image, top, left, kernel, dilation, mode)
        total = total + torch.outer(seen, seen)
    return total / len(positions)


def conv_output_factors(model, x):
    """Sum over samples and positions of g Lambda g^T, and the exact bias block."""
    shared, bias = 0, 0
    for image in x:
        gradients, lam = logit_gradients(model.tail, model.layer(image[None]))
        for i, j in product(*map(range, gradients[0].shape[1:])):
            shared = shared + weighted(gradients, lam, lambda g, i=i, j=j: g[:, i, j])
        bias = bias + weighted(gradients, lam, lambda g: g.sum((1, 2)))
    return shared, bias


@pytest.fixture
def x():
    return small_data(3, channels=2, side=4)[0]


def test_dense(x):
    torch.manual_seed(0)
    model = Probe(Dense(2, 3, (4, 4), (2, 2)), (2, 4, 4))
    a = sum(torch.outer(image.flatten(), image.flatten()) for image in x)
    b = 0
    for image in x:
        b = b + weighted(*logit_gradients(model.tail, model.layer(image[None])), lambda g: g.flatten())
    output_factor, input_factor = factors(model, x, "layer.weight")
    assert_close(input_factor[0], a / N)
    assert_close(output_factor[0], b)
    assert_close(factors(model, x, "layer.bias")[0][0], b)
    assert relative_error(output_factor[0], b / N) > 0.1, "the control: N divides once"


def test_head():
    torch.manual_seed(0)
    model, x = Probe(nn.Linear(5, 4), (5,)), torch.randn(3, 5, dtype=torch.float64)
    b = sum(weighted(*logit_gradients(model.tail, model.layer(row[None])), lambda g: g) for row in x)
    output_factor, input_factor = factors(model, x, "layer.weight")
    assert_close(input_factor[0], x.T @ x / N)
    assert_close(output_factor[0], b)
    assert_close(factors(model, x, "layer.bias")[0][0], b)


@pytest.mark.parametrize("axes", [(2,), (1,), (2, 3)])
def test_linear_on_shared_positions(axes):
    torch.manual_seed(0)
    model, x = Probe(nn.Linear(5, 4), (*axes, 5)), torch.randn(3, *axes, 5, dtype=torch.float64)
    rows = x.flatten(1, -2)
    a = sum(sample.T @ sample for sample in rows) / rows.shape[1]
    shared, bias = 0, 0
    for sample in x:
        gradients, lam = logit_gradients(model.tail, model.layer(sample[None]))
        for t in range(rows.shape[1]):
            shared = shared + weighted(gradients, lam, lambda g, t=t: g.flatten(0, -2)[t])
        bias = bias + weighted(gradients, lam, lambda g: g.flatten(0, -2).sum(0))
    output_factor, input_factor = factors(model, x, "layer.weight")
    assert_close(input_factor[0], a / N)
    assert_close(output_factor[0], shared)
    assert_close(factors(model, x, "layer.bias")[0][0], bias)
    if rows.shape[1] > 1:
        assert relative_error(input_factor[0], a * rows.shape[1] / N) > 0.1, "the control: no division by T"
        assert relative_error(shared, bias) > 0.1, "the control: another block for the bias"


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv(x, mode, stride):
    torch.manual_seed(0)
    model = Probe(Conv(2, 3, (4, 4), (4 // stride, 4 // stride), padding_mode=mode), (2, 4, 4))
    everywhere = list(product(range(-1, 3), repeat=2))
    a = patch_factor(x, everywhere, mode=mode)
    shared, bias = conv_output_factors(model, x)
    output_factor, input_factor = factors(model, x, "layer.weight")
    assert_close(input_factor[0], a / N)
    assert_close(output_factor[0], shared)
    assert_close(factors(model, x, "layer.bias")[0][0], bias)
    other = "zeros" if mode == "circular" else "circular"
    assert relative_error(input_factor[0], patch_factor(x, everywhere, mode=other) / N) > 0.1
    assert relative_error(input_factor[0], 16 * a / N) > 0.1, "the control: no division by T"
    assert relative_error(factors(model, x, "layer.bias")[0][0], shared) > 0.1, "the control: sum of g g^T for a bias"


STOCK = [
    *product(["zeros", "circular", "reflect", "replicate"], [(1, 1), (2, 1)]),
    ("zeros", (1, 2)),
    ("circular", (1, 2)),
]


@pytest.mark.parametrize(("mode", "stride_and_dilation"), STOCK)
def test_stock_convolution(mode, stride_and_dilation):
    stride, dilation = stride_and_dilation
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride=stride, padding=dilation, dilation=dilation, padding_mode=mode)
    model, x = Probe(layer, (2, 5, 5)), small_data(2, channels=2, side=5)[0]
    corners = range(-dilation, 5 - dilation, stride)
    output_factor, input_factor = factors(model, x, "layer.weight")
    shared, bias = conv_output_factors(model, x)
    assert_close(input_factor[0], patch_factor(x, list(product(corners, corners)), 3, dilation, mode) / N)
    assert_close(output_factor[0], shared)
    assert_close(factors(model, x, "layer.bias")[0][0], bias)
    other = "circular" if mode == "zeros" else "zeros"
    assert (
        relative_error(input_factor[0], patch_factor(x, list(product(corners, corners)), 3, dilation, other) / N) > 0.1
    )


@pytest.mark.parametrize("depthwise", [False, True])
def test_grouped_convolution_is_one_convolution_a_group(depthwise):
    torch.manual_seed(0)
    groups, options = 4 if depthwise else 2, {"stride": 2, "padding": 1, "padding_mode": "circular"}
    model = Probe(nn.Conv2d(4, 8, 3, groups=groups, **options), (4, 5, 5))
    x = small_data(3, channels=4, side=5)[0]
    shared, bias = conv_output_factors(model, x)
    width = 8 // groups
    a, b = [], []
    for g, channels in enumerate(x.chunk(groups, 1)):
        alone = Probe(nn.Conv2d(4 // groups, width, 3, **options), channels.shape[1:])
        a.append(factors(alone, channels, "layer.weight")[1][0])
        b.append(shared[g * width : (g + 1) * width, g * width : (g + 1) * width])
    finer = factors(model, x, "layer.weight", "kron_blockwise")
    assert_close(finer[0], torch.stack(b))
    assert_close(finer[1], torch.stack(a))
    together = factors(model, x, "layer.weight")
    assert_close(together[0][0], sum(b))
    assert_close(together[1], torch.stack(a) / groups)
    assert_close(factors(model, x, "layer.bias")[0][0], bias)
    assert relative_error(finer[1], torch.stack(a[::-1])) > 0.01, "the control: the other group's"


class Words(nn.Module):
    """An embedding, or a linear layer on one-hot rows with the same weights."""

    def __init__(self, weight: Tensor, embeds: bool):
        super().__init__()
        self.layer = nn.Embedding(*weight.shape) if embeds else nn.Linear(*weight.shape, bias=False)
        self.layer.weight = nn.Parameter(weight if embeds else weight.T.contiguous())
        self.embeds = embeds

    def forward(self, words):
        rows = words if self.embeds else nn.functional.one_hot(words, 6).double()
        return self.layer(rows).sin().flatten(1)[:, :4]


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag"])
def test_an_embedding_is_a_linear_layer_on_one_hot_rows(structure):
    weight = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    words = torch.randint(6, (5, 4), generator=torch.Generator().manual_seed(1))
    embedding, linear = (Words(weight, embeds) for embeds in (True, False))
    ours, theirs = (BlockKron.from_blocks(blocks(model, words, structure)).to_matrix() for model in (embedding, linear))
    order = torch.arange(18).view(3, 6).T.flatten()
    assert_close(ours, theirs[order][:, order])
    assert relative_error(ours, theirs) > 0.1, "the control: the other order of axes"


@pytest.mark.parametrize("stride", [1, 2])
def test_factored(x, stride):
    torch.manual_seed(0)
    model = Probe(FactoredDense(2, 3, (4, 4), (4 // stride, 4 // stride)), (2, 4, 4))
    c, d = 2, 3
    a2, a1 = [0] * c, [0] * d
    b2, b1, bias = [0] * c, [0] * d, 0
    for image in x:
        hidden = model.layer.theta2(image[None])
        at_hidden, lam = logit_gradients(lambda h: model.tail(model.layer.theta1(h)), hidden)
        at_output, _ = logit_gradients(model.tail, model.layer.theta1(hidden))
        for i in range(c):
            a2[i] = a2[i] + torch.outer(image[i].flatten(), image[i].flatten())
            b2[i] = b2[i] + weighted(at_hidden, lam, lambda g, i=i: g[:, i])
        for i in range(d):
            a1[i] = a1[i] + torch.outer(hidden[0, i], hidden[0, i]).detach()
            b1[i] = b1[i] + weighted(at_output, lam, lambda g, i=i: g[i].flatten())
        bias = bias + weighted(at_output, lam, lambda g: g.sum((1, 2)))
    output2, input2 = factors(model, x, "layer.theta2.weight")
    input1, output1 = factors(model, x, "layer.theta1.weight")
    assert_close(input2, torch.stack(a2) / c / N)
    assert_close(output2[0], sum(b2))
    assert_close(input1, torch.stack(a1) / d / N)
    assert_close(output1[0], sum(b1))
    assert_close(factors(model, x, "layer.theta1.bias")[0][0], bias)
    assert relative_error(input2, torch.stack(a2) / N) > 0.1, "the control: no division by C"
    finer2 = factors(model, x, "layer.theta2.weight", "kron_blockwise")
    finer1 = factors(model, x, "layer.theta1.weight", "kron_blockwise")
    assert_close(finer2[0], torch.stack(b2))
    assert_close(finer2[1], torch.stack(a2) / N)
    assert_close(finer1[0], torch.stack(a1) / N)
    assert_close(finer1[1], torch.stack(b1))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (5, 3), (8, 8), (1, 2)])
def test_circular_patch_moment(shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    corners = list(product(range(-1, shape[0] - 1), range(-1, shape[1] - 1)))
    moment = circular_patch_moment(x)[0]
    assert_close(moment, patch_factor(x, corners))
    assert relative_error(moment, patch_factor(x, corners, mode="zeros")) > 0.05


@pytest.mark.parametrize(("mode", "right"), [("zeros", True), ("circular", False)])
def test_asdl_pads_with_zeros_whatever_the_layer_says(mode, right):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.Flatten(), nn.Tanh(), nn.Linear(48, 3))
    perturb_biases(model.double())
    x, y = small_data(3, channels=2, side=4)
    _, peer = AsdlGGN(model, "classification").kron(x, y, N=N)
    input_factor = factors(model, x, "0.weight")[1][0]
    error = relative_error(peer.kfacs[0][1], input_factor)
    assert error < 1e-10 if right else error > 0.2
