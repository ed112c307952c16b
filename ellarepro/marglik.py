"""The differentiable Laplace approximation of the log marginal likelihood (eq. 9), as an object.

    log p(D|eta) ~ log p(D|theta) - 1/2 sum_l delta_l |theta_l|^2 + 1/2 sum_l P_l log delta_l - 1/2 log|H + diag(delta)|

The constants in 2 pi cancel between the prior and the Gaussian integral. With curvature, weights and data loss fixed it
is a function of eta = log delta alone, so a fit is paid once and hyper-steps are nearly free.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ellarepro.curvature.fitting import gatherer_of
from ellarepro.curvature.hooks import evaluation_mode
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


def fit(
    model: nn.Module,
    prior: LayerwisePrior,
    data: ImageSet,
    settings: FitSettings = DEFAULT_FIT,
    generator: torch.Generator | None = None,
) -> MarginalLikelihood:
    """Fit the curvature at the current weights; the loss is that of the same forward passes, and of the rest's own.

    Args:
        data: the whole training set, without augmentation.
        settings: what is gathered, and from how much.
        generator: of sampled passes, on the data's device.

    Raises:
        CurvatureError: the curvature is not finite.
        ValueError: `structure=full` for a large network, sampled passes without a generator.
    """
    size = len(data) if settings.fit_size is None else min(settings.fit_size, len(data))
    used, rest = (ImageSet(data.images[part], data.labels[part]) for part in (slice(size), slice(size, None)))
    gatherer = gatherer_of(model, settings, generator)
    losses = [
        _summed_loss(gatherer.update(images), labels) for images, labels in ordered_batches(used, settings.batch_size)
    ]
    loss = torch.stack(losses).sum().item()
    if len(rest):
        loss += total_loss(model, rest, settings.batch_size)
    return MarginalLikelihood(gatherer.curvature(len(data)), loss, prior.squared_norms(), len(data))


@torch.no_grad()
def total_loss(model: nn.Module, data: ImageSet, batch_size: int) -> float:
    """Negative log likelihood of `data` in nats, summed, accumulated in float64; the model in evaluation mode."""
    with evaluation_mode(model):
        losses = [_summed_loss(model(images), labels) for images, labels in ordered_batches(data, batch_size)]
    return torch.stack(losses).sum().item()


def _summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none").double().sum()
