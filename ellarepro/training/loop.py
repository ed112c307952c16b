"""The two-level loop: epochs on the weights and, every so often, hyper-steps on the prior precisions."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ellarepro.curvature.eigen import CurvatureError, counted
from ellarepro.curvature.memory import out_of_memory
from ellarepro.data.augment import flip_and_crop
from ellarepro.data.batches import batches_in_order, epoch_order
from ellarepro.data.dataset import Task
from ellarepro.errors import RunFailure, UserError
from ellarepro.evidence.marglik import Fit, MarginalLikelihood
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.settings.parts import LaplaceSettings, WeightSettings
from ellarepro.training.epoch import EpochPlace
from ellarepro.training.optimisers import learning_rate, optimiser_of
from ellarepro.training.replay import ReplayedStep


@dataclass
class Trainer:
    """Everything that a run changes, and thus what a checkpoint holds.

    Args:
        laplace: None for MAP, with the precisions fixed.
        generator: orders and augments the batches; lies on the data's device.
        replay: whether the steps of whole batches are replayed as a CUDA graph; on a CUDA device only.
        on_epoch: called after each epoch with (epoch, metrics): `loss` (nats a datum), `objective` (loss plus
            -log p(theta) / N, up to a constant), `train_accuracy`, and after hyper-steps `neg_log_marglik_per_datum`,
            `prior_precision` and `effective_parameters` by tensor.
        pause: called between any two steps, batches of a fit and hyper-steps, with a function that gives the state;
            what it raises ends the run there.
        fallbacks: what has happened to the eigendecompositions of all fits, as `curvature.eigen.counts` names it, and
            how often a fit's batches were halved for want of memory, `fit_batch_halved`.
    """

    model: nn.Module
    prior: LayerwisePrior
    task: Task
    weights: WeightSettings
    laplace: LaplaceSettings | None
    generator: torch.Generator
    replay: bool = False
    on_epoch: Callable[[int, dict[str, Any]], None] = lambda epoch, metrics: None
    pause: Callable[[Callable[[], dict[str, Any]]], None] = lambda state: None
    epoch: int = 0
    seconds: float = 0.0
    history: dict[str, Any] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        self.optimiser = optimiser_of(self.model, self.weights)
        self.hyper_optimiser = torch.optim.Adam([self.prior.log_precision], lr=self.laplace.lr if self.laplace else 0.0)
        self.history = {"epoch": [], "loss": [], "train_accuracy": [], "fit_epoch": [], "neg_log_marglik_per_datum": []}
        self.history["prior_precision"] = {name: [] for name in self.prior.names}
        self._place: EpochPlace | None = None
        self._fit: Fit | None = None
        self._fit_batch_size = self.laplace.fit.batch_size if self.laplace else 0
        self._plateau = self.weights.plateau and self.weights.plateau * self.task.guessing_loss()
        self._lapped = time.monotonic()
        self._make_step()

    def _make_step(self) -> None:
        replayed = ReplayedStep(self.weights.batch_size, self._plain_step, self.optimiser)
        self._step = replayed if self.replay else self._plain_step

    def run(self) -> None:
        """Train to the last epoch, or on from where `load_state_dict` has put it.

        Raises:
            RunFailure: a non-finite loss or curvature.
        """
        self._lapped = time.monotonic()
        while self.epoch < self.weights.epochs:
            metrics = self._train_epoch()
            done = self.epoch + 1
            due = self.laplace is not None and self.laplace.due(done) and not self._on_plateau(metrics["loss"])
            if due and done < self.weights.epochs:
                metrics |= self._learn_precisions()
            # Not before the fit: a run that is continued in the middle of one is still in this epoch.
            self.epoch, self._place, self._fit = done, None, None
            self.lap()
            self._record(metrics)
            self._pause()

    def lap(self) -> None:
        """Count the time since the last lap."""
        now = time.monotonic()
        self.seconds, self._lapped = self.seconds + now - self._lapped, now

    def fit_evidence(self) -> MarginalLikelihood:
        """The marginal likelihood at the current weights, on the unaugmented training set.

        A fit that runs out of memory starts again with half as many images a batch.

        Raises:
            RunFailure: the curvature is not finite, or memory does not suffice for one image.
        """
        evidence = self._evidence()
        self._fit = None
        return evidence

    def _evidence(self) -> MarginalLikelihood:
        # Continued between hyper-steps, the fit is taken apart again; what happened then has been counted.
        again = self._place is not None and self._place.hyper_steps > 0
        while True:
            try:
                with counted(Counter() if again else self.fallbacks):
                    return self._fitted()
            except CurvatureError as error:
                raise RunFailure(f"epoch {self.epoch}: {error}") from error
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve_fit_batch(error)

    def _fitted(self) -> MarginalLikelihood:
        if self._fit is None:
            self._fit = self._new_fit()
        for _ in self._fit.batches():
            self._pause()
        return self._fit.result()

    def _new_fit(self) -> Fit:
        settings = replace(cast(LaplaceSettings, self.laplace).fit, batch_size=self._fit_batch_size)
        return Fit(self.model, self.prior, self.task.train, settings, self.generator)

    def _halve_fit_batch(self, error: RuntimeError) -> None:
        got, self._fit = self._fit_batch_size, None
        if got == 1:
            raise RunFailure(
                f"epoch {self.epoch}: a fit of the curvature ran out of memory with one image a batch; "
                "lower alpha, or take objective.structure=diag"
            ) from error
        self._fit_batch_size = got // 2
        self.fallbacks["fit_batch_halved"] += 1

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of the weights, at the optimiser's present learning rate.

        The host never waits for the device: the precisions lie on the CPU.

        Returns:
            The loss (nats a datum, without the prior) and the logits `(B, K)` before the step, detached.
        """
        part = 0.0 if self._on_plateau(*self.history["loss"][-1:]) else 1.0
        return self._step(images, labels, [part * pull for pull in self.prior.pulls(len(self.task.train))])

    def _plain_step(self, images: Tensor, labels: Tensor, pulls: Sequence[float | Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.prior.add_gradients(pulls)
        self.optimiser.step()
        return loss.detach(), logits.detach()

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training set, or what is left of it. Everything stays on the device until its end."""
        data, batch_size = self.task.train, self.weights.batch_size
        steps = math.ceil(len(data) / batch_size)
        if self._place is None:
            self._place = EpochPlace.start(epoch_order(data, self.generator), steps)
        place = self._place
        if place.metrics is not None:
            return place.metrics
        augment = flip_and_crop if self.task.augment else None
        self.model.train()
        rest = place.order[place.step * batch_size :]
        for images, labels in batches_in_order(data, rest, batch_size, self.generator, augment):
            self._set_lr(learning_rate(self.weights, self.epoch * steps + place.step, steps))
            place.count(*self.step(images, labels), labels)
            self._pause()
        self.model.eval()
        place.check_finite(self.model, self.epoch, self.weights)
        nll = place.loss_sum.item() / len(data)
        penalty = (self.prior.log_precision.detach().exp() * self.prior.squared_norms()).sum().item() / (2 * len(data))
        place.metrics = {"loss": nll, "objective": nll + penalty, "train_accuracy": place.correct.item() / len(data)}
        return place.metrics

    def _learn_precisions(self) -> dict[str, Any]:
        evidence = self._evidence()
        log_precision = self.prior.log_precision
        place, steps = cast(EpochPlace, self._place), cast(LaplaceSettings, self.laplace).steps
        while place.hyper_steps < steps:
            evidence.ascend(log_precision, self.hyper_optimiser, 1)
            place.hyper_steps += 1
            self._pause()
        effective = evidence.effective_parameters(log_precision).tolist()
        with torch.no_grad():
            value = evidence.evidence(log_precision).negative_per_datum
        metrics: dict[str, Any] = {"neg_log_marglik_per_datum": value}
        metrics["effective_parameters"] = dict(zip(self.prior.names, effective, strict=True))
        metrics["prior_precision"] = self.prior.precisions()
        return metrics

    def _on_plateau(self, loss: float = math.inf) -> bool:
        """Whether the network only guesses, after an epoch with this `loss` (`WeightSettings.plateau`)."""
        return self._plateau is not None and loss > self._plateau

    @property
    def only_guesses(self) -> bool:
        """Whether it has from the first epoch on, so that the prior has had no part yet."""
        return self._on_plateau(min(self.history["loss"], default=math.inf))

    def _pause(self) -> None:
        self.pause(self._sound_state)

    def _sound_state(self) -> dict[str, Any]:
        """The state, if the run has not diverged: what is kept can be continued."""
        if self._place is not None:
            self._place.check_finite(self.model, self.epoch, self.weights)
        self.lap()
        return self.state_dict()

    def _set_lr(self, lr: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def _record(self, metrics: dict[str, Any]) -> None:
        history = self.history
        history["epoch"].append(self.epoch)
        history["loss"].append(metrics["loss"])
        history["train_accuracy"].append(metrics["train_accuracy"])
        if "neg_log_marglik_per_datum" in metrics:
            history["fit_epoch"].append(self.epoch)
            history["neg_log_marglik_per_datum"].append(metrics["neg_log_marglik_per_datum"])
            for name, precision in metrics["prior_precision"].items():
                history["prior_precision"][name].append(precision)
        self.on_epoch(self.epoch, metrics)

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "log_precision": self.prior.log_precision.detach(),
            "hyper_optimiser": self.hyper_optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "fallbacks": dict(self.fallbacks),
            "place": None if self._place is None else dict(vars(self._place)),
            "fit": None if self._fit is None else self._fit.state_dict(),
            "fit_batch_size": self._fit_batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as `state_dict` gave it.

        Raises:
            UserError: a part is missing or does not fit the network.
        """
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the checkpoint does not fit this run ({type(error).__name__}: {reason}); delete it to start afresh"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        device = self.task.train.labels.device
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._make_step()
        with torch.no_grad():
            self.prior.log_precision.copy_(state["log_precision"])
        self.hyper_optimiser.load_state_dict(state["hyper_optimiser"])
        self.generator.set_state(state["generator"])
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]
        self.fallbacks = Counter(state["fallbacks"])
        self._fit_batch_size = state["fit_batch_size"]
        self._place = EpochPlace(**state["place"]).to(device) if state["place"] else None
        self._fit = None
        if state["fit"] is not None:
            self._fit = self._new_fit()
            self._fit.load_state_dict(state["fit"])

    @property
    def doing(self) -> str:
        """What of an epoch goes on, in words."""
        if self._place is not None and self._place.hyper_steps:
            return f"step {self._place.hyper_steps} of {cast(LaplaceSettings, self.laplace).steps} on the precisions"
        if self._fit is not None:
            return f"batch {self._fit.done} of the fit"
        return f"step {self.steps_done}"

    @property
    def steps_done(self) -> int:
        """Steps of the epoch that it stands in."""
        return 0 if self._place is None else self._place.step
