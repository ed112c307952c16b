"""The linearised predictive against sampling with explicit Jacobians and a dense posterior covariance."""

import torch
from helpers import relative_error, small_data, small_network

from ellarepro.curvature.exact import jacobians
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.data import Samples
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.predictive import evaluate_linearised, predict, weight_deviations


def posterior(model, images, delta: float):
    ggn = GGN(model, tolerance=0)
    ggn.update(images)
    decomposed = BlockKron.from_blocks(ggn.blocks(len(images))).decompose()
    return decomposed + torch.full((len(decomposed),), delta, dtype=torch.float64)


def test_functions_are_the_jacobian_times_the_deviation():
    model, (images, _) = small_network(), small_data(4)
    deviations = weight_deviations(model, posterior(model, images, 2.0), 3, torch.Generator().manual_seed(0))
    jacobian, logits = jacobians(model, images)
    flat = [torch.cat([piece.flatten() for piece in d.values()]) for d in deviations]
    wanted = torch.stack([(logits + jacobian @ epsilon).softmax(1) for epsilon in flat]).mean(0)
    assert relative_error(predict(model, deviations, images).exp(), wanted.detach()) < 1e-10
    zero = [{name: torch.zeros_like(value) for name, value in d.items()} for d in deviations]
    assert relative_error(predict(model, zero, images).exp(), wanted.detach()) > 1e-3, "the control: no deviation"


def test_deviations_have_the_posterior_covariance():
    model, (images, _) = small_network("conv", in_channels=1), small_data(4)
    for p in model.parameters():
        p.requires_grad_(p is model.blocks[0].paths["conv"].weight)
    precision = posterior(model, images, 0.5)
    draws = weight_deviations(model, precision, 20_000, torch.Generator().manual_seed(1))
    samples = torch.stack([torch.cat([piece.flatten() for piece in d.values()]) for d in draws])
    covariance = samples.T @ samples / len(samples)
    assert relative_error(covariance, precision.to_matrix(exponent=-1)) < 0.05
    assert relative_error(covariance, torch.eye(len(covariance), dtype=torch.float64)) > 0.5, (
        "the control: the identity"
    )


def test_a_sharp_posterior_is_the_plug_in_prediction():
    model, (images, labels) = small_network(), small_data(8)
    data = Samples(images, labels)
    plug_in = evaluate(model, data)

    def linearised(delta: float):
        deviations = weight_deviations(model, posterior(model, images, delta), 10, torch.Generator().manual_seed(0))
        return evaluate_linearised(model, deviations, data)

    assert abs(linearised(1e12).nll - plug_in.nll) < 1e-4
    assert abs(linearised(1.0).nll - plug_in.nll) > 1e-3, "the control: a broad posterior"
