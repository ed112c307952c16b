"""The blocks that are gathered for a layer: `kron` (the paper's), `kron_blockwise`, `diag`.

Scaling by the size of the data and by the number of groups is here. The mean over positions is the rules'.

Every weight block approximates H = sum over n of J_n^T Lambda_n J_n by (sum of output factor) kron (sum of input
factor) / N. A class factor (`weighted` below) is g = J v for one column v of a square root of Lambda_n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.rule import CurvatureRule


@dataclass(frozen=True)
class Factor:
    """`scale` times a running sum, which tensors may share whatever their scales are."""

    total: MomentSum
    scale: float = 1.0

    def dense(self) -> Tensor:
        """`(G, d, d)`, or `(1, d, d)` where all groups of a tensor share it."""
        return self.total.dense() * self.scale


@dataclass
class Block:
    """One tensor's curvature: over groups, the block-diagonal of `factors[0][g] kron factors[1][g]`.

    Attributes:
        parts: its one or two factors, as they were gathered.
        group_axis: where the groups stand in the tensor: 0 for `(G, first, second)`, 1 for `(first, G, second)`,
            None without groups.
    """

    parts: list[Factor]
    group_axis: int | None = None

    @property
    def factors(self) -> list[Tensor]:
        """The factors as matrices `(G, d, d)`, or `(1, d, d)` where all groups share one."""
        return [part.dense() for part in self.parts]

    @property
    def eigenvalues(self) -> int:
        """How many there are at most, but for zeros: products of those of the factors, group by group."""
        groups, widths = zip(*(part.total.shape for part in self.parts), strict=True)
        return max(groups) * prod(widths)

    def scaled(self, scale: float) -> "Block":
        """The block times `scale`."""
        *others, last = self.parts
        return Block([*others, Factor(last.total, last.scale * scale)], self.group_axis)


class Structure:
    """What is gathered of one layer: the base has the exact blocks of biases, scales and scalars.

    A batch comes in this order: `add_inputs` once, then `keep_inputs` and class passes by `add_gradients`, and the
    last two again for every part of the batch that goes on by itself.
    """

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        self.rule = rule
        self.pointwise = trainable.intersection(rule.pointwise)
        self.trainable = trainable - self.pointwise
        self.tangents: dict[str, Tensor] = {}
        self.exact: dict[str, MomentSum] = {}

    def wants_gradients(self, inputs: Tensor) -> bool:
        """Whether `add_inputs` needs `gradients`."""
        return False

    def add_inputs(self, inputs: Tensor, gradients: Tensor | None = None) -> None:
        """Add the part of a batch that its inputs give.

        Args:
            gradients: of one function of all outputs of the network with respect to the layer's output: zero at
                positions that none of them depends on.
        """

    def keep_inputs(self, inputs: Tensor) -> None:
        """Keep what the class passes of these inputs need."""
        self.tangents = {name: self.rule.tangent(inputs, name) for name in self.pointwise}

    def add_gradients(self, gradients: Tensor) -> None:
        """Add one class pass: `gradients` of `weighted` logits with respect to the layer's output."""
        for name, tangent in self.tangents.items():
            self.add_exact(name, self.rule.pointwise_rows(gradients * tangent, name))

    def add_exact(self, name: str, rows: Tensor) -> None:
        """Add one class pass of a parameter whose gradient of each sample is `rows (N, P)`."""
        self._sum(name).add_rows_(rows[None])

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far: all that continuing a fit needs."""
        return {"exact": {name: total.state_dict() for name, total in self.exact.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`, as `state_dict` gave it, on `device`."""
        self.exact = {name: MomentSum.of_state(total, device) for name, total in state["exact"].items()}

    def blocks(self, data_size: int) -> dict[str, Block]:
        """Blocks by parameter name; `data_size` is N, the size of the whole training set."""
        # Sums over data of exact gradients: the data's size plays no part.
        return {name: Block([Factor(total)]) for name, total in self.exact.items()}

    def _sum(self, name: str) -> MomentSum:
        return self.exact.setdefault(name, MomentSum())


