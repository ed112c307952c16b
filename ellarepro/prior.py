"""The prior: one Gaussian N(0, 1/delta) a parameter tensor (Section 3.2), delta kept as its logarithm."""

from collections.abc import Collection

import torch
from torch import Tensor, nn


class LayerwisePrior:
    """Log precisions eta = log delta of all trainable tensors, in the order of `model.parameters()`.

    Args:
        model: its trainable tensors are covered.
        precision: delta of every tensor at the start.
        fixed: names of tensors whose precision is not learned.

    Attributes:
        log_precision: `(L,)`, float64, on the CPU: there are few, and their optimiser should not wait for a GPU.

    Raises:
        ValueError: a precision that is not positive; a name in `fixed` that is no trainable tensor's.
    """

    def __init__(self, model: nn.Module, precision: float = 1.0, fixed: Collection[str] = ()):
        if not precision > 0:
            raise ValueError(f"precision must be positive, got {precision}")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        if strays := set(fixed) - set(self.names):
            raise ValueError(f"fixed names tensors that are not trainable: {sorted(strays)}")
        self.log_precision = torch.full((len(named),), precision, dtype=torch.float64).log().requires_grad_()
        # A zero gradient from the first step on leaves Adam's moments, and so the precision, at rest.
        learned = torch.tensor([name not in fixed for name in self.names], dtype=torch.float64)
        self.log_precision.register_hook(lambda gradient: gradient * learned)

    def precisions(self) -> dict[str, float]:
        """delta of each tensor by name."""
        return dict(zip(self.names, self.log_precision.detach().exp().tolist(), strict=True))

    @torch.no_grad()
    def squared_norms(self) -> Tensor:
        """|theta_l|^2 of each tensor, `(L,)`, float64, on the CPU."""
        return torch.stack([p.double().square().sum() for p in self.parameters]).cpu()

    @torch.no_grad()
    def add_gradients(self, deltas: list[float], data_size: int) -> None:
        """Add the gradient of -log p(theta) / N to the parameters' gradients: delta theta / N, tensor by tensor."""
        for p, delta in zip(self.parameters, deltas, strict=True):
            p.grad.add_(p, alpha=delta / data_size)
