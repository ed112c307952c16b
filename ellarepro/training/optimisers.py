"""The rule of the steps on the weights, and their rate."""

import math
from typing import Any, Protocol

import torch
from torch import nn

from ellarepro.settings.parts import WeightSettings


class Rates(Protocol):
    """Sets the learning rates of an optimiser before each step."""

    def set(self, step: int, steps_per_epoch: int) -> None:
        """Before `step`, counted from 0 over all epochs."""

    def state_dict(self) -> dict[str, Any]:
        """What continuing needs beside the number of the step."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class CosineRates:
    """The rates of a run: `learning_rate` times the scale of each group."""

    def __init__(self, optimiser: torch.optim.Optimizer, settings: WeightSettings):
        self.optimiser, self.settings = optimiser, settings

    def set(self, step: int, steps_per_epoch: int) -> None:
        lr = learning_rate(self.settings, step, steps_per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the rate follows from the number of the step."""


class SchedulerRates:
    """The rates of a `torch.optim` scheduler, which steps after each epoch; none leaves them as they are."""

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler | None = None):
        self.scheduler = scheduler

    def set(self, step: int, steps_per_epoch: int) -> None:
        if self.scheduler is not None and step and step % steps_per_epoch == 0:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


def optimiser_of(model: nn.Module, settings: WeightSettings) -> torch.optim.Optimizer:
    """SGD or Adam on the trainable tensors of `model`; each group has its `lr_scale`, which multiplies the rate."""
    groups = _parameter_groups(model, settings.relative)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    return torch.optim.Adam(groups, lr=settings.lr, fused=True)


def learning_rate(settings: WeightSettings, step: int, steps_per_epoch: int) -> float:
    """Rate of a step, counted from 0: a cosine over all epochs, during the warm-up times a line from 0 to 1."""
    total = settings.epochs * steps_per_epoch
    rate = settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * step / total)) / 2
    rising = settings.warmup * steps_per_epoch
    return rate * (step + 1) / rising if step + 1 < rising else rate


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
