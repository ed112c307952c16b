"""What adds up a curvature: batches go in, a curvature comes out, and what it will take is known before."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

import ellarepro.curvature.rules  # noqa: F401 (registers the rules of stock layers)
from ellarepro.curvature.hooks import evaluation_mode, forward_hooks
from ellarepro.curvature.memory import Forecast
from ellarepro.curvature.rule import CurvatureRule, rule_for, rules_of
from ellarepro.curvature.spectra import Curvature, SpectralCurvature
from ellarepro.curvature.structures import STRUCTURES, Block, Structure, factor_bytes, sums_of


class Accumulator(Protocol):
    """What `accumulator_of` gives: one fit of the curvature of a model, whatever its structure.

    Attributes:
        gathered: samples so far.
    """

    gathered: int

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add a batch of `inputs (B, ...)`, each `weights (B,)` times; returns its outputs `(B, K)`, detached."""

    def curvature(self, data_size: int) -> Curvature:
        """H of `data_size` data, from those gathered, scaled up where they are fewer."""

    def forecast(self, inputs: Tensor) -> Forecast:
        """What a fit of `inputs (N, ...)` will take at most; of the inputs, shape and dtype are all that is used."""

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, as tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`, as `state_dict` gave it, on `device`."""


class BlockAccumulator:
    """The layers of a model, each with the structure that gathers its curvature. Subclasses say how passes are taken.

    Args:
        model: maps `(B, ...)` to logits `(B, K)`; every leaf layer has a rule (see `curvature/rule.py`).
        structure: `kron`, `kron_blockwise` or `diag`.

    Attributes:
        gathered: samples so far.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: an unknown structure.
    """

    structures: ClassVar[dict[str, type[Structure]]] = STRUCTURES

    def __init__(self, model: nn.Module, structure: str = "kron"):
        if structure not in self.structures:
            raise ValueError(f"structure must be one of {', '.join(self.structures)}; got {structure!r}")
        self.model = model
        self.structure = structure
        self.gathered = 0
        rules = rules_of(model)
        self.layers = {name: model.get_submodule(name) for name in rules}
        part_of = self.structures[structure]
        self.parts = {name: part_of(rule, _trainable(self.layers[name])) for name, rule in rules.items()}

    def parts_by_layer(self) -> dict[nn.Module, Structure]:
        """The gathering structure of each layer."""
        return {self.layers[name]: part for name, part in self.parts.items()}

    def blocks(self, data_size: int) -> dict[str, Block]:
        """Blocks by parameter name, in the order of `model.parameters()`; `data_size` is N of the training set.

        Raises:
            ValueError: no batch has been added yet.
        """
        if not self.gathered:
            raise ValueError("blocks() before any update(): there is no curvature yet")
        found = {
            f"{layer}.{parameter}" if layer else parameter: block
            for layer, part in self.parts.items()
            for parameter, block in part.blocks(data_size).items()
        }
        return {name: found[name] for name, p in self.model.named_parameters() if p.requires_grad}

    def curvature(self, data_size: int) -> SpectralCurvature:
        """H of `data_size` data, from those gathered, scaled up where they are fewer.

        Raises:
            CurvatureError: a factor is not finite.
        """
        scale = data_size / self.gathered
        blocks = {name: block.scaled(scale) for name, block in self.blocks(self.gathered).items()}
        return SpectralCurvature.from_blocks(blocks)

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, as tensors and plain values."""
        return {"gathered": self.gathered, "parts": {name: part.state_dict() for name, part in self.parts.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`, as `state_dict` gave it, on `device`."""
        self.gathered = state["gathered"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name], device)

    def forecast(self, inputs: Tensor) -> Forecast:
        """What a fit of `inputs (N, ...)` will take: the same gathering, of tensors without storage."""
        blocks = {}
        for name, part, layer_inputs, output, passes in self.layers_without_storage(inputs):
            rows = len(inputs) * passes
            copies = part.rule.copies
            part.add_inputs(batch_like(layer_inputs, len(inputs) * copies))
            # To what sums over class passes, all of one batch are one of a larger batch.
            part.keep_inputs(batch_like(layer_inputs, rows * copies))
            part.add_gradients(batch_like(output, rows * copies))
            blocks[name] = part.blocks(len(inputs))
        sums = [total for own in blocks.values() for total in sums_of(own)]
        return Forecast(
            sizes={name: factor_bytes(own) for name, own in blocks.items()},
            workspace=max(total.decomposition_nbytes for total in sums),
            decompositions=[total.shape for total in sums],
            eigenvalues=sum(block.eigenvalues for own in blocks.values() for block in own.values()),
        )

    def layers_without_storage(self, inputs: Tensor) -> Iterator[tuple[str, Structure, Tensor, Tensor, int]]:
        """Of each layer its name, a structure of a layer without storage, input and output for a datum, and passes."""
        part_of = self.structures[self.structure]
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def see(name: str, layer_inputs: Tensor, output: Tensor) -> None:
            seen[name] = layer_inputs, output

        with forward_hooks(self.layers, see), evaluation_mode(self.model), torch.no_grad():
            width = self.model(inputs[:1]).shape[1]
        for name, (layer_inputs, output) in seen.items():
            layer = self.layers[name]
            part = part_of(cast(CurvatureRule, rule_for(_without_storage(layer))), _trainable(layer))
            yield name, part, layer_inputs, output, self.most_passes(width)

    def most_passes(self, width: int) -> int:
        """Backward passes that a sample takes at most in a model of `width` outputs."""
        raise NotImplementedError


def batch_like(tensor: Tensor, size: int) -> Tensor:
    """`size` samples of the kind of `tensor (B, ...)`, without storage."""
    return torch.empty(size, *tensor.shape[1:], dtype=tensor.dtype, device="meta")


def _trainable(layer: nn.Module) -> set[str]:
    return {name for name, p in layer.named_parameters(recurse=False) if p.requires_grad}


def _without_storage(layer: nn.Module) -> nn.Module:
    """A copy of a layer on the meta device, of which the weights are never copied."""
    parameters = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in layer.parameters()}
    buffers = {id(b): torch.empty_like(b, device="meta") for b in layer.buffers()}
    return deepcopy(layer, parameters | buffers)
