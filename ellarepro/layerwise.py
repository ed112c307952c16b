"""Layer-wise precisions, evidence and predictions for a network of one's own.

laplace = LayerwiseLaplace(model, "classification")
laplace.train(loader, epochs=30)        # weights and precisions together; or, for a network that is trained,
laplace.fit(loader).learn()             # the precisions alone
laplace.log_marginal_likelihood(), laplace.precisions(), laplace.effective_numbers(), laplace.predict(inputs)
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ellarepro.curvature.calls import CHECKED, check_gradients
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.likelihood import LIKELIHOODS, Classification, Likelihood
from ellarepro.curvature.posterior import PosteriorPrecision, posterior_precision
from ellarepro.data.loading import Data, batches_of
from ellarepro.data.training_batches import training_batches
from ellarepro.evidence.marglik import Evidence, Fit, MarginalLikelihood
from ellarepro.evidence.predictive import Prediction, predict_classes, predict_outputs
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.objectives.laplace import Laplace
from ellarepro.settings.parts import DEFAULT_FIT, FitSettings, LaplaceSettings
from ellarepro.training.loop import Trainer
from ellarepro.training.optimisers import SchedulerRates
from ellarepro.training.resumable import train

DEFAULT_SCHEDULE = LaplaceSettings(burn_in=5, frequency=5, steps=20)


class LayerwiseLaplace:
    """A network with a Gaussian prior N(0, 1/delta) on each of its tensors, and its Laplace posterior.

    Args:
        model: maps one tensor `(B, ...)` to logits or outputs `(B, K)`, in training or evaluation mode. Unless
            `structure=full`, every trainable parameter needs a curvature rule (docs/library.md).
        likelihood: `classification`, `regression`, or an object, `Regression(100.0, learned=False)` say.
        prior_precision: delta of every tensor at the start.
        settings: how the curvature is fitted: its structure, and from how much data.

    Attributes:
        prior: the log precisions, by tensor.
        likelihood: with the noise precision of a regression.

    Raises:
        ValueError: an unknown likelihood, a precision that is not positive, or nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood = "classification",
        *,
        prior_precision: float = 1.0,
        settings: FitSettings = DEFAULT_FIT,
    ):
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}; got {likelihood!r}")
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("model must have trainable parameters")
        self.model = model
        self.likelihood = LIKELIHOODS[likelihood]() if isinstance(likelihood, str) else likelihood
        self.prior = LayerwisePrior(model, prior_precision)
        self.settings = settings
        self._fitted: MarginalLikelihood | None = None
        self._posterior: tuple[tuple[list[float], float], PosteriorPrecision] | None = None
        self._checked = settings.structure == "full"

    def fit(self, data: Data) -> "LayerwiseLaplace":
        """Fit the curvature at the current weights; the precisions stay.

        Args:
            data: the whole training set, without augmentation: a pair of tensors, or a loader of such pairs.

        Raises:
            CurvatureError: the network's outputs or the curvature are not finite.
            UnclaimedParameterError: a trainable parameter without a rule.
            ValueError: data, outputs or layers that are not covered; it says what to change.
        """
        self._fitted, self._posterior = self._new_fit(data).whole(), None
        return self

    def _new_fit(self, data: Data) -> Fit:
        """A fit that has still to begin, of a model that was checked."""
        self._check_parameters()
        if not self._checked:
            inputs, _ = next(batches_of(data, CHECKED, self._device))
            check_gradients(self.model, inputs[:CHECKED], self.likelihood)
            self._checked = True
        generator = torch.Generator(self._device).manual_seed(0)
        return Fit(self.model, self.prior, data, self.settings, generator, self.likelihood)

    def learn(self, steps: int = 200, lr: float = 0.1) -> "LayerwiseLaplace":
        """Take `steps` Adam steps on the log precisions, and the noise's, up the evidence of the last fit."""
        self._fit_done.ascend(self.prior.log_precision, self._hyper_optimiser(lr), steps)
        return self

    def train(  # noqa: PLR0913 (each is what somebody's training needs, and has a default)
        self,
        data: Data,
        *,
        epochs: int,
        optimiser: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        schedule: LaplaceSettings = DEFAULT_SCHEDULE,
        batch_size: int = 128,
        fit_data: Data | None = None,
        progress: bool = False,
        checkpoint: str | Path | None = None,
    ) -> "LayerwiseLaplace":
        """Train the weights and, every so often, learn the precisions; ends with a fit at the last weights.

        Modules in evaluation mode within a model in training mode stay in it; afterwards each is in the mode it was in.

        Args:
            data: as for `fit`; a pair of tensors is shuffled, a loader taken as it comes.
            optimiser: of the weights; Adam at its default rate if not given.
            scheduler: of the optimiser's rate; steps after each epoch.
            schedule: after which epochs the precisions move, and how far. How they are fitted is `settings`.
            batch_size: of a pair of tensors.
            fit_data: the training set without augmentation, where `data` has some.
            progress: whether a line tells how far training is.
            checkpoint: folder for a checkpoint, from which the same call continues after a stop; with a loader as data
                from the last whole epoch. It is removed at the end.

        Raises:
            RunFailure: a loss that is not finite.
            UserError: a checkpoint that cannot be read, or of another training.
            ValueError: as for `fit`; no epoch after which the precisions would move; or a schedule that says more
                than when and how far.
        """
        if replace(schedule, fit=DEFAULT_FIT, tied=False, predictive_samples=0) != schedule:
            raise ValueError(
                "schedule says when the precisions move, by burn_in, frequency, steps and lr, no more: fit goes into "
                f"LayerwiseLaplace(settings=...), tied and predictive_samples are of whole runs; got {schedule}"
            )
        if epochs <= schedule.burn_in:
            raise ValueError(
                f"epochs must be above burn_in={schedule.burn_in} for anything to be learned; got {epochs}"
            )
        self._check_parameters()
        fit_data = data if fit_data is None else fit_data
        optimiser = optimiser or torch.optim.Adam(self.prior.parameters)
        objective = _CheckedLaplace(self, fit_data, replace(schedule, fit=self.settings))
        generator = torch.Generator().manual_seed(0)
        batches = training_batches(data, batch_size, self._device)
        trainer = Trainer(objective, batches, optimiser, SchedulerRates(scheduler), epochs, generator)
        train(trainer, progress=progress, checkpoint=checkpoint)
        return self.fit(fit_data)

    def loss(self, inputs: Tensor, targets: Tensor, data_size: int) -> Tensor:
        """What a training loop of one's own descends: -log p(targets, theta) in nats a datum, up to a constant.

        Args:
            data_size: of the whole training set.
        """
        outputs = self.model(inputs)
        self.likelihood.check_outputs(outputs, len(inputs))
        self.likelihood.check_targets(targets, outputs)
        deltas = self.prior.precisions().values()
        penalty = sum(delta * p.square().sum() for delta, p in zip(deltas, self.prior.parameters, strict=True))
        return self._factor * self.likelihood.losses(outputs, targets).mean() + penalty / (2 * data_size)

    def evidence(self) -> Evidence:
        """The parts of log p(D|eta) at the last fit and the precisions as they are."""
        with torch.no_grad():
            return self._fit_done.evidence(self.prior.log_precision)

    def log_marginal_likelihood(self) -> float:
        """log p(D|eta) in nats, summed over the data."""
        return self.evidence().value.item()

    def precisions(self) -> dict[str, float]:
        """delta of each tensor by name."""
        return self.prior.precisions()

    def effective_numbers(self) -> dict[str, float]:
        """Effective number of parameters of each tensor by name: how many of its entries the data determine."""
        numbers = self._fit_done.effective_parameters(self.prior.log_precision)
        return dict(zip(self.prior.names, numbers.tolist(), strict=True))

    def predict(self, inputs: Tensor, samples: int = 100) -> Prediction:
        """Predictions with uncertainty, of the network linearised at its weights.

        Args:
            inputs: `(B, ...)`.
            samples: functions drawn for classification, always the same, at least two; a regression is exact.

        Raises:
            ValueError: fewer samples; no inputs.
        """
        if samples < 2:
            raise ValueError(f"samples must be at least 2, for there to be a spread; got {samples}")
        if not len(inputs):
            raise ValueError("inputs must hold at least one sample, got none")
        posterior, inputs = self.posterior(), inputs.to(self._device)
        with evaluation_mode(self.model):
            if isinstance(self.likelihood, Classification):
                return predict_classes(self.model, posterior, inputs, samples)
            return predict_outputs(self.model, posterior, inputs, 1 / self._factor)

    def posterior(self) -> PosteriorPrecision:
        """The posterior's precision matrix, curvature plus prior precisions, at the last fit."""
        deltas = self.prior.log_precision.detach().exp()
        place = (deltas.tolist(), self._factor)
        if self._posterior is None or self._posterior[0] != place:
            self._posterior = place, posterior_precision(self._fit_done.curvature, deltas, self._factor)
        return self._posterior[1]

    def _check_parameters(self) -> None:
        """Refuse a model of other trainable tensors than those that the prior is of."""
        known = dict(zip(self.prior.names, self.prior.parameters, strict=True))
        there = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        changed = sorted(name for name in known.keys() | there.keys() if known.get(name) is not there.get(name))
        if changed or list(known) != list(there):
            raise ValueError(
                f"{changed or list(there)} were frozen, no longer are, or are others than when this object was made: "
                "make a new one"
            )

    @property
    def _fit_done(self) -> MarginalLikelihood:
        if self._fitted is None:
            raise ValueError("there is no curvature yet: call fit(data), or train(data, epochs=...), first")
        return self._fitted

    @property
    def _factor(self) -> float:
        with torch.no_grad():
            return float(self.likelihood.precision())

    @property
    def _device(self) -> torch.device:
        return self.prior.parameters[0].device

    def _hyper_optimiser(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.prior.log_precision, *self.likelihood.hyperparameters()], lr=lr)


class _CheckedLaplace(Laplace):
    """The objective of `LayerwiseLaplace.train`: batches and the model are checked, and each fit draws afresh."""

    def __init__(self, laplace: LayerwiseLaplace, data: Data, settings: LaplaceSettings):
        generator = torch.Generator(laplace.prior.parameters[0].device)
        super().__init__(laplace.prior, laplace.likelihood, data, settings=settings, generator=generator)
        self.laplace = laplace

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(inputs)
        self.likelihood.check_outputs(outputs, len(inputs))
        self.likelihood.check_targets(targets, outputs)
        return self.likelihood.mean_loss(outputs, targets), outputs

    def new_fit(self, generator: torch.Generator | None = None) -> Fit:
        return self.laplace._new_fit(self.data)
