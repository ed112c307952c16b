"""What a network's outputs say of the data: softmax classification, or Gaussian regression with learned noise.

A likelihood has a loss whose sum over the data is all that the evidence needs of them, the Hessian Lambda of that loss
in the outputs, and a factor on both: one for classification, the noise's precision for regression. So the curvature is
fitted once, at factor one, and the noise learned with the prior's precisions.
"""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.columns import Columns, LambdaSquareRoot, SignedColumns, UnitColumns
from ellarepro.curvature.scores import Scores, class_scores, value_scores


class Likelihood:
    """p(targets | outputs). Subclasses: `Classification`, `Bernoulli`, `Regression`.

    Attributes:
        measure: what is told of training beside the loss, `accuracy` or `rmse`: see `right`.
    """

    measure: ClassVar[str]

    def check_outputs(self, outputs: Tensor, samples: int) -> None:
        """ValueError unless `outputs` of a batch of `samples` are of the form that the likelihood takes."""
        if not isinstance(outputs, Tensor):
            raise ValueError(f"the network must return one tensor of outputs, got {type(outputs).__name__}")
        if outputs.ndim != 2 or len(outputs) != samples:
            raise ValueError(
                f"the network must map {samples} samples to outputs ({samples}, K), got {tuple(outputs.shape)}"
            )

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """ValueError unless `targets` are what `outputs (B, K)` can be compared with."""
        raise NotImplementedError

    def columns(
        self, outputs: Tensor, tolerance: float, passes: int | None, generator: torch.Generator | None
    ) -> Columns:
        """Columns of a root of Lambda at `outputs (B, K)`; the options are those of `GGN`."""
        raise NotImplementedError

    def most_columns(self, width: int) -> int:
        """Columns of a root of Lambda for `width` outputs."""
        return width

    def hessian(self, outputs: Tensor) -> Tensor:
        """Lambda `(B, K, K)`, the Hessian of `losses` in `outputs (B, K)`."""
        raise NotImplementedError

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(B,)`: the loss of each sample."""
        raise NotImplementedError

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of `losses` over a batch, which training descends."""
        return self.losses(outputs, targets).mean()

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What `measure` is made of, summed over a batch."""
        raise NotImplementedError

    def measured(self, right: float, data_size: int) -> float:
        """`measure` of `data_size` data, from the sum of `right`."""
        raise NotImplementedError

    def scores(self, outputs: Tensor, targets: Tensor) -> Scores:
        """What plug-in predictions by `outputs (N, K)` are worth."""
        raise NotImplementedError

    def guessing_loss(self, targets: Tensor) -> float:
        """The loss a datum that a constant prediction of `targets` can reach at best."""
        raise NotImplementedError

    def weights(self, targets: Tensor) -> Tensor | None:
        """`(B,)`: how often each sample counts, in its loss and its Lambda; None where all count once."""
        return None

    def probabilities(self, outputs: Tensor) -> Tensor:
        """What `predict` gives of outputs `(..., K)`."""
        raise NotImplementedError

    def fit_noise(self, loss: float, width: int) -> None:
        """Set what is learned beside the precisions to the maximum of the likelihood at this `loss` a datum."""

    def precision(self) -> Tensor | float:
        """The factor on losses and Lambda; differentiable where it is learned."""
        return 1.0

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        """log p(D | outputs) in nats of `data_size` data with `width` outputs, from the sum of their losses."""
        raise NotImplementedError

    def hyperparameters(self) -> list[Tensor]:
        """What is learned beside the prior's log precisions."""
        return []

    def start(self, losses: Tensor, width: int) -> None:
        """Begin where `losses (B,)` of the first data with `width` outputs say, unless there was a start."""


class Classification(Likelihood):
    """Softmax over K logits, one class a sample: `targets (B,)` from 0 to K - 1. The loss is the cross-entropy.

    Args:
        class_weights: `(K,)`, positive: a sample of class k counts as `class_weights[k]` samples, in the loss and in
            the curvature. The evidence is then that of so many data; weights of mean one keep its size.

    Raises:
        ValueError: class weights that are not of one axis, or not positive.
    """

    measure = "accuracy"

    def __init__(self, class_weights: Tensor | None = None):
        if class_weights is not None and not (class_weights.ndim == 1 and (class_weights > 0).all()):
            raise ValueError(f"class_weights must be positive, of shape (K,); got {class_weights}")
        self.class_weights = class_weights

    def check_outputs(self, outputs: Tensor, samples: int) -> None:
        super().check_outputs(outputs, samples)
        if outputs.shape[1] < 2:
            raise ValueError(
                f"classification needs at least 2 logits a sample, got {outputs.shape[1]}; bernoulli takes 1"
            )
        if self.class_weights is not None and len(self.class_weights) != outputs.shape[1]:
            raise ValueError(f"class_weights must be {outputs.shape[1]}, one a logit; got {len(self.class_weights)}")

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """ValueError unless `targets` are classes `(B,)` from 0 to K - 1."""
        _check_labels(targets, *outputs.shape)

    def columns(
        self, outputs: Tensor, tolerance: float, passes: int | None, generator: torch.Generator | None
    ) -> Columns:
        if passes is None:
            return LambdaSquareRoot(outputs, tolerance)
        return SignedColumns(outputs, passes, cast(torch.Generator, generator))

    def most_columns(self, width: int) -> int:
        return width - 1

    def hessian(self, outputs: Tensor) -> Tensor:
        return softmax_hessian(outputs)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(outputs)
        return F.cross_entropy(outputs, targets, weights, reduction="none")

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) if self.class_weights is None else super().mean_loss(outputs, targets)

    def weights(self, targets: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        _check_labels(targets, len(targets), len(self.class_weights))
        return self.class_weights.to(targets.device)[targets]

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many samples are classified rightly."""
        return (outputs.argmax(1) == targets).sum()

    def measured(self, right: float, data_size: int) -> float:
        """The accuracy, 0 to 1."""
        return right / data_size

    def scores(self, outputs: Tensor, targets: Tensor) -> Scores:
        return class_scores(outputs.log_softmax(1), targets)

    def guessing_loss(self, targets: Tensor) -> float:
        """The entropy of the classes, nats."""
        shares = targets.bincount() / len(targets)
        return torch.special.entr(shares.double()).sum().item()

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        return -torch.as_tensor(total_loss, dtype=torch.float64, device="cpu")


class Regression(Likelihood):
    """Targets `(B, K)` are outputs plus Gaussian noise of one precision beta. The loss is half the squared error.

    Args:
        noise_precision: beta at the start, 1 / variance; if not given, what the residuals say.
        learned: whether beta is learned.
        unit: of each target, `(K,)`, where targets were divided by their spread: scores and evidence are in that unit.

    Attributes:
        log_noise_precision: log beta, float64, on the CPU.
        by_residuals: whether beta is where the residuals say, and not where it was given.
        started: whether it is there yet.

    Raises:
        ValueError: a noise precision that is not positive, or not finite, or one that is neither given nor learned.
    """

    measure = "rmse"

    def __init__(self, noise_precision: float | None = None, learned: bool = True, unit: Tensor | None = None):
        if noise_precision is None and not learned:
            raise ValueError("noise_precision must be given where it is not learned")
        self.by_residuals, self.started = noise_precision is None, noise_precision is not None
        noise_precision = 1.0 if noise_precision is None else noise_precision
        if not 0 < noise_precision < math.inf:
            raise ValueError(f"noise_precision must be positive and finite, got {noise_precision}")
        noise = torch.tensor(noise_precision, dtype=torch.float64, device="cpu")
        self.log_noise_precision = noise.log().requires_grad_(learned)
        self.unit = torch.ones(1, device="cpu") if unit is None else unit.detach().cpu().float()

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise, in units of the targets."""
        return self.log_noise_precision.detach().mul(-0.5).exp().item()

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """ValueError unless `targets` are finite and of the outputs' shape."""
        if targets.shape != outputs.shape or not targets.is_floating_point():
            raise ValueError(
                f"regression needs floating-point targets of the outputs' shape {tuple(outputs.shape)}, "
                f"got {targets.dtype} {tuple(targets.shape)}{last_axis_hint(targets, outputs)}"
            )
        if not torch.isfinite(targets).all():
            raise ValueError("targets must be finite")

    def columns(
        self, outputs: Tensor, tolerance: float, passes: int | None, generator: torch.Generator | None
    ) -> Columns:
        return UnitColumns(outputs, passes, generator)

    def hessian(self, outputs: Tensor) -> Tensor:
        """The identity."""
        return torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device).expand(len(outputs), -1, -1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1) / 2

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared error in the targets' unit, mean over outputs, summed over samples."""
        return ((outputs - targets) * self.unit.to(outputs)).square().mean(1).double().sum()

    def measured(self, right: float, data_size: int) -> float:
        """The root of the mean squared error, in the targets' unit."""
        return math.sqrt(right / data_size)

    def scores(self, outputs: Tensor, targets: Tensor) -> Scores:
        beta = float(self.precision().detach())
        return value_scores(outputs, targets, beta, self.unit.to(outputs))

    def guessing_loss(self, targets: Tensor) -> float:
        """Half the variance, summed over outputs."""
        return targets.double().var(0, correction=0).sum().item() / 2

    @torch.no_grad()
    def fit_noise(self, loss: float, width: int) -> None:
        """Set beta to the maximum of the likelihood: K over twice the mean loss."""
        if self.log_noise_precision.requires_grad and loss > 0:
            self.log_noise_precision.fill_(math.log(width / (2 * loss)))

    def precision(self) -> Tensor:
        return self.log_noise_precision.exp()

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        units = self.unit.double().log().expand(width).sum()
        normaliser = data_size * (width * (self.log_noise_precision - math.log(2 * math.pi)) / 2 - units)
        return normaliser - self.precision() * total_loss

    def hyperparameters(self) -> list[Tensor]:
        return [self.log_noise_precision] if self.log_noise_precision.requires_grad else []

    @torch.no_grad()
    def start(self, losses: Tensor, width: int) -> None:
        if not self.started:
            self.fit_noise(losses.double().mean().item(), width)
            self.started = True


def softmax_hessian(logits: Tensor) -> Tensor:
    """Lambda = diag(p) - p p^T, `(B, K, K)`, of the negative log likelihood in the logits `(B, K)`."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def last_axis_hint(targets: Tensor, outputs: Tensor) -> str:
    """The end of a message on targets `(B,)` for outputs `(B, 1)`."""
    return ": give them a last axis, unsqueeze(1)" if targets.ndim == 1 and outputs.shape[1] == 1 else ""


def _check_labels(targets: Tensor, samples: int, classes: int) -> None:
    if targets.shape != (samples,) or targets.dtype != torch.int64:
        got = f"{targets.dtype} {tuple(targets.shape)}"
        raise ValueError(f"classification needs int64 labels of shape ({samples},), got {got}")
    least, most = torch.stack(targets.aminmax()).tolist()
    if least < 0 or most >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, one a logit; got labels from {least} to {most}")
