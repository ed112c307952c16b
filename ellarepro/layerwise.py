"""Layer-wise precisions, evidence and predictions for a network of one's own.

laplace = LayerwiseLaplace(model, "classification")
laplace.train(loader, epochs=30)        # weights and precisions together; or, for a network that is trained,
laplace.fit(loader).learn()             # the precisions alone
laplace.log_marginal_likelihood(), laplace.precisions(), laplace.effective_numbers(), laplace.predict(inputs)
torch.save(laplace.state_dict(), file)  # and load_state_dict, beside the network's own
"""

import warnings
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.likelihood import Likelihood, Regression
from ellarepro.curvature.likelihoods import likelihood_of, load_state, state_of
from ellarepro.curvature.posterior import PosteriorPrecision
from ellarepro.data.loading import Data, batches_of
from ellarepro.data.training_batches import training_batches
from ellarepro.evidence.checks import check_optimiser, check_parameters, check_schedule
from ellarepro.evidence.fingerprint import fingerprint
from ellarepro.evidence.fitted import Fitted, check_network, new_fit
from ellarepro.evidence.marglik import Evidence, Fit, MarginalLikelihood
from ellarepro.evidence.predictive import Prediction, predict_classes, predict_outputs
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.evidence.settling import MOST_ROUNDS, settle, settle_noise
from ellarepro.evidence.telling import batches_in, told
from ellarepro.objectives.checked import CheckedLaplace, CheckedLila
from ellarepro.settings.parts import DEFAULT_FIT, FitSettings, LaplaceSettings, check_has_gradient
from ellarepro.symmetry.affine import Affine, Averaging
from ellarepro.training.loop import Trainer
from ellarepro.training.optimisers import SchedulerRates
from ellarepro.training.resumable import train

DEFAULT_SCHEDULE = LaplaceSettings(burn_in=5, frequency=5, steps=20)


