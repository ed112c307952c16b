"""Draws from the posterior of the kernel's rows beside the inverse of the dense matrix."""

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network
from torch import nn

from ellarepro.curvature.exact import exact_ggn, trainable
from ellarepro.evidence.kernel_posterior import KernelPosterior


def covariance(posterior, model):
    """That of epsilon, from its values at the unit draws of e and of z: `(P, P)`."""
    named = trainable(model)
    sizes, rows = [p.numel() for p in named.values()], len(posterior.root)
    spread = torch.cat([torch.full_like(p, posterior.deltas[n] ** -0.5).flatten() for n, p in named.items()])
    units = torch.cat([spread.diag(), torch.zeros(rows, sum(sizes), dtype=torch.float64)])
    noise = torch.cat([torch.zeros(sum(sizes), rows, dtype=torch.float64), torch.eye(rows, dtype=torch.float64)])
    parts = [dict(zip(named, one.split(sizes), strict=True)) for one in units]
    prior = [{name: part.view_as(named[name]) for name, part in one.items()} for one in parts]
    found = [torch.cat([part.flatten() for part in one.values()]) for one in posterior.conditioned(prior, noise)]
    return torch.stack(found).T @ torch.stack(found)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(6, 4).double()


def convolutions():
    model, (x, _) = small_network("conv"), small_data(3)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("blocks.2"))
    return model, x


@pytest.mark.parametrize("problem", [linear, convolutions])
def test_the_covariance_of_draws_is_the_inverse_of_the_dense_matrix(problem):
    model, x = problem()
    sizes = torch.tensor([p.numel() for p in trainable(model).values()])
    deltas = torch.linspace(0.05, 1, len(sizes), dtype=torch.float64)
    prior = deltas.repeat_interleave(sizes)
    wanted = torch.linalg.inv(exact_ggn(model, x) + prior.diag())
    posterior = KernelPosterior(model, deltas, x, 1000, torch.Generator().manual_seed(0))
    assert_close(covariance(posterior, model), wanted, 1e-9)
    assert relative_error((1 / prior).diag(), wanted) > 0.05, "the control: the prior"
    drawn = torch.cat(
        [torch.cat([p.flatten() for p in one.values()]) for one in posterior.draw(200, torch.Generator())]
    )
    assert drawn.square().mean() == pytest.approx(wanted.diagonal().mean().item(), rel=0.15)


def test_fewer_rows_leave_a_covariance_that_is_too_large_in_the_mean():
    model, x = linear()
    deltas, generator = torch.full((4,), 0.2, dtype=torch.float64), torch.Generator().manual_seed(0)
    exact = torch.linalg.inv(exact_ggn(model, x) + 0.2 * torch.eye(43)).trace()
    traces = [covariance(KernelPosterior(model, deltas, x, 6, generator), model).trace() for _ in range(60)]
    found, error = torch.stack(traces).mean(), torch.stack(traces).std() / 60**0.5
    assert found > exact + 3 * error
    rows = [len(KernelPosterior(model, deltas, x, count, generator).root) for count in (6, 12, 1000)]
    assert rows == [6, 12, 12]
