"""Plug-in predictions on a data set."""

import torch
from torch import Tensor, nn

from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.scores import Scores
from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import Samples


def evaluate(model: nn.Module, data: Samples, batch_size: int = 500, likelihood: Likelihood | None = None) -> Scores:
    """Scores of the model's outputs on `data`, by the likelihood; `Classification` if none is given."""
    return (likelihood or Classification()).scores(outputs_of(model, data, batch_size), data.targets)


@torch.no_grad()
def outputs_of(model: nn.Module, data: Samples, batch_size: int = 500) -> Tensor:
    """The model's outputs `(N, K)` on `data`."""
    return torch.cat([model(inputs) for inputs, _ in ordered_batches(data, batch_size)])
