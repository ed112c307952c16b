"""What predictions are worth: negative log likelihood; accuracy and calibration of classes, the error of values."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """What a likelihood does not have is None.

    Attributes:
        nll: nats a datum.
        accuracy: of classes, 0 to 1.
        calibration_error: of classes, expected, 0 to 1, over `CALIBRATION_BINS` equal bins.
        rmse: of values, root of the mean squared error, in the targets' unit.
    """

    nll: float
    accuracy: float | None = None
    calibration_error: float | None = None
    rmse: float | None = None

    def known(self) -> dict[str, float]:
        """Those that there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def class_scores(log_probabilities: Tensor, classes: Tensor) -> Scores:
    """Scores of predictive `log_probabilities (N, K)` against `classes (N,)`."""
    nll = -log_probabilities.gather(1, classes[:, None]).double().mean().item()
    confidence = log_probabilities.exp().amax(1)
    correct = correct_classes(log_probabilities, classes).double()
    return Scores(nll, correct.mean().item(), _calibration_error(confidence.double(), correct))


def correct_classes(log_probabilities: Tensor, classes: Tensor) -> Tensor:
    """Whether the most probable class is the right one: `(N,)`, of `log_probabilities (N, K)` and `classes (N,)`."""
    return log_probabilities.exp().max(1).indices == classes


def value_scores(means: Tensor, values: Tensor, precision: Tensor | float, unit: Tensor) -> Scores:
    """Scores of Gaussian predictions `means (N, K)` against `values (N, K)`, both divided by their `unit (K,) or (1,)`.

    Args:
        precision: of the predictions, a number or `(N, K)`, in units of `values`.
    """
    precision = torch.as_tensor(precision, dtype=torch.float64, device=means.device).expand(means.shape)
    squared = (means - values).double().square()
    nll = (precision * squared - precision.log() + math.log(2 * math.pi)) / 2 + unit.double().log()
    return Scores(nll.sum(1).mean().item(), rmse=(squared * unit.double().square()).mean().sqrt().item())


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=bins.device).index_add_(
        0, bins, correct - confidence
    )
    return (gaps.abs().sum() / len(correct)).item()
