"""The blocks that are gathered for a layer: `kron` (the paper's), `kron_blockwise`, `diag`. All scaling is here.

Every weight block approximates H = sum over n of J_n^T Lambda_n J_n by (sum of output factor) kron (sum of input
factor) / N. A class factor (`weighted` below) is g = J v for one column v of a square root of Lambda_n.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ellarepro.curvature.factors import add_second_moment_
from ellarepro.curvature.rule import CurvatureRule


@dataclass
class Block:
    """One tensor's curvature: over groups, the block-diagonal of `factors[0][g] kron factors[1][g]`.

    Attributes:
        factors: one or two tensors `(G, d, d)`, or `(1, d, d)` where all groups share it.
        group_axis: where the groups stand in the tensor: 0 for `(G, first, second)`, 1 for `(first, G, second)`,
            None without groups.
    """

    factors: list[Tensor]
    group_axis: int | None = None

    def scaled(self, scale: float) -> "Block":
        """The block times `scale`, which its last factor takes: the first may be shared with another tensor's block."""
        if scale == 1:
            return self
        return Block([*self.factors[:-1], self.factors[-1] * scale], self.group_axis)


class Structure:
    """What is gathered of one layer: the base has the exact blocks of biases, scales and scalars.

    A batch comes in this order: `add_inputs` once, then `keep_inputs` and class passes by `add_gradients`, and the
    last two again for every part of the batch that goes on by itself.
    """

    sums: tuple[str, ...] = ("exact",)
    """The attributes that batches add to: all that continuing a fit needs."""

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        self.rule = rule
        self.pointwise = trainable.intersection(rule.pointwise)
        self.trainable = trainable - self.pointwise
        self.tangents: dict[str, Tensor] = {}
        self.exact: dict[str, Tensor] = {}

    def add_inputs(self, inputs: Tensor) -> None:
        """Add the part of a batch that its inputs alone give."""

    def keep_inputs(self, inputs: Tensor) -> None:
        """Keep what the class passes of these inputs need."""
        self.tangents = {name: self.rule.tangent(inputs, name) for name in self.pointwise}

    def add_gradients(self, gradients: Tensor) -> None:
        """Add one class pass: `gradients` of `weighted` logits with respect to the layer's output."""
        for name, tangent in self.tangents.items():
            self.add_exact(name, self.rule.pointwise_rows(gradients * tangent, name))

    def add_exact(self, name: str, rows: Tensor) -> None:
        """Add one class pass of a parameter whose gradient of each sample is `rows (N, P)`."""
        if name not in self.exact:
            self.exact[name] = rows.new_zeros(1, rows.shape[1], rows.shape[1])
        add_second_moment_(self.exact[name], rows[None])

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far."""
        return {name: getattr(self, name) for name in self.sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`, as `state_dict` gave it, on `device`."""
        for name in self.sums:
            setattr(self, name, _moved(state[name], device))

    def blocks(self, data_size: int) -> dict[str, Block]:
        """Blocks by parameter name; `data_size` is N, the size of the whole training set."""
        # Sums over data of exact gradients: the data's size plays no part.
        return {name: Block([total]) for name, total in self.exact.items()}


