"""Draws from the Laplace posterior N(0, (H + D)^-1) with the exact curvature, by the kernel of its rows.

With e ~ N(0, D^-1), z ~ N(0, I) and R^T R = H,

    epsilon = e + D^-1 R^T (I + R D^-1 R^T)^-1 (z - R e)

has the posterior's covariance (Matheron's rule). R e and R^T w are forward and backward passes through the network, so
no row is written out. Of more rows than one kernel holds some are drawn, as in `bracket.py`: H' is unbiased for H, and
the covariance is then too large in the mean, because the inverse is convex.
"""

import torch
from torch import Tensor, nn

from ellarepro.curvature.exact import trainable
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.kernel import cholesky_of_identity_plus
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.evidence.bracket import ColumnRows, chances, column_sizes, drawn_rows, kernel_of
from ellarepro.evidence.predictive import sampled_outputs

_TOGETHER = 250
"""Data that pass through the network at once."""


class KernelPosterior:
    """N(0, (H' + D)^-1) for the data `inputs (N, ...)` and one precision a tensor `(L,)`.

    Args:
        rows: how many of the rows of H's root are drawn; all, if there are no more.
        generator: draws them; on the CPU.

    Raises:
        CurvatureError: rows that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        precisions: Tensor,
        inputs: Tensor,
        rows: int,
        generator: torch.Generator,
        likelihood: Likelihood | None = None,
    ):
        accumulator = ColumnRows(model, likelihood=likelihood)
        self.model, self.likelihood = model, accumulator.likelihood
        met = chances(column_sizes(model, inputs, self.likelihood), rows)
        chunks, p, taken = drawn_rows(accumulator, inputs, met, generator)
        self.root = cholesky_of_identity_plus(kernel_of(chunks, precisions))
        self.deltas = dict(zip(trainable(model), precisions.tolist(), strict=True))
        data = taken.any(1)
        self.inputs, self.taken = inputs[data.to(inputs.device)], taken[data].T.to(inputs.device)
        self.roots = p.sqrt()

    def draw(self, samples: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """`samples` draws of epsilon, each by parameter name; `generator` is on the CPU."""
        named = trainable(self.model).items()
        prior = [
            {name: torch.randn(p.shape, generator=generator).to(p) / self.deltas[name] ** 0.5 for name, p in named}
            for _ in range(samples)
        ]
        return self.conditioned(prior, torch.randn(samples, len(self.root), generator=generator).to(self.root))

    def conditioned(self, prior: list[dict[str, Tensor]], noise: Tensor) -> list[dict[str, Tensor]]:
        """epsilon for each e of `prior`, by parameter name, and z of `noise (S, M)`."""
        with evaluation_mode(self.model):
            seen = torch.cat([self._along(prior, part) for part in self.inputs.split(_TOGETHER)], dim=2)
            weights = seen.new_zeros(seen.shape)
            solved = torch.cholesky_solve((noise - seen[:, self.taken] / self.roots).mT, self.root).mT
            weights[:, self.taken] = (solved / self.roots).to(weights)
            total = [{name: part.clone() for name, part in one.items()} for one in prior]
            for part, own in zip(self.inputs.split(_TOGETHER), weights.split(_TOGETHER, 2), strict=True):
                self._add_back(total, part, own)
        return total

    def _columns(self, outputs: Tensor) -> Tensor:
        """Columns of the root of Lambda at `outputs (B, K)`: `(R, B, K)`."""
        columns = self.likelihood.columns(outputs, 0.0, None, None)
        return torch.stack([columns.column(index) for index in range(len(self.taken))]).to(outputs)

    @torch.no_grad()
    def _along(self, directions: list[dict[str, Tensor]], inputs: Tensor) -> Tensor:
        """V^T J e for each e of `directions`: `(S, R, B)`."""
        outputs = self.model(inputs)
        change = sampled_outputs(self.model, directions, inputs) - outputs
        return torch.einsum("rbk,sbk->srb", self._columns(outputs), change)

    @torch.enable_grad()
    def _add_back(self, total: list[dict[str, Tensor]], inputs: Tensor, weights: Tensor) -> None:
        """Add D^-1 J^T V w for each w of `weights (S, R, B)`."""
        outputs, named = self.model(inputs), dict(self.model.named_parameters())
        parameters = [named[name] for name in self.deltas]
        cotangents = torch.einsum("rbk,srb->sbk", self._columns(outputs.detach()), weights)
        for one, cotangent in zip(total, cotangents, strict=True):
            found = torch.autograd.grad(outputs, parameters, cotangent, retain_graph=True)
            for name, gradient in zip(self.deltas, found, strict=True):
                one[name] += gradient / self.deltas[name]