class KronStructure(Structure):
    """One input and one output factor a layer (Section 5): groups share the output factor, divided by their number."""

    groups_share_output: ClassVar[bool] = True

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        super().__init__(rule, trainable)
        self.input_factor, self.output_factor = MomentSum(), MomentSum()
        self.groups = 1
        self.bias_shares_output_factor = False

    def wants_gradients(self, inputs: Tensor) -> bool:
        return "weight" in self.trainable and self.rule.counts_live_positions(inputs)

    def add_inputs(self, inputs: Tensor, gradients: Tensor | None = None) -> None:
        """Add a batch's part of the input factor, sum over n (mean over shared positions) of a a^T.

        With `gradients` the mean is over the positions that have one: those of padding, which no output depends on, add
        nothing to the GGN, and would add zeros to the mean.
        """
        if "weight" not in self.trainable:
            return
        rows = self.rule.kept_rows(inputs)
        live = None if gradients is None else self.rule.output_rows(gradients).ne(0).any(3).any(0)
        if rows is not None:
            self.input_factor.add_rows_(rows)
        elif live is None or live.all():
            self.input_factor.add_matrix_(self.rule.input_factor(inputs))
        else:
            weights = live.to(cast(Tensor, gradients).dtype) / live.sum(1, keepdim=True).clamp_min(1)
            self.input_factor.add_matrix_(self.rule.weighted_input_factor(inputs, weights))

    def add_gradients(self, gradients: Tensor) -> None:
        super().add_gradients(gradients)
        if "weight" in self.trainable:
            rows = self.rule.output_rows(gradients)
            self.groups = rows.shape[0]
            self.bias_shares_output_factor = self.rule.bias_is_output and rows.ndim == 3
            self.output_factor.add_rows_(rows, across_groups=self.groups_share_output)
        if "bias" in self.trainable and not self.bias_shares_output_factor:
            self.add_exact("bias", self.rule.bias_rows(gradients))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "input_factor": self.input_factor.state_dict(),
            "output_factor": self.output_factor.state_dict(),
            "groups": self.groups,
            "bias_shares_output_factor": self.bias_shares_output_factor,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        super().load_state_dict(state, device)
        self.input_factor = MomentSum.of_state(state["input_factor"], device)
        self.output_factor = MomentSum.of_state(state["output_factor"], device)
        self.groups, self.bias_shares_output_factor = state["groups"], state["bias_shares_output_factor"]

    def blocks(self, data_size: int) -> dict[str, Block]:
        blocks = super().blocks(data_size)
        if "weight" in self.trainable:
            shared = self.groups if self.groups_share_output else 1
            parts = [Factor(self.output_factor), Factor(self.input_factor, 1 / (data_size * shared))]
            blocks["weight"] = Block(parts[::-1] if self.rule.input_first else parts, self.rule.group_axis)
        if "bias" in self.trainable and self.bias_shares_output_factor:
            blocks["bias"] = Block([Factor(self.output_factor)])
        return blocks


class KronBlockwiseStructure(KronStructure):
    """An output factor for each group beside its input factor: finer, at the same number of passes."""

    groups_share_output = False


class DiagStructure(Structure):
    """The exact diagonal of the GGN, kept as as many groups of one entry as the tensor has."""

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        super().__init__(rule, trainable)
        self.squares: Callable[[Tensor], Tensor] | None = None

    def keep_inputs(self, inputs: Tensor) -> None:
        super().keep_inputs(inputs)
        if "weight" in self.trainable:
            self.squares = self.rule.squared_weight_gradients(inputs)

    def add_gradients(self, gradients: Tensor) -> None:
        super().add_gradients(gradients)
        if self.squares is not None:
            self._add("weight", self.squares(gradients))
        if "bias" in self.trainable:
            self.add_exact("bias", self.rule.bias_rows(gradients))

    def add_exact(self, name: str, rows: Tensor) -> None:
        self._add(name, rows.square().sum(0))

    def blocks(self, data_size: int) -> dict[str, Block]:
        return {name: Block([Factor(total)], group_axis=0) for name, total in self.exact.items()}

    def _add(self, name: str, entries: Tensor) -> None:
        self._sum(name).add_matrix_(entries.view(-1, 1, 1))


STRUCTURES = {"kron": KronStructure, "kron_blockwise": KronBlockwiseStructure, "diag": DiagStructure}


def sums_of(blocks: dict[str, Block]) -> list[MomentSum]:
    """What the factors of `blocks` are made of, a sum that two tensors share only once."""
    return list({id(part.total): part.total for block in blocks.values() for part in block.parts}.values())


def factor_bytes(blocks: dict[str, Block]) -> int:
    """Bytes that the factors of `blocks` take."""
    return sum(total.nbytes for total in sums_of(blocks))
