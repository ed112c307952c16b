"""Precisions and noise where the evidence has no slope in them, by steps that do not depend on their scale."""

import torch
from torch import Tensor

from ellarepro.curvature.likelihood import Regression
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.evidence.prior import LayerwisePrior

MOST_ROUNDS = 200
NOISE = "the noise"
_ARRIVED = 1e-4
"""Twice the evidence's slope in a log precision that counts as none, as a part of its effective number, or of one."""


@torch.no_grad()
def settle(fitted: MarginalLikelihood, prior: LayerwisePrior, rounds: int | None = None) -> list[str]:
    """Half steps, in the logarithm, to delta = gamma / |theta|^2 and beta = (N K - gamma) / (2 loss) (MacKay, 1992).

    The evidence has no slope there, and as -gamma < d gamma / d log delta < 0 each step of a precision at least halves
    the way, whatever the scale. Tensors that share a precision share gamma and norm; what is fixed stays.

    Args:
        rounds: at most so many; `MOST_ROUNDS` if not given.

    Returns:
        Names of the tensors in whose log precision the evidence still has a slope, and `NOISE` for that of the noise.
    """
    eta, norms = prior.log_precision, prior.shared @ fitted.squared_norms
    rounds = MOST_ROUNDS if rounds is None else rounds
    for index in range(rounds + 1):
        numbers = prior.shared @ fitted.effective_parameters(eta)
        moves = (numbers - eta.exp() * norms).abs() > _ARRIVED * numbers.clamp_min(1)
        left = [name for name, moving in zip(prior.names, moves.tolist(), strict=True) if moving]
        left += [NOISE] * _noise_moves(fitted, numbers)
        if not left or index == rounds:
            return left
        # Of weights that are all zero the precision grows without end, until their effective number is none.
        step = ((numbers / norms).log() - eta).nan_to_num(0.0).clamp(-20, 20) / 2
        eta += torch.where(moves, step, 0.0)
        _noise_step(fitted, numbers)
    return []


@torch.no_grad()
def settle_noise(fitted: MarginalLikelihood, log_precision: Tensor) -> None:
    """As `settle`, of the noise alone, where it was given no start."""
    if isinstance(fitted.likelihood, Regression) and fitted.likelihood.by_residuals and fitted.loss > 0:
        fitted.likelihood.started = True
        for _ in range(MOST_ROUNDS):
            numbers = fitted.effective_parameters(log_precision)
            if not _noise_moves(fitted, numbers):
                return
            _noise_step(fitted, numbers)


def _noise_step(fitted: MarginalLikelihood, numbers: Tensor) -> None:
    """Half a step of a learned noise, the effective numbers as they are; none where the residuals are zero."""
    for noise in fitted.likelihood.hyperparameters():
        if fitted.loss > 0:
            free = (fitted.data_size * fitted.width - numbers.sum()).clamp_min(1e-3)
            noise += ((free / (2 * fitted.loss)).log() - noise) / 2


def _noise_moves(fitted: MarginalLikelihood, numbers: Tensor) -> bool:
    """Whether the evidence has a slope in a learned noise."""
    entries = fitted.data_size * fitted.width
    slopes = [(entries - numbers.sum() - 2 * n.exp() * fitted.loss).abs() for n in fitted.likelihood.hyperparameters()]
    return any(slope.item() > _ARRIVED * entries for slope in slopes)