class LayerwiseLaplace:
    """A network with a Gaussian prior N(0, 1/delta) on each of its tensors, and its Laplace posterior.

    Args:
        model: maps one tensor `(B, ...)` to logits or outputs `(B, K)`, in training or evaluation mode. Unless
            `structure=full`, every trainable parameter needs a curvature rule (docs/library.md).
        likelihood: `classification`, `bernoulli`, `regression`, or an object, `Regression(100.0, learned=False)` or
            `Classification(class_weights=...)` say, of which a copy is taken.
        prior_precision: delta of every tensor at the start.
        settings: how the curvature is fitted: its structure, and from how much data.
        invariance: of images `(B, C, H, W)`, over whose copies the model averages from now on; `train` learns it.

    Attributes:
        prior: the log precisions, by tensor.
        likelihood: with the noise precision of a regression.

    Raises:
        ValueError: an unknown likelihood, a precision that is not positive, nothing to train, or an invariance beside
            settings without a gradient in its ranges.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood = "classification",
        *,
        prior_precision: float = 1.0,
        settings: FitSettings = DEFAULT_FIT,
        invariance: Affine | None = None,
    ):
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("model must have trainable parameters")
        if invariance is not None:
            check_has_gradient(settings, "an invariance")
        self.model = model
        self.averaging = None if invariance is None else Averaging(model, invariance)
        self.likelihood = likelihood_of(likelihood)
        self.prior = LayerwisePrior(model, prior_precision)
        self.settings = settings
        self._fitted: Fitted | None = None

    @torch.inference_mode(False)
    def fit(self, data: Data) -> "LayerwiseLaplace":
        """Fit the curvature at the current weights; the precisions stay, as does a noise that was given a start.

        Any other noise is taken to the evidence's maximum. A `fit_size` is a random subset, always the same one.

        Args:
            data: the whole training set, without augmentation: a pair of tensors, or a loader of such pairs.

        Raises:
            CurvatureError: the network's outputs or the curvature are not finite.
            UnclaimedParameterError: a trainable parameter without a rule.
            ValueError: data, outputs or layers that are not covered; it says what to change.
        """
        whole = self._new_fit(data)
        for _ in told(whole.batches(), batches_in(data, self.settings.batch_size), self._device):
            pass
        self._fitted = Fitted(whole.result(), fingerprint(self.model))
        settle_noise(self._fitted.marglik, self.prior.log_precision)
        return self

    def _new_fit(self, data: Data) -> Fit:
        """A fit that has still to begin, of a model that was checked."""
        check_parameters(self.model, self.prior)
        check_network(self.model, data, self.settings, self.likelihood, self._device)
        return new_fit(self.model, self.prior, data, self.settings, self.likelihood)

    @torch.inference_mode(False)
    def learn(self, steps: int | None = None, lr: float = 0.1) -> "LayerwiseLaplace":
        """Take precisions, and the noise, to where the last fit's evidence has no slope; a warning says what fails to.

        Args:
            steps: take as many steps of Adam, at the rate `lr`, up the evidence in place of it.
        """
        if steps is not None:
            learned = [self.prior.log_precision, *self.likelihood.hyperparameters()]
            self._fit_done.ascend(self.prior.log_precision, torch.optim.Adam(learned, lr=lr), steps)
        elif left := settle(self._fit_done, self.prior):
            warnings.warn(
                f"after {MOST_ROUNDS} rounds the evidence still has a slope in the precision of {', '.join(left)}: "
                "call learn() again, or is the network not trained?",
                stacklevel=3,
            )
        return self

    @torch.inference_mode(False)
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
            ValueError: as for `fit`; an optimiser with a weight decay, or of other parameters; no epoch after which the
                precisions would move; or a schedule that says more than when and how far.
        """
        check_schedule(schedule, epochs)
        check_parameters(self.model, self.prior)
        check_network(self.model, data, self.settings, self.likelihood, self._device)
        if optimiser is not None:
            check_optimiser(optimiser, self.prior)
        with evaluation_mode(self.model), torch.no_grad():  # a noise without a start begins at these residuals
            self.loss(*next(batches_of(data, batch_size, self._device)), data_size=1)
        fit_data = data if fit_data is None else fit_data
        optimiser = optimiser or torch.optim.Adam(self.prior.parameters)
        generator = torch.Generator().manual_seed(0)
        parts = self.prior, self.likelihood, fit_data, replace(schedule, fit=self.settings), self._new_fit
        objective = CheckedLila(self.averaging, generator, *parts) if self.averaging else CheckedLaplace(*parts)
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
        losses = self.likelihood.losses(outputs, targets)
        self.likelihood.start(losses.detach(), outputs.shape[1])
        return self._factor * losses.mean() + penalty / (2 * data_size)

    @torch.inference_mode(False)
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

    @torch.inference_mode(False)
    def effective_numbers(self) -> dict[str, float]:
        """Effective number of parameters of each tensor by name: how many of its entries the data determine."""
        numbers = self._fit_done.effective_parameters(self.prior.log_precision)
        return dict(zip(self.prior.names, numbers.tolist(), strict=True))

    @torch.inference_mode(False)
    def predict(self, inputs: Tensor, samples: int = 100) -> Prediction:
        """Predictions with uncertainty, of the network linearised at its weights.

        Args:
            inputs: `(B, ...)`.
            samples: functions drawn for classes, always the same, at least two; a regression is exact. Up to 1 GB of
                them (in float32) are kept for the next call.

        Raises:
            ValueError: fewer samples; no inputs.
        """
        if samples < 2:
            raise ValueError(f"samples must be at least 2, for there to be a spread; got {samples}")
        if not len(inputs):
            raise ValueError("inputs must hold at least one sample, got none")
        posterior = self.posterior()
        ((inputs, _),) = batches_of((inputs, inputs), len(inputs), self._device)
        with evaluation_mode(self.model):
            if isinstance(self.likelihood, Regression):
                return predict_outputs(self.model, posterior, inputs, 1 / self._factor)
            functions = self._fit_checked.functions(self.model, posterior, samples, self._device)
            return predict_classes(self.model, functions, inputs, self.likelihood)

    @torch.inference_mode(False)
    def posterior(self) -> PosteriorPrecision:
        """The posterior's precision matrix, curvature plus prior precisions, at the last fit."""
        return self._fit_checked.posterior(self.prior.log_precision.detach().exp(), self._factor)

    def state_dict(self) -> dict[str, Any]:
        """Precisions, noise, settings and the last fit, as tensors and plain values; the network's weights are its own.

        Raises:
            ValueError: a curvature that cannot be saved.
        """
        return {
            "settings": asdict(self.settings),
            "log_precisions": dict(zip(self.prior.names, self.prior.log_precision.tolist(), strict=True)),
            "likelihood": state_of(self.likelihood),
            "fit": None if self._fitted is None else self._fitted.state_dict(),
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it, with the network at the weights that it had at that fit.

        Raises:
            ValueError: a state of other tensors, of another likelihood, or of other weights than the network has.
        """
        if list(state["log_precisions"]) != self.prior.names:
            raise ValueError(f"the state is of another network, of {', '.join(state['log_precisions'])}")
        likelihood = deepcopy(self.likelihood)
        load_state(likelihood, state["likelihood"])
        fitted = Fitted.of_state(state["fit"], likelihood, self._device) if state["fit"] else None
        if fitted is not None:
            fitted.check(self.model)
        self.settings, self.likelihood, self._fitted = FitSettings(**state["settings"]), likelihood, fitted
        with torch.no_grad():
            values = list(state["log_precisions"].values())
            self.prior.log_precision.copy_(torch.tensor(values, dtype=torch.float64, device="cpu"))

    @property
    def _fit_checked(self) -> Fitted:
        if self._fitted is None:
            raise ValueError("there is no curvature yet: call fit(data), or train(data, epochs=...), first")
        check_parameters(self.model, self.prior)
        self._fitted.check(self.model)
        return self._fitted

    @property
    def _fit_done(self) -> MarginalLikelihood:
        return self._fit_checked.marglik

    @property
    def _factor(self) -> float:
        with torch.no_grad():
            return float(self.likelihood.precision())

    @property
    def _device(self) -> torch.device:
        return self.prior.parameters[0].device
