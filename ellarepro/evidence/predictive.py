"""The linearised posterior predictive: functions f(x) + J(x) epsilon with epsilon from the Laplace posterior.

Samples are taken in function space by forward-mode products, one per weight sample and batch; no Jacobian is stored.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ellarepro.curvature.exact import jacobians, trainable
from ellarepro.curvature.likelihood import Classification, Likelihood, Regression
from ellarepro.curvature.memory import out_of_memory
from ellarepro.curvature.posterior import PosteriorPrecision
from ellarepro.curvature.scores import Scores, class_scores, value_scores
from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import Samples

_JACOBIAN_ENTRIES = 2**26
"""Entries of the Jacobians that are held at a time."""
_INPUTS = 250
"""Inputs that pass through the network at a time, where no Jacobian is held."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of each sample, and how sure that is.

    Attributes:
        mean: `(B, K)`: class probabilities, summing to one, or the mean of the outputs.
        std: `(B, K)`: spread of the probabilities over the posterior, or of the targets, noise included.
    """

    mean: Tensor
    std: Tensor


def weight_deviations(
    model: nn.Module, posterior: PosteriorPrecision, samples: int, generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """`samples` draws of epsilon ~ N(0, P^-1), each by parameter name.

    Args:
        posterior: P, curvature plus prior precisions, in the order of `model.parameters()`.
        generator: on the model's device.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for _, p in named]
    draws = []
    for _ in range(samples):
        noise = torch.randn(1, 1, sum(sizes), generator=generator, device=named[0][1].device, dtype=named[0][1].dtype)
        flat = posterior.bmm(noise, exponent=-0.5)[0, 0]
        pieces = flat.split(sizes)
        draws.append({name: piece.view_as(p) for (name, p), piece in zip(named, pieces, strict=True)})
    return draws


@torch.no_grad()
def sampled_outputs(model: nn.Module, deviations: list[dict[str, Tensor]], inputs: Tensor) -> Tensor:
    """f(x) + J(x) epsilon for each of S deviations: `(S, B, K)`."""
    parameters = trainable(model)

    def outputs_of(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (inputs,))

    try:
        with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no forward-mode products.
            return torch.stack([sum(torch.func.jvp(outputs_of, (parameters,), (one,))) for one in deviations])
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        # A custom `autograd.Function` or a checkpoint, say, which have no forward mode.
        return _sampled_by_jacobians(model, deviations, inputs)


def _sampled_by_jacobians(model: nn.Module, deviations: list[dict[str, Tensor]], inputs: Tensor) -> Tensor:
    epsilon = torch.stack([torch.cat([part.flatten() for part in one.values()]) for one in deviations])
    parts = [jacobians(model, part) for part in _few_jacobians(model, inputs)]
    return torch.cat([outputs + (jacobian @ epsilon.mT).permute(2, 0, 1) for jacobian, outputs in parts], dim=1)


def _few_jacobians(model: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """`inputs` in parts whose Jacobians are small enough to be held."""
    entries = model(inputs[:1]).numel() * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return inputs.split(max(1, _JACOBIAN_ENTRIES // entries))


def predict(model: nn.Module, deviations: list[dict[str, Tensor]], images: Tensor) -> Tensor:
    """Log probabilities `(B, K)` of the mean over samples of softmax(f(x) + J(x) epsilon)."""
    functions = sampled_outputs(model, deviations, images).log_softmax(2)
    return functions.logsumexp(0) - math.log(len(functions))


def predict_classes(
    model: nn.Module, deviations: list[dict[str, Tensor]], inputs: Tensor, likelihood: Likelihood
) -> Prediction:
    """Mean and spread of the likelihood's probabilities at f(x) + J(x) epsilon."""
    parts = [likelihood.probabilities(sampled_outputs(model, deviations, part)) for part in inputs.split(_INPUTS)]
    return Prediction(torch.cat([part.mean(0) for part in parts]), torch.cat([part.std(0) for part in parts]))


@torch.no_grad()
def predict_outputs(
    model: nn.Module, posterior: PosteriorPrecision, inputs: Tensor, noise_variance: float
) -> Prediction:
    """f(x), and the root of the diagonal of J P^-1 J^T plus the noise: exact, a few Jacobians at a time."""
    means, variances = [], []
    for part in _few_jacobians(model, inputs):
        jacobian, outputs = jacobians(model, part)
        means.append(outputs)
        variances.append((posterior.bmm(jacobian, exponent=-1) * jacobian).sum(2))
    return Prediction(torch.cat(means), (torch.cat(variances) + noise_variance).sqrt())


def evaluate_linearised(
    model: nn.Module, deviations: list[dict[str, Tensor]], data: Samples, batch_size: int = _INPUTS
) -> Scores:
    """Scores of the linearised predictive on `data`."""
    predictions = [predict(model, deviations, images) for images, _ in ordered_batches(data, batch_size)]
    return class_scores(torch.cat(predictions), data.targets)


def linearised_scores(
    model: nn.Module,
    posterior: PosteriorPrecision,
    data: Samples,
    likelihood: Likelihood,
    samples: int,
    generator: torch.Generator,
) -> Scores:
    """Scores of the linearised predictive on `data`: by `samples` functions for classes, exact for values.

    Raises:
        ValueError: a likelihood without such a predictive.
    """
    if isinstance(likelihood, Classification):
        return evaluate_linearised(model, weight_deviations(model, posterior, samples, generator), data)
    if not isinstance(likelihood, Regression):
        raise ValueError(f"there is no linearised predictive for {type(likelihood).__name__}")
    predicted = predict_outputs(model, posterior, data.inputs, 1 / float(likelihood.precision().detach()))
    return value_scores(predicted.mean, data.targets, predicted.std.double() ** -2, likelihood.unit.to(data.inputs))
