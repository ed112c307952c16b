"""The differentiable Laplace approximation of the log marginal likelihood (eq. 9), as an object.

    log p(D|eta) ~ log p(D|theta) - 1/2 sum_l delta_l |theta_l|^2 + 1/2 sum_l P_l log delta_l - 1/2 log|H + diag(delta)|

The constants in 2 pi cancel between the prior and the Gaussian integral. With curvature, weights and data loss fixed it
is a function of eta = log delta alone, so a fit is paid once and hyper-steps are nearly free.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.fitting import gatherer_of
from ellarepro.curvature.spectra import Curvature
from ellarepro.data.batches import ordered_batches
from ellarepro.data.dataset import ImageSet
from ellarepro.prior import LayerwisePrior
from ellarepro.settings import DEFAULT_FIT, FitSettings


@dataclass(frozen=True)
class Evidence:
    """Parts of log p(D|eta) in nats, summed over the data: `value = data_fit + log_prior + log_det`.

    Attributes:
        data_fit: log p(D|theta).
        log_prior: -1/2 sum_l delta_l |theta_l|^2.
        log_det: 1/2 sum_l P_l log delta_l - 1/2 log|H + diag(delta)|; never positive.
    """

    data_fit: Tensor
    log_prior: Tensor
    log_det: Tensor
    data_size: int

    @property
    def value(self) -> Tensor:
        """log p(D|eta) in nats."""
        return self.data_fit + self.log_prior + self.log_det

    @property
    def negative_per_datum(self) -> float:
        """-log p(D|eta) / N, the number that the paper's tables report."""
        return -self.value.item() / self.data_size


class MarginalLikelihood:
    """The evidence as a function of the log precisions, at fixed weights.

    Args:
        curvature: H of the whole training set.
        negative_log_likelihood: of the whole training set, in nats, summed.
        squared_norms: |theta_l|^2, `(L,)`.
        data_size: N.
    """

    def __init__(
        self,
        curvature: Curvature,
        negative_log_likelihood: float,
        squared_norms: Tensor,
        data_size: int,
    ):
        self.curvature = curvature
        self.negative_log_likelihood = negative_log_likelihood
        self.squared_norms = squared_norms
        self.data_size = data_size

    def evidence(self, log_precision: Tensor) -> Evidence:
        """The evidence at `log_precision (L,)`, differentiable in it."""
        deltas = log_precision.exp()
        return Evidence(
            data_fit=torch.tensor(-self.negative_log_likelihood, dtype=torch.float64),
            log_prior=-(deltas * self.squared_norms).sum() / 2,
            log_det=-self.curvature.log_det_ratio(deltas) / 2,
            data_size=self.data_size,
        )

    def ascend(self, log_precision: Tensor, optimiser: torch.optim.Optimizer, steps: int) -> None:
        """Take `steps` steps of `optimiser` up the evidence per datum; changes `log_precision` in place."""
        for _ in range(steps):
            optimiser.zero_grad()
            (-self.evidence(log_precision).value / self.data_size).backward()
            optimiser.step()

    def effective_parameters(self, log_precision: Tensor) -> Tensor:
        """Effective number of parameters of each tensor, `(L,)`: sum over i of lambda_i / (lambda_i + delta_l).

        Taken as minus the derivative of log|H + D| - log|D| in eta_l: the same sum, for every structure.
        """
        eta = log_precision.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.curvature.log_det_ratio(eta.exp()), eta)
        return -slope


class Fit:
    """A fit of the curvature in the making: batch by batch, so that it can stop between two of them and continue.

    First come the batches that the curvature is gathered from, then those of the loss of the whole training set.

    Args:
        data: the whole training set, without augmentation.
        settings: what is gathered, and from how much.
        generator: of sampled passes, on the data's device.

    Attributes:
        done: batches so far.

    Raises:
        ValueError: `structure=full` for a large network, sampled passes without a generator.
    """

    def __init__(
        self,
        model: nn.Module,
        prior: LayerwisePrior,
        data: ImageSet,
        settings: FitSettings = DEFAULT_FIT,
        generator: torch.Generator | None = None,
    ):
        self.model, self.prior, self.data, self.settings = model, prior, data, settings
        self.gatherer = gatherer_of(model, settings, generator)
        self.losses: list[Tensor] = []
        self.done = 0
        self._gathered_from = min(settings.fit_size or len(data), len(data))

    def __len__(self) -> int:
        return self._gathering + math.ceil(len(self.data) / self.settings.batch_size)

    @property
    def _gathering(self) -> int:
        return math.ceil(self._gathered_from / self.settings.batch_size)

    def advance(self) -> None:
        """Take the next batch."""
        size = self.settings.batch_size
        if self.done < self._gathering:
            start = self.done * size
            self.gatherer.update(self.data.images[start : min(start + size, self._gathered_from)])
        else:
            start = (self.done - self._gathering) * size
            batch = slice(start, start + size)
            self.losses.append(_batch_loss(self.model, self.data.images[batch], self.data.labels[batch]))
        self.done += 1

    def result(self) -> MarginalLikelihood:
        """What was fitted, once all batches are taken.

        Raises:
            CurvatureError: the curvature is not finite.
        """
        loss, size = torch.stack(self.losses).sum().item(), len(self.data)
        return MarginalLikelihood(self.gatherer.curvature(size), loss, self.prior.squared_norms(), size)

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, as tensors and plain values."""
        return {"done": self.done, "losses": self.losses, "gatherer": self.gatherer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it."""
        device = self.data.labels.device
        self.done, self.losses = state["done"], [loss.to(device) for loss in state["losses"]]
        self.gatherer.load_state_dict(state["gatherer"], device)


def fit(
    model: nn.Module,
    prior: LayerwisePrior,
    data: ImageSet,
    settings: FitSettings = DEFAULT_FIT,
    generator: torch.Generator | None = None,
) -> MarginalLikelihood:
    """Fit the curvature at the current weights, in one go; arguments as of `Fit`.

    Raises:
        CurvatureError: the curvature is not finite.
        ValueError: `structure=full` for a large network, sampled passes without a generator.
    """
    whole = Fit(model, prior, data, settings, generator)
    for _ in range(len(whole)):
        whole.advance()
    return whole.result()


def total_loss(model: nn.Module, data: ImageSet, batch_size: int) -> float:
    """Negative log likelihood of `data` in nats, summed, accumulated in float64."""
    losses = [_batch_loss(model, images, labels) for images, labels in ordered_batches(data, batch_size)]
    return torch.stack(losses).sum().item()


@torch.no_grad()
def _batch_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels, reduction="none").double().sum()
