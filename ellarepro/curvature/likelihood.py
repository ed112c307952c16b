"""What a network's outputs say of the data: softmax classification, or Gaussian regression with learned noise.

A likelihood has a loss whose sum over the data is all that the evidence needs of them, the Hessian Lambda of that loss
in the outputs, and a factor on both: one for classification, the noise's precision for regression. So the curvature is
fitted once, at factor one, and the noise learned with the prior's precisions.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.columns import Columns, LambdaSquareRoot, SignedColumns, UnitColumns


class Likelihood:
    """p(targets | outputs). Subclasses: `Classification`, `Regression`."""

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

    def precision(self) -> Tensor | float:
        """The factor on losses and Lambda; differentiable where it is learned."""
        return 1.0

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        """log p(D | outputs) in nats of `data_size` data with `width` outputs, from the sum of their losses."""
        raise NotImplementedError

    def hyperparameters(self) -> list[Tensor]:
        """What is learned beside the prior's log precisions."""
        return []


class Classification(Likelihood):
    """Softmax over K logits, one class a sample: `targets (B,)` from 0 to K - 1. The loss is the cross-entropy."""

    def check_outputs(self, outputs: Tensor, samples: int) -> None:
        super().check_outputs(outputs, samples)
        if outputs.shape[1] < 2:
            raise ValueError(
                f"classification needs at least 2 logits a sample, got {outputs.shape[1]}: give two classes two logits"
            )

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """ValueError unless `targets` are classes `(B,)` from 0 to K - 1."""
        samples, classes = outputs.shape
        if targets.shape != (samples,) or targets.dtype != torch.int64:
            raise ValueError(
                f"classification needs int64 labels of shape ({samples},), got {targets.dtype} {tuple(targets.shape)}"
            )
        least, most = torch.stack(targets.aminmax()).tolist()
        if least < 0 or most >= classes:
            raise ValueError(f"labels must be from 0 to {classes - 1}, one a logit; got labels from {least} to {most}")

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
        return F.cross_entropy(outputs, targets, reduction="none")

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        return -torch.as_tensor(total_loss, dtype=torch.float64, device="cpu")


class Regression(Likelihood):
    """Targets `(B, K)` are outputs plus Gaussian noise of one precision beta. The loss is half the squared error.

    Args:
        noise_precision: beta at the start, 1 / variance.
        learned: whether beta is learned.

    Attributes:
        log_noise_precision: log beta, float64, on the CPU.

    Raises:
        ValueError: a noise precision that is not positive, or not finite.
    """

    def __init__(self, noise_precision: float = 1.0, learned: bool = True):
        if not 0 < noise_precision < math.inf:
            raise ValueError(f"noise_precision must be positive and finite, got {noise_precision}")
        noise = torch.tensor(noise_precision, dtype=torch.float64, device="cpu")
        self.log_noise_precision = noise.log().requires_grad_(learned)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise, in units of the targets."""
        return self.log_noise_precision.detach().mul(-0.5).exp().item()

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """ValueError unless `targets` are finite and of the outputs' shape."""
        if targets.shape != outputs.shape or not targets.is_floating_point():
            hint = ": give them a last axis, unsqueeze(1)" if targets.ndim == 1 and outputs.shape[1] == 1 else ""
            raise ValueError(
                f"regression needs floating-point targets of the outputs' shape {tuple(outputs.shape)}, "
                f"got {targets.dtype} {tuple(targets.shape)}{hint}"
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

    def precision(self) -> Tensor:
        return self.log_noise_precision.exp()

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        normaliser = data_size * width * (self.log_noise_precision - math.log(2 * math.pi)) / 2
        return normaliser - self.precision() * total_loss

    def hyperparameters(self) -> list[Tensor]:
        return [self.log_noise_precision] if self.log_noise_precision.requires_grad else []


def softmax_hessian(logits: Tensor) -> Tensor:
    """Lambda = diag(p) - p p^T, `(B, K, K)`, of the negative log likelihood in the logits `(B, K)`."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


LIKELIHOODS = {"classification": Classification, "regression": Regression}
