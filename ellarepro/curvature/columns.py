"""Columns v of a square root of Lambda, sum of v v^T, one backward pass each.

For softmax cross-entropy the Hessian in the logits is Lambda = diag(p) - p p^T, of rank K - 1. With the classes of
each sample in order of probability, its Cholesky factor is known in closed form (Tanabe and Sagae, 1992): column r
weighs class r against all less probable ones. So K - 1 passes are exact, and what is left after r passes is a
covariance with trace at most the probability mass of the classes not yet taken. A sample leaves once that mass falls
below the tolerance; its last column is lengthened by the trace of what it leaves out, which takes most of the bias.

Cheaper passes over all data: the K - 1 columns are folded into a few, each the sum of some of them with random signs.
The signs are independent, so that products of different columns vanish in the mean and v v^T is unbiased for Lambda.

For a Gaussian of precision one Lambda is the identity, and its columns are K.
"""

from copy import copy

import torch
from torch import Tensor

_SMALLEST = 1e-300


class Columns:
    """The columns of a batch of samples.

    Attributes:
        passes_needed: `(B,)`, on the CPU: how many columns each sample has.
        weights: `(B,)`, of samples that count more or less than once; None where all count once.
    """

    passes_needed: Tensor
    weights: Tensor | None = None

    def weighted(self, index: int) -> Tensor:
        """`(B, K)`: column `index` of the root of each sample's weight times Lambda."""
        column = self.column(index)
        return column if self.weights is None else column * self.weights.to(column).sqrt()[:, None]

    def column(self, index: int) -> Tensor:
        """`(B, K)`: column `index` of each sample; zero for one that has no more."""
        raise NotImplementedError

    def keep(self, kept: Tensor) -> None:
        """Keep the samples of the mask `kept (B,)`, on the CPU, in what `column` needs."""
        raise NotImplementedError

    def subset(self, kept: Tensor) -> "Columns":
        """The samples of the mask `kept (B,)`, on the CPU."""
        part = copy(self)
        part.passes_needed = self.passes_needed[kept]
        if self.weights is not None:
            part.weights = self.weights[kept]
        part.keep(kept)
        return part


class OneColumn(Columns):
    """Column `index` of `columns` by itself."""

    def __init__(self, columns: Columns, index: int):
        self.columns, self.index = columns, index
        self.passes_needed = torch.ones_like(columns.passes_needed)

    def column(self, index: int) -> Tensor:
        return self.columns.column(self.index)


class UnitColumns(Columns):
    """The unit vectors, for Lambda = I; with `passes` and a `generator`, folded into as many as `SignedColumns` does.

    Args:
        outputs: `(B, K)`.
        curvatures: `(B, K)`, the diagonal of another Lambda.
    """

    def __init__(
        self,
        outputs: Tensor,
        passes: int | None = None,
        generator: torch.Generator | None = None,
        curvatures: Tensor | None = None,
    ):
        width = outputs.shape[1]
        self.passes = width if passes is None else min(passes, width)
        self.passes_needed = torch.full((len(outputs),), self.passes, device="cpu")
        self.signs = torch.ones_like(outputs)
        if passes is not None:
            signs = torch.randint(2, outputs.shape, generator=generator, device=outputs.device)
            self.signs = (2 * signs - 1).to(outputs.dtype)
        if curvatures is not None:
            self.signs = self.signs * curvatures.sqrt()

    def keep(self, kept: Tensor) -> None:
        self.signs = self.signs[kept]

    def column(self, index: int) -> Tensor:
        """`(B, K)`: outputs `index`, `index` + passes, ..., each with its sign."""
        column = torch.zeros_like(self.signs)
        column[:, index :: self.passes] = self.signs[:, index :: self.passes]
        return column


