"""Draws of all weights for a few steps at once, and the gradient that these steps leave for the posterior's factors."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ellarepro.evidence.matrix_normal import MatrixNormal


class Draws:
    """Draws of theta - M for `count` steps, one each, with the factors as they are.

    The factors are read once for all steps, forward and backward, so that wide ones cost little beside the steps.

    Args:
        posteriors: by name of the tensor.
        noise: by name, as of `MatrixNormal.noise`.
    """

    def __init__(self, posteriors: Mapping[str, MatrixNormal], noise: Mapping[str, Tensor]):
        self.noise, self.used = dict(noise), 0
        with torch.enable_grad():
            self._drawn = {name: q.deviations(noise[name]) for name, q in posteriors.items()}
        self._leaves = {
            name: [one.requires_grad_() for one in drawn.detach().unbind()] for name, drawn in self._drawn.items()
        }

    @classmethod
    def ahead(cls, posteriors: Mapping[str, MatrixNormal], count: int, generator: torch.Generator | None) -> "Draws":
        """Of `count` steps."""
        return cls(posteriors, {name: q.noise(count, generator) for name, q in posteriors.items()})

    @property
    def left(self) -> int:
        """Steps that have still to come."""
        return len(next(iter(self.noise.values()))) - self.used

    def next(self) -> dict[str, Tensor]:
        """The draw of the next step, by name; its gradients are kept."""
        self.used += 1
        return {name: leaves[self.used - 1] for name, leaves in self._leaves.items()}

    def backward(self, besides: Tensor) -> None:
        """Give the factors the gradients of the mean loss of the steps plus `besides`, a scalar."""
        gradients = [gradient / self.used for gradient in self._gradients().values()]
        torch.autograd.backward([*self._drawn.values(), besides], [*gradients, torch.ones_like(besides)])

    def _gradients(self) -> dict[str, Tensor]:
        """`(used, ...)` by name."""
        return {
            name: torch.stack([cast(Tensor, leaf.grad) for leaf in leaves[: self.used]])
            for name, leaves in self._leaves.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """What `of_state` needs beside the posteriors."""
        return {"noise": self.noise, "gradients": self._gradients()}

    @classmethod
    def of_state(cls, posteriors: Mapping[str, MatrixNormal], state: Mapping[str, Any]) -> "Draws":
        """Go on from `state`."""
        device = next(iter(posteriors.values())).log_scales[0].device
        draws = cls(posteriors, {name: noise.to(device) for name, noise in state["noise"].items()})
        for name, gradients in state["gradients"].items():
            for leaf, gradient in zip(draws._leaves[name], gradients.to(device), strict=False):
                leaf.grad = gradient
            draws.used = len(gradients)
        return draws
