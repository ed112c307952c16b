"""The differentiable Laplace approximation of the log marginal likelihood (eq. 9), as an object.

    log p(D|eta) ~ log p(D|theta) - 1/2 sum_l delta_l |theta_l|^2 + 1/2 sum_l P_l log delta_l - 1/2 log|H + diag(delta)|

The constants in 2 pi cancel between the prior and the Gaussian integral. With curvature, weights and data loss fixed it
is a function of eta = log delta alone, so a fit is paid once and hyper-steps are nearly free; of a regression, also one
of the noise's precision beta, by which loss and curvature are multiplied.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.eigen import CurvatureError
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.spectra import Curvature
from ellarepro.data.loading import Data, batches_of
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.settings.parts import DEFAULT_FIT, FitSettings


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
        curvature: H of the whole training set; of a regression, at noise of precision one.
        loss: of the whole training set, summed: the likelihood's, for classification -log p(D|theta) in nats.
        squared_norms: |theta_l|^2, `(L,)`.
        data_size: N.
        likelihood: what loss and curvature are of; `Classification` if not given.
        width: outputs of the network, K.
    """

    def __init__(
        self,
        curvature: Curvature,
        loss: float,
        squared_norms: Tensor,
        data_size: int,
        likelihood: Likelihood | None = None,
        width: int = 1,
    ):
        self.curvature = curvature
        self.loss = loss
        self.squared_norms = squared_norms
        self.data_size = data_size
        self.likelihood = likelihood or Classification()
        self.width = width

    def evidence(self, log_precision: Tensor) -> Evidence:
        """The evidence at `log_precision (L,)` and the likelihood's noise, differentiable in both."""
        deltas = log_precision.exp()
        return Evidence(
            data_fit=self.likelihood.log_likelihood(self.loss, self.data_size, self.width),
            log_prior=-(deltas * self.squared_norms).sum() / 2,
            log_det=-self.log_det_ratio(deltas) / 2,
            data_size=self.data_size,
        )

    def log_det_ratio(self, deltas: Tensor) -> Tensor:
        """log |beta H + D| - log |D| for `deltas (L,)`: that of H at delta / beta."""
        return self.curvature.log_det_ratio(deltas / self.likelihood.precision())

    @torch.enable_grad()
    def ascend(self, log_precision: Tensor, optimiser: torch.optim.Optimizer, steps: int) -> None:
        """Take `steps` steps of `optimiser` up the evidence per datum; changes what it is given in place."""
        for _ in range(steps):
            optimiser.zero_grad()
            (-self.evidence(log_precision).value / self.data_size).backward()
            optimiser.step()

    @torch.enable_grad()
    def effective_parameters(self, log_precision: Tensor) -> Tensor:
        """Effective number of parameters of each tensor, `(L,)`: sum over i of lambda_i / (lambda_i + delta_l).

        Taken as minus the derivative of log|H + D| - log|D| in eta_l: the same sum, for every structure.
        """
        eta = log_precision.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.log_det_ratio(eta.exp()), eta)
        return -slope


