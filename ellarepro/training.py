"""The two-level loop: epochs on the weights and, every so often, hyper-steps on the prior precisions."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.checkpoint import load_checkpoint, save_checkpoint
from ellarepro.curvature.eigen import CurvatureError, counted
from ellarepro.data.augment import flip_and_crop
from ellarepro.data.batches import epoch_batches
from ellarepro.data.dataset import Task
from ellarepro.errors import RunFailure
from ellarepro.marglik import MarginalLikelihood, fit
from ellarepro.prior import LayerwisePrior
from ellarepro.settings import LaplaceSettings, WeightSettings


@dataclass
class Trainer:
    """Everything that a run changes, and thus what a checkpoint holds.

    Args:
        laplace: None for MAP, with the precisions fixed.
        generator: orders and augments the batches; lies on the data's device.
        on_epoch: called after each epoch with (epoch, metrics): `loss` (nats a datum), `objective` (loss plus
            -log p(theta) / N, up to a constant), `train_accuracy`, and after hyper-steps `neg_log_marglik_per_datum`,
            `prior_precision` and `effective_parameters` by tensor.
        fallbacks: what has happened to the eigendecompositions of all fits, as `curvature.eigen.counts` names it.
    """

    model: nn.Module
    prior: LayerwisePrior
    task: Task
    weights: WeightSettings
    laplace: LaplaceSettings | None
    generator: torch.Generator
    on_epoch: Callable[[int, dict[str, Any]], None] = lambda epoch, metrics: None
    epoch: int = 0
    seconds: float = 0.0
    history: dict[str, Any] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        groups = _parameter_groups(self.model, self.weights.relative)
        if self.weights.optimiser == "sgd":
            self.optimiser = torch.optim.SGD(groups, lr=self.weights.lr, momentum=self.weights.momentum, fused=True)
        else:
            self.optimiser = torch.optim.Adam(groups, lr=self.weights.lr, fused=True)
        hyper_lr = self.laplace.lr if self.laplace else 0.0
        self.hyper_optimiser = torch.optim.Adam([self.prior.log_precision], lr=hyper_lr)
        self.history = {"epoch": [], "loss": [], "train_accuracy": [], "fit_epoch": [], "neg_log_marglik_per_datum": []}
        self.history["prior_precision"] = {name: [] for name in self.prior.names}

    def restore(self, checkpoint: Path) -> None:
        """Continue from `checkpoint` if it is there.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        if (state := load_checkpoint(checkpoint)) is not None:
            self.load_state_dict(state)

    def run(self, checkpoint: Path | None = None, checkpoint_seconds: float = 30.0) -> None:
        """Train to the last epoch; writes `checkpoint` at the end of an epoch, at most every `checkpoint_seconds`.

        Raises:
            RunFailure: a non-finite loss or curvature; the last good checkpoint stays.
        """
        saved = time.monotonic()
        while self.epoch < self.weights.epochs:
            started = time.monotonic()
            metrics = self._train_epoch()
            self.epoch += 1
            if self.laplace is not None and self.laplace.due(self.epoch) and self.epoch < self.weights.epochs:
                metrics |= self._learn_precisions()
            self.seconds += time.monotonic() - started
            self._record(metrics)
            if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
                save_checkpoint(checkpoint, self.state_dict())
                saved = time.monotonic()

    def fit_evidence(self) -> MarginalLikelihood:
        """The marginal likelihood at the current weights, on the unaugmented training set.

        Raises:
            RunFailure: the curvature is not finite.
        """
        try:
            with counted(self.fallbacks):
                return fit(self.model, self.prior, self.task.train, self.laplace.fit, self.generator)
        except CurvatureError as error:
            raise RunFailure(f"epoch {self.epoch}: {error}") from error

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of the weights, at the optimiser's present learning rate.

        The host never waits for the device: the precisions lie on the CPU.

        Returns:
            The loss (nats a datum, without the prior) and the logits `(B, K)` before the step, detached.
        """
        logits = self.model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.prior.add_gradients(self.prior.log_precision.detach().exp().tolist(), len(self.task.train))
        self.optimiser.step()
        return loss.detach(), logits.detach()

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training set. Everything stays on the device until the epoch's end."""
        device = self.task.train.labels.device
        size, batch_size = len(self.task.train), self.weights.batch_size
        steps = math.ceil(size / batch_size)
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.long, device=device)
        first_bad = torch.full((), steps, device=device)
        augment = flip_and_crop if self.task.augment else None
        self.model.train()
        for step, (images, labels) in enumerate(epoch_batches(self.task.train, batch_size, self.generator, augment)):
            self._set_lr(self.epoch * steps + step, self.weights.epochs * steps)
            loss, logits = self.step(images, labels)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            first_bad = torch.where(torch.isfinite(loss), first_bad, first_bad.clamp_max(step))
        self.model.eval()
        self._check_finite(first_bad.item(), steps)
        nll = loss_sum.item() / size
        penalty = (self.prior.log_precision.detach().exp() * self.prior.squared_norms()).sum().item() / (2 * size)
        return {"loss": nll, "objective": nll + penalty, "train_accuracy": correct.item() / size}

    def _learn_precisions(self) -> dict[str, float]:
        evidence = self.fit_evidence()
        log_precision = self.prior.log_precision
        evidence.ascend(log_precision, self.hyper_optimiser, self.laplace.steps)
        effective = evidence.effective_parameters(log_precision).tolist()
        with torch.no_grad():
            metrics = {"neg_log_marglik_per_datum": evidence.evidence(log_precision).negative_per_datum}
        metrics["effective_parameters"] = dict(zip(self.prior.names, effective, strict=True))
        metrics["prior_precision"] = self.prior.precisions()
        return metrics

    def _set_lr(self, step: int, total: int) -> None:
        span = self.weights.lr - self.weights.min_lr
        lr = self.weights.min_lr + span * (1 + math.cos(math.pi * step / total)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def _check_finite(self, first_bad: int, steps: int) -> None:
        bad_tensor = next((n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()), None)
        if first_bad >= steps and bad_tensor is None:
            return
        where = f"step {first_bad + 1} of {steps}" if first_bad < steps else "the last step"
        raise RunFailure(
            f"training diverged in epoch {self.epoch + 1}, {where}: the loss is not finite"
            + (f" and {bad_tensor} is the first tensor with non-finite entries" if bad_tensor else "")
            + f"; lower lr (now {self.weights.lr}) or raise batch_size (now {self.weights.batch_size})"
        )

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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as `state_dict` gave it."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            self.prior.log_precision.copy_(state["log_precision"])
        self.hyper_optimiser.load_state_dict(state["hyper_optimiser"])
        self.generator.set_state(state["generator"])
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]
        self.fallbacks = Counter(state.get("fallbacks", {}))


def _parameter_groups(model: nn.Module, relative: bool) -> list[dict[str, Any]]:
    """One group for all tensors, or with `relative` one a tensor with its learning-rate scale."""
    if not relative:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr_scale": 1.0}]
    groups = []
    for module in model.modules():
        tensors = [p for p in module.parameters(recurse=False) if p.requires_grad]
        scales = [p.detach().square().mean().sqrt().item() for p in tensors]
        # A bias starts at zero and has no scale of its own: it takes that of its layer's weight, the first tensor.
        groups += [{"params": [p], "lr_scale": scale or scales[0]} for p, scale in zip(tensors, scales, strict=True)]
    return groups
