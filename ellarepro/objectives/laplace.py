"""objective=laplace: the differentiable Laplace approximation of the marginal likelihood (eq. 9)."""

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ellarepro.curvature.eigen import CurvatureError, counted
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.curvature.memory import FactorsTooLarge, out_of_memory
from ellarepro.curvature.posterior import posterior_precision
from ellarepro.data.dataset import Samples
from ellarepro.data.loading import Data
from ellarepro.errors import RunFailure, UserError
from ellarepro.evidence.bracket import bracket_forecast, evidence_bounds, log_det_bounds
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.evidence.predictive import linearised_scores
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.objectives.objective import Objective, Pause
from ellarepro.settings.parts import BracketSettings, LaplaceSettings


class Laplace(Objective):
    """Every so many epochs the curvature is fitted, and hyper-steps on the log precisions ascend the evidence.

    Arguments as of `Objective`: the settings say when the precisions move, how far, and how the curvature is fitted.
    """

    settings: LaplaceSettings

    def __init__(self, prior: LayerwisePrior, likelihood: Likelihood, data: Data, **options: Any):
        super().__init__(prior, likelihood, data, **options)
        learned = [prior.log_precision, *likelihood.hyperparameters()]
        self.hyper_optimiser = torch.optim.Adam(learned, lr=self.settings.lr)
        self._fit: Fit | None = None
        self._fit_settings = self.settings.fit
        self._hyper_steps = 0

    def after_epoch(self, epoch: int, epochs: int, loss: float, pause: Pause) -> dict[str, Any]:
        if not (self.settings.due(epoch) and epoch < epochs and self.takes_part(loss)):
            return {}
        marglik = self.fit(pause, f"epoch {epoch}", self.settings.hyper_fit_size)
        while self._hyper_steps < self.settings.steps:
            marglik.ascend(self.prior.log_precision, self.hyper_optimiser, 1)
            self._hyper_steps += 1
            pause()
        told = self._told(marglik) | self.learned_from(cast(Fit, self._fit), marglik)
        self._fit, self._hyper_steps = None, 0
        if self.likelihood.hyperparameters():
            told["hyperparameters"] = {"noise_precision": self.factor} | told.get("hyperparameters", {})
        return told | {"prior_precision": self.prior.precisions()}

    def learned_from(self, fit: Fit, marglik: MarginalLikelihood) -> dict[str, Any]:
        """What a subclass learns from a fit beside the precisions, and tells of it; the base learns nothing."""
        return {}

    def _told(self, marglik: MarginalLikelihood) -> dict[str, Any]:
        log_precision = self.prior.log_precision.detach()
        numbers = marglik.effective_parameters(log_precision).tolist()
        return {
            "neg_log_marglik_per_datum": marglik.evidence(log_precision).negative_per_datum,
            "effective_parameters": dict(zip(self.prior.names, numbers, strict=True)),
        }

    def fit(self, pause: Pause = lambda: None, when: str = "fit", size: int | None = None) -> MarginalLikelihood:
        """The marginal likelihood at the current weights, or what of it a stopped run has still to do.

        A fit that runs out of memory starts again with half as many samples a batch.

        Args:
            when: begins what is said of a failure.
            size: data that it sees, loss included; None for the whole training set.

        Raises:
            RunFailure: the curvature is not finite, or memory does not suffice for one sample.
        """
        # Continued between hyper-steps, the fit is taken apart again; what happened then has been counted.
        again = self._hyper_steps > 0
        while True:
            try:
                with counted(Counter() if again else self.fallbacks):
                    self._fit = self._fit or self.new_fit(size=size)
                    return self._fit.whole(pause)
            except CurvatureError as error:
                raise RunFailure(f"{when}: {error}") from error
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve_fit_batch(error, when)

    def new_fit(self, generator: torch.Generator | None = None, size: int | None = None) -> Fit:
        """A fit that has still to begin, by draws of the objective's own generator if none is given.

        Args:
            size: as of `fit`, the first ones.
        """
        data, data_size = self.data, None
        if size is not None and isinstance(data, Samples):
            data, data_size = data.first(size), len(data)
        drawn = generator or self.generator
        return Fit(self.model, self.prior, data, self._fit_settings, drawn, self.likelihood, data_size=data_size)

    def _halve_fit_batch(self, error: RuntimeError, when: str) -> None:
        got, self._fit = self._fit_settings.batch_size, None
        if got == 1:
            raise RunFailure(
                f"{when}: a fit of the curvature ran out of memory with one sample a batch; "
                "lower alpha, or take objective.structure=diag"
            ) from error
        self._fit_settings = replace(self._fit_settings, batch_size=got // 2)
        self.fallbacks["fit_batch_halved"] += 1

    def fits(self, epochs: int) -> int:
        return 1 + sum(self.settings.due(epoch) for epoch in range(1, epochs))

    def check_memory(self) -> str | None:
        if not isinstance(self.data, Samples):
            return None
        inputs = self.data.inputs
        try:
            if (bracket := self.settings.bounds) is not None:
                bracket_forecast(self.model, inputs, bracket, self.likelihood).check(inputs.device)
            accumulator = accumulator_of(self.model, self.settings.fit, self.generator, self.likelihood)
            return accumulator.forecast(inputs[: self.settings.fit.fit_size]).check(inputs.device)
        except FactorsTooLarge as error:
            raise UserError(str(error)) from error
        except ValueError as error:
            raise UserError(f"objective.{error}") from error

    def untrained(self, seed: int) -> dict[str, float]:
        """What follows from a fit of its own; empty where it fails, as a run does without its reference."""
        fit = self.new_fit(torch.Generator(self.prior.parameters[0].device).manual_seed(seed))
        try:
            return self._told(fit.whole())["effective_parameters"]
        except (CurvatureError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            return {}

    def report(self, test: Samples, generator: torch.Generator, pause: Pause) -> dict[str, Any]:
        marglik = self.fit(pause, "after the last epoch")
        self._fit = None
        told = self._told(marglik)
        if (bounds := self.settings.bounds) is not None and isinstance(self.data, Samples):
            told |= self._bounds(marglik, bounds, self.data.inputs, generator.initial_seed())
        if samples := self.settings.predictive_samples:
            with counted(self.fallbacks):
                deltas = self.prior.log_precision.detach().exp()
                posterior = posterior_precision(marglik.curvature, deltas, self.factor)
            scores = linearised_scores(self.model, posterior, test, self.likelihood, samples, generator)
            told["linearised"] = scores.known()
        return told

    def _bounds(
        self, marglik: MarginalLikelihood, settings: BracketSettings, inputs: Tensor, seed: int
    ) -> dict[str, list[float]]:
        log_precision, generator = self.prior.log_precision.detach(), torch.Generator().manual_seed(seed)
        deltas = log_precision.exp() / self.factor
        found = log_det_bounds(self.model, deltas, inputs, settings, generator, self.likelihood)
        bounds, errors = evidence_bounds(marglik, log_precision, found)
        return {"neg_log_marglik_bounds": bounds, "neg_log_marglik_bounds_errors": errors}

    @property
    def doing(self) -> str | None:
        if self._hyper_steps:
            return f"step {self._hyper_steps} of {self.settings.steps} on the precisions"
        return f"batch {self._fit.done} of the fit" if self._fit else None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "hyper_optimiser": self.hyper_optimiser.state_dict(),
            "hyper_steps": self._hyper_steps,
            "fit": None if self._fit is None else self._fit.state_dict(),
            "fit_is_last": self._fit is not None and self._fit.data_size is None,
            "fit_batch_size": self._fit_settings.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.hyper_optimiser.load_state_dict(state["hyper_optimiser"])
        self._hyper_steps = state["hyper_steps"]
        self._fit_settings = replace(self.settings.fit, batch_size=state["fit_batch_size"])
        self._fit = None
        if state["fit"] is not None:
            self._fit = self.new_fit(size=None if state["fit_is_last"] else self.settings.hyper_fit_size)
            self._fit.load_state_dict(state["fit"])
