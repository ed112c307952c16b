"""One fit of the generalised Gauss-Newton: a forward pass, then one backward pass for each column of a root of Lambda.

The columns are the likelihood's (`columns.py`); what a pass adds to a layer is its structure's (`structures.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ellarepro.curvature.accumulators import BlockAccumulator
from ellarepro.curvature.columns import Columns
from ellarepro.curvature.hooks import evaluation_mode, forward_hooks, generic_sum
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.settings.parts import DEFAULT_TOLERANCE

_GATHER_BELOW = 0.4
"""Share of samples still unfinished at which they are gathered into a smaller batch and passed forward again."""


class GGN(BlockAccumulator):
    """Curvature blocks of a network, gathered batch by batch.

    Args:
        model: as for `BlockAccumulator`.
        structure: as for `BlockAccumulator`.
        tolerance: probability mass of a sample that exact class passes may leave out; 0 takes all K - 1 of them.
        passes: None for exact passes; or how many sampled passes a batch takes, see `SignedColumns`.
        generator: draws the signs of sampled passes; lies on the device of the inputs.
        likelihood: which Lambda; of a Gaussian, that of noise of precision one.

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
        likelihood: Likelihood | None = None,
    ):
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1; got {tolerance}")
        if passes is not None and passes < 1:
            raise ValueError(f"passes must be at least 1; got {passes}")
        if passes is not None and generator is None:
            raise ValueError("sampled passes need a generator to draw their signs from")
        super().__init__(model, structure)
        self.tolerance, self.passes, self.generator = tolerance, passes, generator
        self.likelihood = likelihood or Classification()
        self.class_passes = 0
        """Backward passes so far, counted a sample."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add a batch of `inputs (B, ...)`, each `weights (B,)` times; returns its outputs `(B, K)`, detached.

        The model is in evaluation mode meanwhile, whatever its mode is.

        Raises:
            ValueError: a layer that is called twice or not at all, or whose first axis is not that of the samples;
                outputs that the likelihood does not take; batch statistics.
        """
        self.gathered += len(inputs)
        with _frozen(self.model), evaluation_mode(self.model):
            held: dict[str, Tensor] = {}
            logits, outputs = self._forward(inputs, held)
            self.likelihood.check_outputs(logits, len(inputs))
            self._add_held(held, logits, outputs)
            columns = self.columns(logits.detach())
            columns.weights = weights
            self._class_passes(inputs, logits, outputs, columns, first=0)
        return logits.detach()

    def columns(self, outputs: Tensor) -> Columns:
        """What is passed backward for a batch with the `outputs (B, K)`."""
        return self.likelihood.columns(outputs, self.tolerance, self.passes, self.generator)

    def most_passes(self, width: int) -> int:
        most = self.likelihood.most_columns(width)
        return most if self.passes is None else min(self.passes, most)

    def _forward(self, inputs: Tensor, held: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, GradientEdge]]:
        """Logits, and where the layers' outputs stand in the graph; with `held`, for a batch that is new.

        Args:
            held: is given copies of the inputs of layers that add them by their gradients.
        """
        outputs: dict[str, GradientEdge] = {}

        def keep(name: str, layer_inputs: Tensor, output: Tensor) -> Tensor:
            if name in outputs:
                raise ValueError(
                    f"layer {name} is called twice in one forward pass: no rule covers this; make it two layers"
                )
            _check_samples(name, layer_inputs, output, len(inputs) * self.parts[name].rule.copies)
            if not torch.is_grad_enabled():
                raise ValueError(
                    f"layer {name} is called without gradients: under torch.no_grad(), or in a checkpoint, which must "
                    "have use_reentrant=False"
                )
            if not output.requires_grad:
                # The output of an embedding, say: a copy, as an activation could not overwrite a leaf of the graph.
                output = output.requires_grad_().clone()
            # The edge, not the tensor: an in-place activation would make the tensor stand for its own output.
            outputs[name] = torch.autograd.graph.get_gradient_edge(output)
            with torch.no_grad():
                part, layer_inputs = self.parts[name], layer_inputs.detach()
                if held is not None and part.wants_gradients(layer_inputs):
                    held[name] = layer_inputs.clone()
                elif held is not None:
                    part.add_inputs(layer_inputs)
                part.keep_inputs(layer_inputs)
            return output

        with forward_hooks(self.layers, keep), torch.enable_grad():
            logits = self.model(inputs.detach().requires_grad_(inputs.is_floating_point()))
        missing = self.layers.keys() - outputs.keys()
        if missing:
            raise ValueError(f"layers {sorted(missing)} take no part in the forward pass: freeze or remove them")
        return logits, outputs

    def _add_held(self, held: dict[str, Tensor], logits: Tensor, outputs: dict[str, GradientEdge]) -> None:
        if held:
            edges = [outputs[name] for name in held]
            with torch.enable_grad():
                function = generic_sum(logits)
            gradients = torch.autograd.grad(function, edges, retain_graph=True, allow_unused=True)
            with torch.no_grad():
                for (name, layer_inputs), gradient in zip(held.items(), gradients, strict=True):
                    self.parts[name].add_inputs(layer_inputs, gradient)

    def _class_passes(
        self,
        inputs: Tensor,
        logits: Tensor,
        outputs: dict[str, GradientEdge],
        columns: Columns,
        first: int,
    ) -> None:
        passes = int(columns.passes_needed.max())
        for index in range(first, passes):
            unfinished = columns.passes_needed > index
            if index > first and unfinished.sum() <= _GATHER_BELOW * len(unfinished):
                self._gather(inputs, columns, unfinished, index)
                return
            column = columns.weighted(index).to(logits.dtype)
            gradients = torch.autograd.grad(
                logits, list(outputs.values()), column, retain_graph=index + 1 < passes, allow_unused=True
            )
            if unused := sorted(name for name, g in zip(outputs, gradients, strict=True) if g is None):
                raise ValueError(f"layers {unused} take no part in the network's outputs: freeze or remove them")
            self.class_passes += len(inputs)
            with torch.no_grad():
                for part, gradient in zip((self.parts[name] for name in outputs), gradients, strict=True):
                    part.add_gradients(gradient)

    def _gather(self, inputs: Tensor, columns: Columns, unfinished: Tensor, index: int) -> None:
        """Go on from class pass `index` with the unfinished samples alone, in a graph of their own."""
        kept = unfinished.to(inputs.device)
        logits, outputs = self._forward(inputs[kept])
        self._class_passes(inputs[kept], logits, outputs, columns.subset(unfinished), first=index)


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
