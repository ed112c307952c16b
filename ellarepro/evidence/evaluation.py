"""Plug-in predictions on a data set."""

import torch
from torch import nn

from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.scores import Scores
from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import Samples


@torch.no_grad()
def evaluate(model: nn.Module, data: Samples, batch_size: int = 500, likelihood: Likelihood | None = None) -> Scores:
    """Scores of the model's outputs on `data`, by the likelihood; `Classification` if none is given."""
    outputs = torch.cat([model(inputs) for inputs, _ in ordered_batches(data, batch_size)])
    return (likelihood or Classification()).scores(outputs, data.targets)
