"""A fit of a network's curvature: checked before, and valid for the weights that it is of."""

from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.checks import CHECKED, check_function, check_gradients, check_likelihood
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.curvature.likelihoods import LIKELIHOODS
from ellarepro.curvature.posterior import PosteriorPrecision, posterior_precision
from ellarepro.curvature.saving import curvature_of, state_of
from ellarepro.data.loading import Data, batches_of, of_every_target, tensors_of
from ellarepro.evidence.fingerprint import changed, fingerprint
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.evidence.predictive import weight_deviations
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.evidence.telling import batches_in, check_memory
from ellarepro.settings.parts import FitSettings

KEPT_ENTRIES = 2**28
"""Entries of functions drawn for predictions up to which they are kept for the next ones: 1 GB in float32."""

VARIED = 64
"""Different targets, at most, on which a likelihood of a user's own is checked: it can be right for some alone."""


class Fitted:
    """What a fit leaves.

    Args:
        marglik: the evidence as a function of the precisions.
        weights: `fingerprint` of the network that it is of.
    """

    def __init__(self, marglik: MarginalLikelihood, weights: dict[str, str]):
        self.marglik, self.weights = marglik, weights
        self._place: tuple[list[float], float] | None = None
        self._posterior: PosteriorPrecision
        self._functions: list[dict[str, Tensor]] = []

    def check(self, model: nn.Module) -> None:
        """ValueError if weights or running statistics are others than at the fit."""
        if others := changed(self.weights, fingerprint(model)):
            raise ValueError(f"{', '.join(others[:3])} changed after the last fit: call fit(data) again")

    def posterior(self, deltas: Tensor, factor: float) -> PosteriorPrecision:
        """The posterior's precision matrix at the precisions `deltas (L,)`; taken apart once for all that are equal."""
        place = (deltas.tolist(), factor)
        if self._place != place:
            self._posterior = posterior_precision(self.marglik.curvature, deltas, factor)
            self._place, self._functions = place, []
        return self._posterior

    def functions(
        self, model: nn.Module, posterior: PosteriorPrecision, samples: int, device: torch.device
    ) -> list[dict[str, Tensor]]:
        """`samples` draws of the weights' deviations, always the same; kept for the next call if not too many."""
        if len(self._functions) == samples:
            return self._functions
        drawn = weight_deviations(model, posterior, samples, torch.Generator(device).manual_seed(0))
        entries = samples * sum(part.numel() for part in drawn[0].values())
        self._functions = drawn if entries <= KEPT_ENTRIES else []
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The fit as tensors and plain values. ValueError for a curvature that cannot be saved."""
        fitted = self.marglik
        counts = {"loss": fitted.loss, "data_size": fitted.data_size, "width": fitted.width, "weights": self.weights}
        return counts | {"squared_norms": fitted.squared_norms, "curvature": state_of(fitted.curvature)}

    @classmethod
    def of_state(cls, state: dict[str, Any], likelihood: Likelihood, device: torch.device) -> "Fitted":
        """The fit of which `state` was, on `device`."""
        curvature, numbers = curvature_of(state["curvature"], device), (state["loss"], state["squared_norms"])
        return cls(
            MarginalLikelihood(curvature, *numbers, state["data_size"], likelihood, state["width"]), state["weights"]
        )


def new_fit(model: nn.Module, prior: LayerwisePrior, data: Data, settings: FitSettings, likelihood: Likelihood) -> Fit:
    """A fit that has still to begin; its `fit_size` is a random subset of the data, always the same one."""
    generator = torch.Generator(prior.parameters[0].device).manual_seed(0)
    return Fit(model, prior, data, settings, generator, likelihood, _subset(data, settings.fit_size))


def check_network(
    model: nn.Module, data: Data, settings: FitSettings, likelihood: Likelihood, device: torch.device
) -> None:
    """Refuse, by a few of `data`, what a fit would refuse, get wrong, or find no memory for."""
    inputs, _ = next(batches_of(data, CHECKED, device))
    check = check_gradients if settings.has_blocks else check_function
    check(model, inputs, likelihood)
    if type(likelihood) not in LIKELIHOODS.values():  # a user's own
        check_likelihood(model, *of_every_target(data, VARIED, device), likelihood)
    size = len(pair[0]) if (pair := tensors_of(data)) is not None else len(inputs) * max(batches_in(data, 1), 1)
    accumulator = accumulator_of(model, settings, torch.Generator(device), likelihood)
    check_memory(accumulator, inputs, min(size, settings.fit_size or size))


def _subset(data: Data, fit_size: int | None) -> Tensor | None:
    """`(N,)`, on the CPU: whether each datum is among the `fit_size` drawn."""
    if fit_size is None:
        return None
    pair, device = tensors_of(data), torch.device("cpu")
    size = len(pair[0]) if pair is not None else sum(len(inputs) for inputs, _ in batches_of(data, 1, device))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0), device="cpu")
    return torch.zeros(len(order), dtype=torch.bool, device="cpu").index_fill_(0, order[:fit_size], True)