class KronStructure(Structure):
    """One input and one output factor a layer (Section 5): groups share the output factor, divided by their number."""

    sums = ("exact", "input_factor", "output_factor", "summed_groups", "bias_shares_output_factor")

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        super().__init__(rule, trainable)
        self.input_factor: Tensor | None = None
        self.output_factor: Tensor | None = None
        self.summed_groups = 1
        self.bias_shares_output_factor = False

    def add_inputs(self, inputs: Tensor) -> None:
        """Add a batch's part of the input factor, sum over n (mean over shared positions) of a a^T."""
        if "weight" in self.trainable:
            self.input_factor = _plus(self.input_factor, self.rule.input_factor(inputs))

    def add_gradients(self, gradients: Tensor) -> None:
        super().add_gradients(gradients)
        if "weight" in self.trainable:
            rows = self.rule.output_rows(gradients)
            if self.output_factor is None:
                self.output_factor = rows.new_zeros(self._output_groups(rows), rows.shape[-1], rows.shape[-1])
                self.summed_groups = rows.shape[0] // self.output_factor.shape[0]
                self.bias_shares_output_factor = self.rule.bias_is_output and rows.ndim == 3
            add_second_moment_(self.output_factor, rows)
        if "bias" in self.trainable and not self.bias_shares_output_factor:
            self.add_exact("bias", self.rule.bias_rows(gradients))

    def blocks(self, data_size: int) -> dict[str, Block]:
        blocks = super().blocks(data_size)
        if "weight" in self.trainable:
            scaled, output = cast(Tensor, self.input_factor) / (data_size * self.summed_groups), self._output()
            factors = [scaled, output] if self.rule.input_first else [output, scaled]
            blocks["weight"] = Block(factors, self.rule.group_axis)
        if "bias" in self.trainable and self.bias_shares_output_factor:
            blocks["bias"] = Block([self._output()])
        return blocks

    def _output(self) -> Tensor:
        return cast(Tensor, self.output_factor)

    def _output_groups(self, rows: Tensor) -> int:
        return 1


class KronBlockwiseStructure(KronStructure):
    """An output factor for each group beside its input factor: finer, at the same number of passes."""

    def _output_groups(self, rows: Tensor) -> int:
        return rows.shape[0]


class DiagStructure(Structure):
    """The exact diagonal of the GGN, kept as as many groups of one entry as the tensor has."""

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        super().__init__(rule, trainable)
        self.inputs: Tensor | None = None

    def keep_inputs(self, inputs: Tensor) -> None:
        super().keep_inputs(inputs)
        if "weight" in self.trainable:
            self.inputs = _with_positions(self.rule.matched_input_rows(inputs))

    def add_gradients(self, gradients: Tensor) -> None:
        super().add_gradients(gradients)
        if "weight" in self.trainable:
            self._add("weight", self._squared_weight_gradients(_with_positions(self.rule.output_rows(gradients))))
        if "bias" in self.trainable:
            self.add_exact("bias", self.rule.bias_rows(gradients))

    def add_exact(self, name: str, rows: Tensor) -> None:
        self._add(name, rows.square().sum(0))

    def blocks(self, data_size: int) -> dict[str, Block]:
        return {name: Block([entries.view(-1, 1, 1)], group_axis=0) for name, entries in self.exact.items()}

    def _squared_weight_gradients(self, rows: Tensor) -> Tensor:
        inputs = cast(Tensor, self.inputs)
        if rows.shape[2] == 1:
            squares = rows[:, :, 0].square().transpose(1, 2) @ inputs[:, :, 0].square()
        else:
            squares = (rows.transpose(2, 3) @ inputs).square().sum(1)
        if self.rule.input_first:
            squares = squares.transpose(1, 2)
        return (squares.transpose(0, 1) if self.rule.group_axis == 1 else squares).reshape(-1)

    def _add(self, name: str, entries: Tensor) -> None:
        self.exact[name] = _plus(self.exact.get(name), entries)


STRUCTURES = {"kron": KronStructure, "kron_blockwise": KronBlockwiseStructure, "diag": DiagStructure}


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _moved(value: Any, device: torch.device) -> Any:
    """`value` with its tensors copied to `device`: later batches are added in place."""
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _with_positions(rows: Tensor) -> Tensor:
    return rows if rows.ndim == 4 else rows.unsqueeze(2)


def distinct_factors(blocks: dict[str, Block]) -> list[Tensor]:
    """The factors of `blocks`, one that two tensors share only once."""
    return list({id(factor): factor for block in blocks.values() for factor in block.factors}.values())


def factor_bytes(blocks: dict[str, Block]) -> int:
    """Bytes that the factors of `blocks` take."""
    return sum(factor.numel() * factor.element_size() for factor in distinct_factors(blocks))
