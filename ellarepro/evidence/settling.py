"""Where the noise of a regression starts, when hyper-steps end, and whether they have arrived."""

from typing import cast

import torch
from torch import Tensor

from ellarepro.curvature.likelihood import Regression
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.evidence.prior import LayerwisePrior

MOST_STEPS = 2000
NOISE = "the noise"
_ARRIVED = 1e-3
"""Part of an effective number, of one at least, below which twice the evidence's slope counts as none."""
_ROUNDS = 40


@torch.no_grad()
def settle_noise(fitted: MarginalLikelihood, log_precision: Tensor) -> None:
    """Take a noise that was given no start to where the evidence has no slope in it, the precisions as they are.

    There beta = (N K - gamma) / (2 loss) (MacKay, 1992), and gamma, the effective number of all parameters, depends on
    beta: half a step of log beta is taken at a time. Of residuals that are zero nothing is known, and the noise stays.
    """
    likelihood, entries = fitted.likelihood, fitted.data_size * fitted.width
    if not isinstance(likelihood, Regression) or not likelihood.by_residuals or fitted.loss <= 0:
        return
    noise, likelihood.started = likelihood.log_noise_precision, True
    for _ in range(_ROUNDS):
        gamma = fitted.effective_parameters(log_precision).sum()
        wanted = ((entries - gamma).clamp_min(1e-3) / (2 * fitted.loss)).log()
        noise += (wanted - noise) / 2
        if (wanted - noise).abs() < 1e-4:
            break


@torch.enable_grad()
def ascend(
    fitted: MarginalLikelihood, prior: LayerwisePrior, optimiser: torch.optim.Optimizer, steps: int = MOST_STEPS
) -> list[str]:
    """Steps of `optimiser` up the evidence until it has no slope, at most `steps`.

    Returns:
        Names of the tensors in whose log precision it still has one, and `NOISE` where it is in the noise's.
    """
    for step in range(steps + 1):
        optimiser.zero_grad()
        (-fitted.evidence(prior.log_precision).value / fitted.data_size).backward()
        left = _slopes_left(fitted, prior)
        if not left or step == steps:
            return left
        optimiser.step()
    return []


def _slopes_left(fitted: MarginalLikelihood, prior: LayerwisePrior) -> list[str]:
    """As `ascend` returns, by the gradients that are there."""
    twice = -2 * fitted.data_size * cast(Tensor, prior.log_precision.grad)
    numbers = twice + prior.log_precision.detach().exp() * fitted.squared_norms
    left = [name for name, s, n in zip(prior.names, twice, numbers, strict=True) if s.abs() > _ARRIVED * max(n, 1)]
    for noise in fitted.likelihood.hyperparameters():
        if (2 * fitted.data_size * cast(Tensor, noise.grad)).abs() > _ARRIVED * fitted.data_size * fitted.width:
            left.append(NOISE)
    return left
