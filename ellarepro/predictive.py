"""The linearised posterior predictive: functions f(x) + J(x) epsilon with epsilon from the Laplace posterior.

Samples are taken in function space by forward-mode products, one per weight sample and batch; no Jacobian is stored.
"""

import math

import torch
from torch import Tensor, nn

from ellarepro.curvature.kron import BlockKronDecomposed
from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import ImageSet
from ellarepro.evaluation import Scores, score


def weight_deviations(
    model: nn.Module, posterior_precision: BlockKronDecomposed, samples: int, generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """`samples` draws of epsilon ~ N(0, P^-1), each by parameter name.

    Args:
        posterior_precision: P, curvature plus prior precisions, in the order of `model.parameters()`.
        generator: on the model's device.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for _, p in named]
    draws = []
    for _ in range(samples):
        noise = torch.randn(1, 1, sum(sizes), generator=generator, device=named[0][1].device, dtype=named[0][1].dtype)
        flat = posterior_precision.bmm(noise, exponent=-0.5)[0, 0]
        pieces = flat.split(sizes)
        draws.append({name: piece.view_as(p) for (name, p), piece in zip(named, pieces, strict=True)})
    return draws


@torch.no_grad()
def predict(model: nn.Module, deviations: list[dict[str, Tensor]], images: Tensor) -> Tensor:
    """Log probabilities `(B, K)` of the mean over samples of softmax(f(x) + J(x) epsilon)."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def logits_of(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (images,))

    functions = []
    for deviation in deviations:
        logits, change = torch.func.jvp(logits_of, (parameters,), (deviation,))
        functions.append((logits + change).log_softmax(1))
    return torch.stack(functions).logsumexp(0) - math.log(len(functions))


def evaluate_linearised(
    model: nn.Module, deviations: list[dict[str, Tensor]], data: ImageSet, batch_size: int = 250
) -> Scores:
    """Scores of the linearised predictive on `data`."""
    predictions = [predict(model, deviations, images) for images, _ in ordered_batches(data, batch_size)]
    return score(torch.cat(predictions), data.labels)