class LambdaSquareRoot(Columns):
    """Columns v of each sample's Cholesky factor of Lambda = diag(p) - p p^T, most probable class first.

    Args:
        logits: `(B, K)`.
        tolerance: probability mass that may be left out, see the module's docstring.

    Attributes:
        passes_needed: `(B,)`, on the CPU: columns after which at most `tolerance` of each sample's mass is left.
    """

    def __init__(self, logits: Tensor, tolerance: float):
        self.probabilities, self.order = logits.double().softmax(1).sort(1, descending=True)
        # mass[:, r] is what pass r and all later ones share; summed from the smallest so that tails keep precision.
        self.mass = self.probabilities.flip(1).cumsum(1).flip(1)
        most = logits.shape[1] - 1
        # Of logits that are not finite all columns are taken, and the curvature is refused as they are.
        if tolerance:
            self._needed = (~(self.mass[:, :most] < tolerance)).sum(1)
            self.passes_needed = self._needed.cpu()
        else:
            self._needed = torch.full((len(logits),), most, device=logits.device)
            self.passes_needed = torch.full((len(logits),), most, device="cpu")

    def keep(self, kept: Tensor) -> None:
        self.probabilities, self.order, self.mass = self.probabilities[kept], self.order[kept], self.mass[kept]
        self._needed = self._needed[kept]

    def column(self, index: int) -> Tensor:
        """`(B, K)`: class `index` of each sample's order against all later ones; sums to zero over classes.

        Zero for a sample that needs no more; its last column before is longer, by the trace of what is left out.
        """
        p, mass = self.probabilities[:, index], self.mass[:, index].clamp_min(_SMALLEST)
        rest = self.mass[:, index + 1].clamp_min(_SMALLEST)
        pivot = (p * rest / mass).sqrt()
        ordered = -self.probabilities / rest[:, None] * pivot[:, None]
        ordered[:, :index] = 0
        ordered[:, index] = pivot
        left_out = self.mass[:, index + 1] - self.probabilities[:, index + 1 :].square().sum(1) / rest
        stretch = (1 + left_out / ordered.square().sum(1).clamp_min(_SMALLEST)).sqrt()
        ordered = ordered * torch.where(self._needed == index + 1, stretch, (self._needed > index).double())[:, None]
        return torch.zeros_like(ordered).scatter(1, self.order, ordered)


class SignedColumns(LambdaSquareRoot):
    """All columns of the Cholesky factor folded into `passes`: unbiased for Lambda, exact from K - 1 passes on.

    Pass r is the sum, with independent random signs, of columns r, r + passes, r + 2 passes, ...; so the largest ones
    lie in passes of their own. Of a sample whose mass lies on two classes one pass has hardly any spread. The other
    unbiased choice, e_k - p with k drawn from p, takes nearly always the likely class and says nothing of the other.

    Args:
        logits: `(B, K)`.
        passes: columns a sample; more than K - 1 are as good as K - 1.
        generator: on the device of `logits`.
    """

    def __init__(self, logits: Tensor, passes: int, generator: torch.Generator):
        super().__init__(logits, tolerance=0)
        most = logits.shape[1] - 1
        self.passes = min(passes, most)
        self.passes_needed = torch.full((len(logits),), self.passes, device="cpu")
        signs = torch.randint(2, (len(logits), most), generator=generator, device=logits.device)
        self.signs = (2 * signs - 1).to(self.mass.dtype)

    def keep(self, kept: Tensor) -> None:
        super().keep(kept)
        self.signs = self.signs[kept]

    def column(self, index: int) -> Tensor:
        """`(B, K)`: pass `index` of each sample; sums to zero over classes."""
        rest = self.mass[:, 1:].clamp_min(_SMALLEST)
        mass = self.mass[:, :-1].clamp_min(_SMALLEST)
        taken = torch.zeros_like(self.signs)
        taken[:, index :: self.passes] = self.signs[:, index :: self.passes]
        pivots = taken * (self.probabilities[:, :-1] * rest / mass).sqrt()
        ordered = torch.zeros_like(self.probabilities)
        ordered[:, :-1] = pivots
        ordered[:, 1:] -= self.probabilities[:, 1:] * (pivots / rest).cumsum(1)
        return torch.zeros_like(ordered).scatter(1, self.order, ordered)
