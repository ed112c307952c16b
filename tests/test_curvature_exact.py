"""Curvature of whole networks against the exact GGN where equality is provable, and that oracle against differences.

Single layers are in `test_oracle.py`.
"""

import pytest
import torch
from helpers import Probe, assert_close, parameter_slices, relative_error, small_data, small_network
from torch import nn

from ellarepro.curvature import EllaGGN
from ellarepro.curvature.exact import exact_ggn, ggn_rows, jacobians
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.likelihood import softmax_hessian
from ellarepro.layers.factored import FactoredDense


@pytest.fixture
def x():
    return small_data(3, channels=2, side=4)[0]


def kron_and_exact(model, x, structure):
    """For each tensor, the block of `structure` with N the size of the batch, and the exact one."""
    _, kron = EllaGGN(model, structure=structure).kron(x, torch.zeros(len(x), dtype=torch.long), len(x))
    exact, ours = exact_ggn(model, x), kron.to_matrix()
    return {name: (ours[s, s], exact[s, s]) for name, s in parameter_slices(model).items()}


def within_groups(matrix, shape, axis):
    """The matrix of a tensor of this shape with zeros between different entries of one of its axes."""
    index = torch.arange(shape[axis]).view([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape).flatten()
    return matrix * (index[:, None] == index)


ONE = {"one datum": (1, 1), "repeated data": (1, 3)}


@pytest.mark.parametrize("case", ONE)
def test_factored_blockwise_is_exact_within_groups_with_one_datum(x, case):
    torch.manual_seed(0)
    model = Probe(FactoredDense(2, 3, (4, 4), (2, 2)), (2, 4, 4))
    size, repeats = ONE[case]
    data = x[:size].repeat_interleave(repeats, 0)
    for structure, equal in (("kron_blockwise", True), ("kron", False)):
        found = kron_and_exact(model, data, structure)
        for name, axis, shape in (("theta2", 1, (3, 2, 4, 4)), ("theta1", 0, (3, 2, 2, 2))):
            ours, exact = found[f"layer.{name}.weight"]
            error = relative_error(ours, within_groups(exact, shape, axis))
            assert error < 1e-10 if equal else error > 0.05


@pytest.mark.parametrize("layer", ["fc", "conv", "f_fc", "f_fc_conv", "s_fc_s_conv"])
def test_bias_blocks_are_exact_in_whole_networks(layer):
    model, x = small_network(layer), small_data(3)[0]
    exact = exact_ggn(model, x)
    for structure in ("kron", "kron_blockwise"):
        ggn = GGN(model, structure, tolerance=0)
        ggn.update(x)
        biases = {name: block.factors[0][0] for name, block in ggn.blocks(3).items() if name.endswith("bias")}
        assert len(biases) >= 10
        for name, ours in biases.items():
            assert_close(ours, exact[parameter_slices(model)[name]][:, parameter_slices(model)[name]], 1e-9)


@pytest.mark.parametrize("layer", ["fc", "conv", "fc_conv", "f_fc", "f_fc_conv", "s_fc_s_conv"])
def test_diag_is_the_exact_diagonal_in_whole_networks(layer):
    model, x = small_network(layer), small_data(3)[0]
    exact = exact_ggn(model, x).diagonal()
    loss, diagonal = EllaGGN(model).diag(x, torch.zeros(3, dtype=torch.long))
    assert_close(diagonal, exact)
    _, kron = EllaGGN(model).kron(x, torch.zeros(3, dtype=torch.long), N=3)
    assert relative_error(kron.diag(), exact) > 0.01, "the control: the diagonal of kron"


def test_exact_ggn_is_the_hessian_of_a_linear_classifier():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    y, sizes = torch.randint(3, (5,)), [12, 3]

    def loss(flat):
        weight, bias = flat.split(sizes)
        return nn.functional.cross_entropy(x @ weight.view(3, 4).T + bias, y, reduction="sum")

    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert_close(exact_ggn(model, x), torch.autograd.functional.hessian(loss, flat))
    step = 1e-5 * torch.eye(15, dtype=torch.float64)
    gradient = torch.func.grad(loss)
    differences = torch.stack([(gradient(flat + s) - gradient(flat - s)) / 2e-5 for s in step])
    assert_close(exact_ggn(model, x), differences, 1e-7)


def test_jacobians_against_finite_differences():
    model, x = small_network("f_fc_conv"), small_data(2)[0]
    found, logits = jacobians(model, x)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:40]
    with torch.no_grad():
        for index in chosen:
            sides = []
            for sign in (1, -1):
                moved = flat.clone()
                moved[index] += sign * 1e-6
                nn.utils.vector_to_parameters(moved, model.parameters())
                sides.append(model(x))
            nn.utils.vector_to_parameters(flat, model.parameters())
            difference = (sides[0] - sides[1]) / 2e-6
            assert (difference - found[:, :, index]).abs().max() < 1e-6
    lam = softmax_hessian(logits)
    assert_close(exact_ggn(model, x), sum(j.T @ m @ j for j, m in zip(found, lam, strict=True)))


def test_sampled_rows_are_one_an_image_and_unbiased():
    model, (x, _) = small_network("conv"), small_data(3)
    generator = torch.Generator().manual_seed(0)
    wanted = exact_ggn(model, x)
    draws = [ggn_rows(model, x, generator) for _ in range(300)]
    assert all(len(rows) == 3 for rows in draws)
    one, stacked = draws[0].mT @ draws[0], torch.cat(draws)
    mean = stacked.mT @ stacked / len(draws)
    assert relative_error(mean, wanted) < 0.1
    assert relative_error(one, wanted) > 0.1, "the control: a single draw"
