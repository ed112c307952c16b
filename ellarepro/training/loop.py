"""The two-level loop: epochs on the weights, and what the objective learns after them."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.hooks import training_mode
from ellarepro.data.training_batches import TrainingBatches
from ellarepro.errors import UserError
from ellarepro.objectives.objective import Objective
from ellarepro.training.epoch import EpochProgress
from ellarepro.training.natural_gradient import capturable, observe
from ellarepro.training.optimisers import Rates
from ellarepro.training.replay import ReplayedStep


@dataclass
class Trainer:
    """Everything that training changes, and thus what a checkpoint holds.

    Modules in evaluation mode within a model in training mode stay in it; between epochs each is in the mode it was in.

    Args:
        objective: what is ascended; it holds the model, the prior and the likelihood.
        data: the training batches.
        optimiser: of the weights.
        rates: sets the optimiser's learning rates before each step.
        generator: orders and augments the batches.
        replay: whether the steps of whole batches are replayed as a CUDA graph; on a CUDA device only.
        on_epoch: called after each epoch with (epoch, metrics): `loss` (a datum, the likelihood's), `objective` (loss
            plus -log p(theta) / N, up to a constant), `train_accuracy` or `train_rmse`, and what the objective tells.
        pause: called between any two steps, batches of a fit and hyper-steps, with a function that gives the state;
            what it raises ends training there. With data that cannot be resumed, between epochs only.
    """

    objective: Objective
    data: TrainingBatches
    optimiser: torch.optim.Optimizer
    rates: Rates
    epochs: int
    generator: torch.Generator
    replay: bool = False
    on_epoch: Callable[[int, dict[str, Any]], None] = lambda epoch, metrics: None
    pause: Callable[[Callable[[], dict[str, Any]]], None] = lambda state: None
    epoch: int = 0
    seconds: float = 0.0
    history: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.measure = f"train_{self.objective.likelihood.measure}"
        self.history = {"epoch": [], "loss": [], self.measure: [], "fit_epoch": [], "neg_log_marglik_per_datum": []}
        self.history["prior_precision"] = {name: [] for name in self.objective.prior.names}
        self.device = self.objective.prior.parameters[0].device
        self._progress: EpochProgress | None = None
        self._lapped = time.monotonic()
        self._make_step()

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self.objective.model

    def _make_step(self) -> None:
        replayed = ReplayedStep(self.data.batch_size, self._plain_step, self.optimiser)
        replays = self.replay and self.objective.replays and capturable(self.optimiser)
        self._step = replayed if replays else self._plain_step

    def run(self) -> None:
        """Train to the last epoch, or on from where `load_state_dict` has put it.

        Raises:
            RunFailure: a non-finite loss or curvature.
        """
        self._lapped = time.monotonic()
        while self.epoch < self.epochs:
            metrics = self._train_epoch()
            metrics |= self.objective.after_epoch(self.epoch + 1, self.epochs, metrics["loss"], self.pause_within)
            # Not before the objective is done: a run that is continued in the middle of a fit is still in this epoch.
            self.epoch, self._progress = self.epoch + 1, None
            self.lap()
            self._record(metrics)
            self.pause(self._sound_state)

    def lap(self) -> None:
        """Count the time since the last lap."""
        now = time.monotonic()
        self.seconds, self._lapped = self.seconds + now - self._lapped, now

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of the weights, at the optimiser's present learning rate.

        The host never waits for the device: the precisions lie on the CPU.

        Returns:
            The loss (a datum, without the prior) and the outputs `(B, K)` before the step, detached.
        """
        if observe(self.optimiser, inputs):
            self._make_step()
        last_loss = self.history["loss"][-1] if self.history["loss"] else math.inf
        return self._step(inputs, targets, self.objective.step_numbers(last_loss, self.data.size))

    def _plain_step(self, inputs: Tensor, targets: Tensor, numbers: Sequence[float | Tensor]) -> tuple[Tensor, Tensor]:
        loss, outputs = self.objective.forward(inputs, targets)
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.backward(loss, numbers)
        self.optimiser.step()
        return loss.detach(), outputs.detach()

    def _train_epoch(self) -> dict[str, Any]:
        """One pass over the training set, or what is left of it. Everything stays on the device until its end."""
        data, likelihood = self.data, self.objective.likelihood
        if self._progress is None:
            self._progress = EpochProgress.start(data.order(self.generator), data.steps, self.device)
        progress = self._progress
        if progress.metrics is None:
            with training_mode(self.model), torch.enable_grad():
                for inputs, targets in data.batches(progress.order, progress.step, self.generator):
                    self.rates.set(self.epoch * data.steps + progress.step, data.steps)
                    loss, outputs = self.step(inputs, targets)
                    progress.count(loss, likelihood.right(outputs, targets), len(targets))
                    self.pause_within()
            progress.check_finite(self.model, self.epoch, self._remedy)
            mean_loss = progress.loss_sum.item() / data.size
            progress.metrics = {"loss": mean_loss, "objective": mean_loss + self.objective.penalty() / data.size}
            progress.metrics[self.measure] = likelihood.measured(progress.right.item(), data.size)
        return dict(progress.metrics)

    @property
    def _remedy(self) -> str:
        lr = self.optimiser.param_groups[0]["lr"]
        return f"lower lr (now {lr:g}) or raise batch_size (now {self.data.batch_size})"

    @property
    def only_guesses(self) -> bool:
        """Whether the network has only guessed from the first epoch on, so that the prior has had no part yet."""
        return not self.objective.takes_part(min(self.history["loss"], default=math.inf))

    def pause_within(self) -> None:
        """A place within an epoch, or in the fit after the last one, where training can be stopped."""
        if self.data.resumable:
            self.pause(self._sound_state)

    def _sound_state(self) -> dict[str, Any]:
        """The state, if the run has not diverged: what is kept can be continued."""
        if self._progress is not None:
            self._progress.check_finite(self.model, self.epoch, self._remedy)
        self.lap()
        return self.state_dict()

    def _record(self, metrics: dict[str, Any]) -> None:
        history = self.history
        history["epoch"].append(self.epoch)
        history["loss"].append(metrics["loss"])
        history[self.measure].append(metrics[self.measure])
        if "neg_log_marglik_per_datum" in metrics:
            history["fit_epoch"].append(self.epoch)
            history["neg_log_marglik_per_datum"].append(metrics["neg_log_marglik_per_datum"])
            for kind in ("prior_precision", "hyperparameters"):
                for name, value in metrics.get(kind, {}).items():
                    history.setdefault(kind, {}).setdefault(name, []).append(value)
        self.on_epoch(self.epoch, metrics)

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rates": self.rates.state_dict(),
            "objective": self.objective.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "place": None if self._progress is None else dict(vars(self._progress)),
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
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rates.load_state_dict(state["rates"])
        self._make_step()
        self.objective.load_state_dict(state["objective"])
        self.generator.set_state(state["generator"])
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]
        self._progress = EpochProgress(**state["place"]).to(self.device) if state["place"] else None

    @property
    def doing(self) -> str:
        """What of an epoch goes on, in words."""
        return self.objective.doing or f"step {self.steps_done}"

    @property
    def steps_done(self) -> int:
        """Steps of the epoch that it stands in."""
        return 0 if self._progress is None else self._progress.step
