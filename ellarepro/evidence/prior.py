"""The prior: one Gaussian N(0, 1/delta) a parameter tensor (Section 3.2), delta kept as its logarithm."""

import math
from collections.abc import Collection, Sequence
from copy import deepcopy
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn


class LayerwisePrior:
    """Log precisions eta = log delta of all trainable tensors, in the order of `model.parameters()`.

    Args:
        model: its trainable tensors are covered.
        precision: delta of every tensor at the start.
        fixed: names of tensors whose precision is not learned.
        tied: groups of names whose tensors share one learned precision. The factors of a path can trade scale, c theta1
            and theta2 / c, without changing the map or the evidence, so only the product of their precisions means
            anything. Weights at their maximum have delta1 |theta1|^2 = delta2 |theta2|^2, and the evidence wants gamma
            of each. Untied, the two precisions drift apart for ever unless gamma1 = gamma2.

    Attributes:
        model: as given.
        log_precision: `(L,)`, float64, on the CPU: there are few, and their optimiser should not wait for a GPU.

    Raises:
        ValueError: a precision that is not positive and finite; a name in `fixed` or `tied` that is no trainable
            tensor's; a name in two groups; a group of which only a part is fixed.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: float = 1.0,
        fixed: Collection[str] = (),
        tied: Collection[Collection[str]] = (),
    ):
        if not 0 < precision < math.inf:
            raise ValueError(f"precision must be positive and finite, got {precision}")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.model = model
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        if strays := set(fixed) - set(self.names):
            raise ValueError(f"fixed names tensors that are not trainable: {sorted(strays)}")
        start = torch.full((len(named),), precision, dtype=torch.float64, device="cpu")
        self.log_precision = start.log().requires_grad_()
        # A zero gradient from the first step on leaves Adam's moments, and so the precision, at rest; and the same
        # gradient from the same start keeps tied precisions equal, in whatever the optimiser carries along.
        learned = torch.tensor([name not in fixed for name in self.names], dtype=torch.float64, device="cpu")
        self.shared = learned[:, None] * self._sums(fixed, tied)
        self._share_gradients()

    def _share_gradients(self) -> None:
        self.log_precision.register_hook(self.shared.mv)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a tensor has none of its hooks, and PyTorch warns where there is one.
        return vars(self) | {"log_precision": self.log_precision.detach().requires_grad_()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._share_gradients()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerwisePrior":
        other = memo[id(self)] = LayerwisePrior.__new__(LayerwisePrior)
        # By the tensor itself, so that an optimiser that is copied along is of the copy's.
        other.__setstate__(deepcopy(vars(self), memo))
        return other

    def _sums(self, fixed: Collection[str], tied: Collection[Collection[str]]) -> Tensor:
        """`(L, L)`, zeros and ones: the gradient of each precision as the sum over the tensors that share it."""
        sums = torch.eye(len(self.names), dtype=torch.float64, device="cpu")
        grouped = [name for group in tied for name in group]
        if strays := set(grouped) - set(self.names):
            raise ValueError(f"tied names tensors that are not trainable: {sorted(strays)}")
        if len(set(grouped)) < len(grouped):
            raise ValueError(f"tied names a tensor twice: {sorted({n for n in grouped if grouped.count(n) > 1})}")
        for group in tied:
            if 0 < len(set(group) & set(fixed)) < len(group):
                raise ValueError(f"tied precisions must be fixed together or not at all: {sorted(group)}")
            where = [self.names.index(name) for name in group]
            for one, other in product(where, where):
                sums[one, other] = 1.0
        return sums

    def precisions(self) -> dict[str, float]:
        """delta of each tensor by name."""
        return dict(zip(self.names, self.log_precision.detach().exp().tolist(), strict=True))

    @torch.no_grad()
    def squared_norms(self) -> Tensor:
        """|theta_l|^2 of each tensor, `(L,)`, float64, on the CPU."""
        return torch.stack([p.double().square().sum() for p in self.parameters]).cpu()

    @torch.no_grad()
    def add_gradients(self, decays: Sequence[float | Tensor]) -> None:
        """Add the gradient of -log p(theta) / N to the parameters' gradients: delta theta / N, tensor by tensor.

        Args:
            decays: delta / N of each tensor, as numbers, or as scalars that lie on the parameters' device.
        """
        for p, decay in zip(self.parameters, decays, strict=True):
            gradient = cast(Tensor, p.grad)
            gradient.addcmul_(p, decay) if isinstance(decay, Tensor) else gradient.add_(p, alpha=decay)

    def weight_decays(self, data_size: int) -> list[float]:
        """delta / N of each tensor, of N data."""
        return (self.log_precision.detach().exp() / data_size).tolist()
