"""What a user gives beside a network and data, checked before anything is trained by it."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.settings.parts import DEFAULT_FIT, LaplaceSettings


def check_optimiser(optimiser: Any, prior: LayerwisePrior) -> None:
    """ValueError unless `optimiser` takes plain steps down the loss, of all trainable parameters and of no others.

    The prior's precisions are the weight decay of the objective: a second one would move its optimum.
    """
    if not isinstance(optimiser, torch.optim.Optimizer):
        got = repr(optimiser) if isinstance(optimiser, type) else type(optimiser).__name__
        raise ValueError(f"optimiser must be a torch.optim.Optimizer of the model's parameters; got {got}")
    closure = inspect.signature(optimiser.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimiser must step without a closure, as torch.optim.Adam does; got {type(optimiser).__name__}"
        )
    for group in optimiser.param_groups:
        if group.get("weight_decay"):
            raise ValueError(
                f"optimiser must have weight_decay=0, as the prior's precisions are in the loss; got "
                f"{group['weight_decay']}"
            )
        if group.get("maximize"):
            raise ValueError("optimiser must have maximize=False, as it is given a loss")
    given = {id(p) for group in optimiser.param_groups for p in group["params"]}
    lacking = [name for name, p in zip(prior.names, prior.parameters, strict=True) if id(p) not in given]
    if lacking:
        raise ValueError(
            f"optimiser must hold all trainable parameters of the model; it lacks {', '.join(lacking[:3])}"
            f"{' …' if len(lacking) > 3 else ''}: freeze what is not to be trained, and make a new object"
        )
    if strays := len(given) - len(prior.parameters):
        raise ValueError(f"optimiser must hold the model's trainable parameters alone; it holds {strays} others")


def check_parameters(model: nn.Module, prior: LayerwisePrior) -> None:
    """Refuse a model of other trainable tensors than those that the prior is of."""
    known = dict(zip(prior.names, prior.parameters, strict=True))
    there = {name: p for name, p in model.named_parameters() if p.requires_grad}
    changed = sorted(name for name in known.keys() | there.keys() if known.get(name) is not there.get(name))
    if changed or list(known) != list(there):
        raise ValueError(
            f"the trainable parameters are not those that this object was made with: {changed or list(there)}; "
            "make a new one"
        )


def check_schedule(schedule: LaplaceSettings, epochs: int) -> None:
    """ValueError for a schedule that says more than when precisions move, or after so many `epochs` has not begun."""
    of_runs: dict[str, Any] = {"tied": False, "predictive_samples": 0, "bracket": None, "hyper_fit_size": None}
    if replace(schedule, fit=DEFAULT_FIT, **of_runs) != schedule:
        raise ValueError(
            "schedule says when the precisions move, by burn_in, frequency, steps and lr, no more: fit goes "
            f"into LayerwiseLaplace(settings=...), {', '.join(of_runs)} are of whole runs; got {schedule}"
        )
    if epochs <= schedule.burn_in:
        raise ValueError(f"epochs must be above burn_in={schedule.burn_in} for anything to be learned; got {epochs}")
