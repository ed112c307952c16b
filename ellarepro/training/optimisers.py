"""The rule of the steps on the weights, a class of any library, and their rate."""

import math
from functools import partial
from pydoc import locate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ellarepro.errors import UserError
from ellarepro.objectives.objective import Objective
from ellarepro.settings.parts import OptimiserSettings, WeightSettings


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


def optimiser_of(
    model: nn.Module, settings: OptimiserSettings, objective: Objective | None = None
) -> torch.optim.Optimizer:
    """The optimiser of the trainable tensors of `model`; each group has its `lr_scale`, which multiplies the rate.

    A class takes parameter groups, as those of torch.optim do. One that needs the network, the prior or the likelihood
    has a class method `of_objective(objective, groups, *, lr, **arguments)` for that.

    Raises:
        UserError: there is no such class, or it refuses its arguments.
    """
    kind, groups = _kind(settings), parameter_groups(model, settings.relative)
    make = partial(kind.of_objective, objective) if hasattr(kind, "of_objective") else kind
    try:
        optimiser = make(groups, lr=settings.lr, **settings.arguments)
    except Exception as error:  # What the class of any library raises.
        raise _refused(settings, error) from error
    for group in optimiser.param_groups:
        group.setdefault("lr_scale", 1.0)
    return optimiser


def states_of(settings: OptimiserSettings) -> int:
    """Numbers that the optimiser keeps for each weight, at least: as a step on a few weights tells.

    Raises:
        UserError: as `optimiser_of`, or such a step is not possible.
    """
    if hasattr(_kind(settings), "of_objective"):
        return 0
    model = nn.ParameterList([torch.ones(2, 2, 3, 3), torch.ones(2, 3), torch.ones(2)])
    optimiser = optimiser_of(model, settings)
    for p in model:
        p.grad = torch.ones_like(p)
    try:
        optimiser.step()
    except Exception as error:  # As above.
        raise _refused(settings, error) from error
    kept = optimiser.state[model[0]].values()
    return sum(isinstance(state, Tensor) and state.numel() == model[0].numel() for state in kept)


def _kind(settings: OptimiserSettings) -> Any:
    kind = locate(settings._target_)
    if not callable(kind):
        package = settings._target_.partition(".")[0]
        raise UserError(f"optimiser={settings.name}: there is no class {settings._target_}; is {package} installed?")
    return kind


def _refused(settings: OptimiserSettings, error: Exception) -> UserError:
    got = ", ".join(f"{key}={value}" for key, value in settings.arguments.items())
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"optimiser={settings.name}: {settings._target_} is not possible with {got or 'lr alone'}: {reason}"
    )


def learning_rate(settings: WeightSettings, step: int, steps_per_epoch: int) -> float:
    """Rate of a step, counted from 0: a cosine over all epochs, during the warm-up times a line from 0 to 1."""
    total, rule = settings.epochs * steps_per_epoch, settings.optimiser
    rate = rule.min_lr + (rule.lr - rule.min_lr) * (1 + math.cos(math.pi * step / total)) / 2
    rising = rule.warmup * steps_per_epoch
    return rate * (step + 1) / rising if step + 1 < rising else rate


def parameter_groups(model: nn.Module, relative: bool) -> list[dict[str, Any]]:
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
