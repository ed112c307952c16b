"""Natural gradients: steps along F^-1 times the gradient, F the Kronecker-factored generalised Gauss-Newton.

KFAC (Martens and Grosse, 2015) for every layer that has a curvature rule:

    optimiser = NaturalGradient(model)
    for inputs, targets in batches:
        loss = ...                      # mean over the batch, with the prior's -log p(theta) / N
        optimiser.zero_grad()
        loss.backward()
        optimiser.observe(inputs)
        optimiser.step()
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.damping import DampedInverses
from ellarepro.curvature.moving import MovingCurvature, refuse
from ellarepro.objectives.objective import Objective
from ellarepro.training.optimisers import parameter_groups

Move = tuple[Tensor, Tensor, Tensor]
"""A tensor, the direction of its step, and what that is multiplied by."""
_SMALLEST = 1e-18
"""Of root mean squares: in single precision the squares of smaller numbers vanish, and a step by them has no bound."""


class NaturalGradient(torch.optim.Optimizer):
    """Steps of a given size along the natural gradient, tensor by tensor.

    Of each tensor, m <- momentum m + gradient; its direction is (F + damping)^-1 m, with F the moving average of its
    block; and its step has a root mean square of `lr`, by default relative to what the tensor's was at the start. Where
    the gradient vanishes it stands still, as gradient descent does, so the prior's part belongs into the gradient.

    One size for all tensors together, in relative terms, would be that of the smallest: a path that starts at a
    hundredth of its scale then holds all others up.

    Args:
        model: every trainable tensor needs a curvature rule.
        lr: root mean square of a step over that of the tensor as it is now; a bias of zeros takes its weight's.
        groups: parameter groups, with an absolute `lr`, in place of one a tensor.
        momentum: of the gradients.
        damping: added to F, the curvature of a datum; split between factors as `curvature/damping.py` says.
        kl_clip: the most that a step may move the network's predictions: the sum over tensors of half of step^T (F +
            damping) step, which approximates the mean KL divergence, in nats a datum (Ba, Grosse and Martens, 2017).
            All steps are shortened alike; None does not limit them.
        curvature: options of `MovingCurvature`: `decay`, `every`, `share`, `passes`, `likelihood`, `seed`.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        groups: Sequence[dict[str, Any]] | None = None,
        *,
        momentum: float = 0.9,
        damping: float = 1e-3,
        kl_clip: float | None = None,
        **curvature: Any,
    ):
        refuse("lr", lr, 0 < lr < math.inf, "positive and finite")
        refuse("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1")
        refuse("damping", damping, 0 < damping < math.inf, "positive and finite")
        if kl_clip is not None:
            refuse("kl_clip", kl_clip, 0 < kl_clip < math.inf, "positive and finite")
        if groups is None:
            groups = [group | {"lr": lr * group["lr_scale"]} for group in parameter_groups(model, relative=True)]
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self.damping, self.kl_clip = damping, kl_clip
        self.curvature = MovingCurvature(model, **curvature)
        self._inverses: DampedInverses | None = None
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}

    @classmethod
    def of_objective(cls, objective: Objective, groups: Sequence[dict[str, Any]], **options: Any) -> "NaturalGradient":
        """Of a configuration, for the objective's model and likelihood."""
        return cls(objective.model, groups=groups, likelihood=objective.likelihood, **options)

    def observe(self, inputs: Tensor) -> bool:
        """Take `inputs (B, ...)` of the batch of the next step into account: `MovingCurvature.observe`.

        Returns:
            Whether a CUDA graph of `step` has to be captured anew: what it reads lies elsewhere now.
        """
        return self.curvature.observe(inputs) and self._invert()

    def _invert(self) -> bool:
        inverses = DampedInverses(self.curvature.average.blocks(), self.damping)
        if self._inverses is not None and self._inverses.replace(inverses):
            return False
        self._inverses = inverses
        return True

    def direction(self, name: str, gradient: Tensor) -> Tensor:
        """(F + damping)^-1 times `gradient` of the tensor `name`, in its shape.

        Raises:
            RuntimeError: nothing has been observed yet.
        """
        if self._inverses is None:
            raise RuntimeError("there is no curvature yet: call observe(inputs) with each batch, before step()")
        return self._inverses.times(name, gradient)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, computes loss and gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moves: Iterable[Move] = (
            (p, *self._move(p, group["lr"], group["momentum"]))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        )
        shorter: float | Tensor = 1.0
        if self.kl_clip is not None:
            shorter = self._shorter(moves := list(moves), self.kl_clip)
        for p, direction, rate in moves:
            p.sub_(direction.mul_(rate * shorter))
        return loss

    def _move(self, p: Tensor, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
        """The direction of a step, and what it is multiplied by to have the size `lr`."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        direction = self.direction(self._names[p], state["momentum"].mul_(momentum).add_(p.grad))
        size = direction.norm() / p.numel() ** 0.5
        return direction, lr / size.clamp_min(_SMALLEST)

    def _shorter(self, moves: Sequence[Move], limit: float) -> Tensor:
        """At most 1: what brings all steps together within `limit`. F + damping times a direction is its momentum."""
        products = [rate**2 * (direction * self.state[p]["momentum"]).sum() for p, direction, rate in moves]
        divergence = torch.stack(products).sum().clamp_min(0.0) / 2
        return (limit / divergence).sqrt().clamp_max(1.0)

    def state_dict(self) -> dict[str, Any]:
        """As every optimiser's, with the curvature: all that continuing bit for bit needs."""
        return super().state_dict() | {"curvature": self.curvature.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "curvature"})
        self.curvature.load_state_dict(state_dict["curvature"])
        if self.curvature.average.batches:
            self._invert()


def observe(optimiser: torch.optim.Optimizer, inputs: Tensor) -> bool:
    """Show `inputs (B, ...)` of the next step's batch to an optimiser that looks at them; returns as its `observe`."""
    return isinstance(optimiser, NaturalGradient) and optimiser.observe(inputs)


def capturable(optimiser: torch.optim.Optimizer) -> bool:
    """Whether all steps do the same and count nothing on the host, so that they can be replayed as a CUDA graph."""
    alike = isinstance(optimiser, NaturalGradient | torch.optim.SGD)
    return alike or all("capturable" in group for group in optimiser.param_groups)
