"""The Laplace objective of a network of one's own: its batches, the network and its fits are checked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ellarepro.curvature.likelihood import Likelihood
from ellarepro.data.loading import Data
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.evidence.settling import settle_noise
from ellarepro.objectives.laplace import Laplace
from ellarepro.objectives.lila import LearnsRanges
from ellarepro.objectives.objective import Pause
from ellarepro.settings.parts import LaplaceSettings
from ellarepro.symmetry.affine import Averaging


class CheckedLaplace(Laplace):
    """`Laplace` by fits that `begin(data)` gives; a noise that was given no start is settled after each."""

    def __init__(
        self,
        prior: LayerwisePrior,
        likelihood: Likelihood,
        data: Data,
        settings: LaplaceSettings,
        begin: Callable[[Data], Fit],
    ):
        generator = torch.Generator(prior.parameters[0].device)
        super().__init__(prior, likelihood, data, settings=settings, generator=generator)
        self.begin = begin

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        try:
            outputs = self.model(inputs)
        except ValueError as error:
            if len(inputs) > 1:
                raise
            raise ValueError(
                f"the network does not train on the loader's batch of one sample ({error}): give the loader "
                "drop_last=True, or another batch_size"
            ) from error
        self.likelihood.check_outputs(outputs, len(inputs))
        self.likelihood.check_targets(targets, outputs)
        return self.likelihood.mean_loss(outputs, targets), outputs

    def fit(self, pause: Pause = lambda: None, when: str = "fit", size: int | None = None) -> MarginalLikelihood:
        marglik = super().fit(pause, when, size)
        settle_noise(marglik, self.prior.log_precision)
        return marglik

    def new_fit(self, generator: torch.Generator | None = None, size: int | None = None) -> Fit:
        return self.begin(self.data)


class CheckedLila(CheckedLaplace, LearnsRanges):
    """The same with an invariance, whose ranges are learned at the rate of the precisions."""

    def __init__(self, averaging: Averaging, draws: torch.Generator, *arguments: Any):
        super().__init__(*arguments)
        averaging.generator = draws
        self.learn_ranges_of(averaging, self.settings.lr)