class Fit:
    """A fit of the curvature in the making: batch by batch, so that it can stop between two of them and continue.

    The loss is taken in the same pass over the data. The model is in evaluation mode meanwhile, whatever its mode is.

    Of the model it asks that each weight acts in its own layer, once a forward pass: `curvature.checks.check_gradients`
    tells, and `LayerwiseLaplace` and the laplace-torch backend ask it first.

    Args:
        data: the whole training set, without augmentation: tensors, or a loader, which has batches of its own.
        settings: what is gathered, and from how much; `fit_size` counts from the start of the data.
        generator: of sampled passes, on the model's device.
        likelihood: `Classification` if not given.
        subset: `(N,)`, on the CPU, in place of the first `fit_size`: whether the curvature is taken from each datum.
        data_size: N, where `data` are a part of the training set; curvature and loss are scaled up to it.

    Attributes:
        done: batches so far.

    Raises:
        ValueError: `structure=full` for a large network, sampled passes without a generator.
    """

    def __init__(
        self,
        model: nn.Module,
        prior: LayerwisePrior,
        data: Data,
        settings: FitSettings = DEFAULT_FIT,
        generator: torch.Generator | None = None,
        likelihood: Likelihood | None = None,
        subset: Tensor | None = None,
        data_size: int | None = None,
    ):
        self.model, self.prior, self.data, self.settings = model, prior, data, settings
        self.likelihood, self.subset, self.data_size = likelihood or Classification(), subset, data_size
        self.accumulator = accumulator_of(model, settings, generator, self.likelihood)
        self.losses: list[Tensor] = []
        self.done = self.size = self.width = 0

    def batches(self) -> Iterator[None]:
        """Take one batch after the other, from the first that has not been taken; yields after each.

        Raises:
            ValueError: data or outputs that the likelihood does not take.
        """
        device = self.prior.parameters[0].device
        for inputs, targets in islice(batches_of(self.data, self.settings.batch_size, device), self.done, None):
            outputs = self._gathered(inputs, self.likelihood.weights(targets))
            self.likelihood.check_outputs(outputs, len(inputs))
            self.likelihood.check_targets(targets, outputs)
            self.losses.append(self.likelihood.losses(outputs, targets).double().sum())
            self.size, self.width, self.done = self.size + len(inputs), outputs.shape[1], self.done + 1
            yield

    def whole(self, pause: Callable[[], None] = lambda: None) -> MarginalLikelihood:
        """Take all batches that are left, and what was fitted.

        Args:
            pause: called after each batch; what it raises ends the fit there, to be continued.

        Raises:
            ValueError, CurvatureError: as `batches` and `result`.
        """
        for _ in self.batches():
            pause()
        return self.result()

    def result(self) -> MarginalLikelihood:
        """What was fitted, once all batches are taken.

        Raises:
            CurvatureError: the network's outputs or the curvature are not finite.
        """
        loss = torch.stack(self.losses).sum().item()
        if not isfinite(loss):
            raise CurvatureError(f"the loss of the training set is {loss}: the network's outputs are not finite")
        size = self.data_size or self.size
        curvature, loss = self.accumulator.curvature(size), loss * size / self.size
        return MarginalLikelihood(curvature, loss, self.prior.squared_norms(), size, self.likelihood, self.width)

    def _gathered(self, inputs: Tensor, weights: Tensor | None) -> Tensor:
        """Add what is wanted of `inputs`, each `weights (B,)` times; returns all outputs, `(B, K)`, passed once."""
        numbers = torch.arange(self.size, self.size + len(inputs), device="cpu")
        if self.subset is not None:
            wanted = self.subset[numbers]
        else:
            wanted = numbers < (self.size + len(inputs) if self.settings.fit_size is None else self.settings.fit_size)
        if wanted.all():
            return self.accumulator.update(inputs, weights)
        with evaluation_mode(self.model), torch.no_grad():
            rest = self.model(inputs[~wanted])
        outputs = rest.new_empty(len(inputs), *rest.shape[1:])
        outputs[~wanted] = rest
        if wanted.any():
            outputs[wanted] = self.accumulator.update(inputs[wanted], None if weights is None else weights[wanted])
        return outputs

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, as tensors and plain values."""
        counts = {"done": self.done, "size": self.size, "width": self.width}
        return counts | {"losses": self.losses, "accumulator": self.accumulator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it."""
        device = self.prior.parameters[0].device
        self.done, self.size, self.width = state["done"], state["size"], state["width"]
        self.losses = [loss.to(device) for loss in state["losses"]]
        self.accumulator.load_state_dict(state["accumulator"], device)


def fit(
    model: nn.Module,
    prior: LayerwisePrior,
    data: Data,
    settings: FitSettings = DEFAULT_FIT,
    generator: torch.Generator | None = None,
    likelihood: Likelihood | None = None,
) -> MarginalLikelihood:
    """Fit the curvature at the current weights, in one go; arguments as of `Fit`.

    Raises:
        CurvatureError: the network's outputs or the curvature are not finite.
        ValueError: data or outputs that the likelihood does not take; `structure=full` for a large network.
    """
    return Fit(model, prior, data, settings, generator, likelihood).whole()


@torch.no_grad()
def total_loss(model: nn.Module, data: Data, batch_size: int, likelihood: Likelihood | None = None) -> float:
    """The likelihood's loss of `data`, summed in float64; of `Classification`, if none is given, in nats.

    Raises:
        ValueError: data or outputs that the likelihood does not take.
    """
    likelihood, losses = likelihood or Classification(), []
    with evaluation_mode(model):
        for inputs, targets in batches_of(data, batch_size, next(model.parameters()).device):
            outputs = model(inputs)
            likelihood.check_outputs(outputs, len(inputs))
            likelihood.check_targets(targets, outputs)
            losses.append(likelihood.losses(outputs, targets).double().sum())
    return torch.stack(losses).sum().item()
