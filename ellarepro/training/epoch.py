"""The middle of an epoch: what a checkpoint holds so that a run goes on from any step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.errors import RunFailure


@dataclass
class EpochProgress:
    """How far an epoch is.

    Attributes:
        order: of the samples, as the training batches take it.
        steps: of the whole epoch.
        loss_sum: summed over the samples so far.
        right: what the likelihood's measure is made of, summed over the samples so far.
        first_bad: the first step with a non-finite loss; `steps` where there is none.
        step: steps so far.
        metrics: of the training, once all steps are taken.
    """

    order: Tensor
    steps: int
    loss_sum: Tensor
    right: Tensor
    first_bad: Tensor
    step: int = 0
    metrics: dict[str, float] | None = None

    @classmethod
    def start(cls, order: Tensor, steps: int, device: torch.device) -> "EpochProgress":
        """The beginning of an epoch of `steps` steps on `device`."""
        zero = torch.zeros((), device=device)
        right = torch.zeros((), dtype=torch.float64, device=device)
        return cls(order, steps, zero, right, torch.full((), steps, device=device))

    def count(self, loss: Tensor, right: Tensor, samples: int) -> None:
        """Count a step of so many samples, by their mean loss."""
        self.loss_sum += loss * samples
        self.right += right
        self.first_bad = torch.where(torch.isfinite(loss), self.first_bad, self.first_bad.clamp_max(self.step))
        self.step += 1

    def check_finite(self, model: nn.Module, epoch: int, remedy: str) -> None:
        """Nothing, if the losses so far and the weights of `model` are finite.

        Raises:
            RunFailure: training diverged; it names the step and what to change, the `remedy`.
        """
        first_bad = int(self.first_bad.item())
        bad_tensor = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
        if first_bad >= self.steps and bad_tensor is None:
            return
        where = first_bad + 1 if first_bad < self.steps else self.step
        raise RunFailure(
            f"training diverged in epoch {epoch + 1}, step {where} of {self.steps}: the loss is not finite"
            + (f" and {bad_tensor} is the first tensor with non-finite entries" if bad_tensor else "")
            + (
                "; it was so before any step was taken: look at the data and at the scales the network starts with"
                if epoch == 0 and first_bad == 0
                else f"; {remedy}"
            )
        )

    def to(self, device: torch.device) -> "EpochProgress":
        """The same place on another device."""
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in vars(self).items()}
        return EpochProgress(**moved)
