"""One fit of the generalised Gauss-Newton: a forward pass, then one backward pass for each class.

For softmax cross-entropy the Hessian in the logits is Lambda = diag(p) - p p^T, of rank K - 1. With the classes of
each sample in order of probability, its Cholesky factor is known in closed form (Tanabe and Sagae, 1992): column r
weighs class r against all less probable ones. So K - 1 passes are exact, and what is left after r passes is a
covariance with trace at most the probability mass of the classes not yet taken. A sample leaves once that mass falls
below the tolerance; its last column is lengthened by the trace of what it leaves out, which takes most of the bias.

Cheaper passes over all data: the K - 1 columns are folded into a few, each the sum of some of them with random signs.
The signs are independent, so that products of different columns vanish in the mean and v v^T is unbiased for Lambda.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ellarepro.curvature.gather import BlockGatherer
from ellarepro.curvature.hooks import evaluation_mode, forward_hooks
from ellarepro.settings import DEFAULT_TOLERANCE

_SMALLEST = 1e-300
_GATHER_BELOW = 0.4
"""Share of samples still unfinished at which they are gathered into a smaller batch and passed forward again."""


class GGN(BlockGatherer):
    """Curvature blocks of a classifier, gathered batch by batch.

    Args:
        model: as for `BlockGatherer`.
        structure: as for `BlockGatherer`.
        tolerance: probability mass of a sample that exact class passes may leave out; 0 takes all K - 1 of them.
        passes: None for exact passes; or how many sampled passes a batch takes, see `SignedColumns`.
        generator: draws the signs of sampled passes; lies on the device of the inputs.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: an unknown structure, a tolerance outside [0, 1), passes below 1 or without a generator.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: str = "kron",
        tolerance: float = DEFAULT_TOLERANCE,
        passes: int | None = None,
        generator: torch.Generator | None = None,
    ):
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1; got {tolerance}")
        if passes is not None and passes < 1:
            raise ValueError(f"passes must be at least 1; got {passes}")
        if passes is not None and generator is None:
            raise ValueError("sampled passes need a generator to draw their signs from")
        super().__init__(model, structure)
        self.tolerance, self.passes, self.generator = tolerance, passes, generator
        self.class_passes = 0
        """Backward passes so far, counted a sample."""

    def update(self, inputs: Tensor) -> Tensor:
        """Add a batch of `inputs (B, ...)`; returns its logits `(B, K)`, detached.

        The model is in evaluation mode meanwhile, whatever its mode is.

        Raises:
            ValueError: a layer that is called twice or not at all, or whose first axis is not that of the samples;
                batch statistics.
        """
        self.gathered += len(inputs)
        with _frozen(self.model), evaluation_mode(self.model):
            logits, outputs = self._forward(inputs, first_time=True)
            square_root = self._square_root(logits.detach())
            self._class_passes(inputs, logits, outputs, square_root, first=0)
        return logits.detach()

    def _square_root(self, logits: Tensor) -> "LambdaSquareRoot":
        if self.passes is None:
            return LambdaSquareRoot(logits, self.tolerance)
        return SignedColumns(logits, self.passes, self.generator)

    def _forward(self, inputs: Tensor, first_time: bool) -> tuple[Tensor, dict[str, GradientEdge]]:
        outputs: dict[str, GradientEdge] = {}

        def keep(name: str, layer_inputs: Tensor, output: Tensor) -> Tensor:
            if name in outputs:
                raise ValueError(
                    f"layer {name} is called twice in one forward pass: no rule covers this; make it two layers"
                )
            _check_samples(name, layer_inputs, output, len(inputs))
            if not output.requires_grad:
                # The output of an embedding, say: a copy, as an activation could not overwrite a leaf of the graph.
                output = output.requires_grad_().clone()
            # The edge, not the tensor: an in-place activation would make the tensor stand for its own output.
            outputs[name] = torch.autograd.graph.get_gradient_edge(output)
            with torch.no_grad():
                if first_time:
                    self.parts[name].add_inputs(layer_inputs.detach())
                self.parts[name].keep_inputs(layer_inputs.detach())
            return output

        with forward_hooks(self.layers, keep), torch.enable_grad():
            logits = self.model(inputs.detach().requires_grad_(inputs.is_floating_point()))
        missing = self.layers.keys() - outputs.keys()
        if missing:
            raise ValueError(f"layers {sorted(missing)} take no part in the forward pass: freeze or remove them")
        return logits, outputs

    def _class_passes(
        self,
        inputs: Tensor,
        logits: Tensor,
        outputs: dict[str, GradientEdge],
        square_root: "LambdaSquareRoot",
        first: int,
    ) -> None:
        passes = square_root.passes_needed.max().item()
        for index in range(first, passes):
            unfinished = square_root.passes_needed > index
            if index > first and unfinished.sum() <= _GATHER_BELOW * len(unfinished):
                self._gather(inputs, square_root, unfinished, index)
                return
            column = square_root.column(index).to(logits.dtype)
            gradients = torch.autograd.grad(logits, outputs.values(), column, retain_graph=index + 1 < passes)
            self.class_passes += len(inputs)
            with torch.no_grad():
                for part, gradient in zip(map(self.parts.get, outputs), gradients, strict=True):
                    part.add_gradients(gradient)

    def _gather(self, inputs: Tensor, square_root: "LambdaSquareRoot", unfinished: Tensor, index: int) -> None:
        """Go on from class pass `index` with the unfinished samples alone, in a graph of their own."""
        kept = unfinished.to(inputs.device)
        logits, outputs = self._forward(inputs[kept], first_time=False)
        self._class_passes(inputs[kept], logits, outputs, square_root.subset(unfinished), first=index)


class LambdaSquareRoot:
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
        enough = (self.mass[:, :most] >= tolerance).sum(1) if tolerance else torch.full_like(self.order[:, 0], most)
        self.passes_needed = enough.cpu()

    def subset(self, kept: Tensor) -> "LambdaSquareRoot":
        """The samples of the mask `kept (B,)`, on the CPU."""
        part = copy(self)
        part.passes_needed = self.passes_needed[kept]
        kept = kept.to(self.mass.device)
        part.probabilities, part.order, part.mass = self.probabilities[kept], self.order[kept], self.mass[kept]
        return part

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
        needed = self.passes_needed.to(ordered.device)
        left_out = self.mass[:, index + 1] - self.probabilities[:, index + 1 :].square().sum(1) / rest
        stretch = (1 + left_out / ordered.square().sum(1).clamp_min(_SMALLEST)).sqrt()
        ordered *= torch.where(needed == index + 1, stretch, (needed > index).double())[:, None]
        return torch.zeros_like(ordered).scatter_(1, self.order, ordered)


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
        self.passes_needed = torch.full((len(logits),), self.passes)
        signs = torch.randint(2, (len(logits), most), generator=generator, device=logits.device)
        self.signs = (2 * signs - 1).to(self.mass.dtype)

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
        return torch.zeros_like(ordered).scatter_(1, self.order, ordered)


def _check_samples(name: str, layer_inputs: Tensor, output: Tensor, samples: int) -> None:
    """ValueError unless the first axis of a layer's input and output is that of the samples."""
    for what, tensor in (("input", layer_inputs), ("output", output)):
        if tensor.ndim == 0 or tensor.shape[0] != samples:
            raise ValueError(
                f"layer {name} has an {what} of shape {tuple(tensor.shape)} for a batch of {samples}: its first axis "
                "must be that of the samples, as in (samples, positions, features)"
            )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes part in the graph, so that backward passes compute gradients of layer outputs only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
