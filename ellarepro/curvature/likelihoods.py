"""The likelihoods by name, and the one of binary labels."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.columns import Columns, UnitColumns
from ellarepro.curvature.likelihood import Classification, Likelihood, Regression, last_axis_hint


class Bernoulli(Likelihood):
    """K independent binary labels, one logit each: `targets (B, K)` from 0 to 1. The loss is the cross-entropy."""

    measure = "accuracy"

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """ValueError unless `targets` are of the outputs' shape and from 0 to 1."""
        if targets.shape != outputs.shape:
            raise ValueError(
                f"bernoulli needs targets of the outputs' shape {tuple(outputs.shape)}, got "
                f"{tuple(targets.shape)}{last_axis_hint(targets, outputs)}"
            )
        if not ((targets >= 0) & (targets <= 1)).all():
            raise ValueError(f"targets must be from 0 to 1, got {targets.min().item()} to {targets.max().item()}")

    def columns(
        self, outputs: Tensor, tolerance: float, passes: int | None, generator: torch.Generator | None
    ) -> Columns:
        return UnitColumns(outputs, passes, generator, _binary_variance(outputs))

    def hessian(self, outputs: Tensor) -> Tensor:
        """diag(p (1 - p))."""
        return torch.diag_embed(_binary_variance(outputs))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none").sum(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of a sample's labels that are rightly told, summed over samples."""
        return ((outputs > 0) == (targets > 0.5)).double().mean(1).sum()

    def measured(self, right: float, data_size: int) -> float:
        """The share of labels, 0 to 1."""
        return right / data_size

    def guessing_loss(self, targets: Tensor) -> float:
        """The entropy of each label's share, nats, summed."""
        shares = targets.double().mean(0)
        return (torch.special.entr(shares) + torch.special.entr(1 - shares)).sum().item()

    def log_likelihood(self, total_loss: Tensor | float, data_size: int, width: int) -> Tensor:
        return -torch.as_tensor(total_loss, dtype=torch.float64, device="cpu")


LIKELIHOODS: dict[str, type[Likelihood]] = {k.__name__.lower(): k for k in (Classification, Bernoulli, Regression)}


def likelihood_of(given: object) -> Likelihood:
    """The likelihood of a name, or a copy of one that is given: what it learns belongs to one network.

    Raises:
        ValueError: another name, or an object that is no likelihood, a class or a loss say.
    """
    if isinstance(given, Likelihood):
        return deepcopy(given)
    if isinstance(given, str) and given in LIKELIHOODS:
        return LIKELIHOODS[given]()
    got = repr(given) if isinstance(given, str | type) else type(given).__name__
    raise ValueError(
        f"likelihood must be one of {', '.join(LIKELIHOODS)}, or an object, Regression(4.0) say; got {got}"
    )


def state_of(likelihood: Likelihood) -> dict[str, Any]:
    """The attributes of `likelihood`, and its kind."""
    values = {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in vars(likelihood).items()}
    return {"kind": type(likelihood).__name__, "values": values}


@torch.no_grad()
def load_state(likelihood: Likelihood, state: dict[str, Any]) -> None:
    """Give `likelihood` the attributes of which `state` was. ValueError for one of another kind."""
    if state["kind"] != type(likelihood).__name__:
        raise ValueError(f"the state is of a {state['kind']}, this object has a {type(likelihood).__name__}")
    for name, value in state["values"].items():
        own = getattr(likelihood, name)
        if isinstance(own, Tensor):
            value = value.to(own.device, copy=True).requires_grad_(own.requires_grad)
        setattr(likelihood, name, value)


def _binary_variance(logits: Tensor) -> Tensor:
    """p (1 - p)."""
    return logits.sigmoid() * (-logits).sigmoid()
