"""Plug-in predictions on a data set: negative log likelihood, accuracy, calibration."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import ImageSet

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """nll: nats a datum. accuracy: 0 to 1. calibration_error: expected, 0 to 1, over `CALIBRATION_BINS` equal bins."""

    nll: float
    accuracy: float
    calibration_error: float


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageSet, batch_size: int = 500) -> Scores:
    """Scores of the softmax of the model's logits."""
    log_probabilities = torch.cat([model(images).log_softmax(1) for images, _ in ordered_batches(data, batch_size)])
    return score(log_probabilities, data.labels)


def score(log_probabilities: Tensor, labels: Tensor) -> Scores:
    """Scores of predictive `log_probabilities (N, K)` against `labels (N,)`."""
    nll = -log_probabilities.gather(1, labels[:, None]).double().mean().item()
    confidence, predicted = log_probabilities.exp().max(1)
    correct = (predicted == labels).double()
    return Scores(nll, correct.mean().item(), _calibration_error(confidence.double(), correct))


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=bins.device).index_add_(
        0, bins, correct - confidence
    )
    return (gaps.abs().sum() / len(correct)).item()
