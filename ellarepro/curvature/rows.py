"""Rows of a root of the GGN, R with R^T R = H, tensor by tensor, and their inner products without writing them out.

Row (r, n) of a tensor is v^T J_n for column v = r of a root of Lambda_n. In a layer's rows (`rule.py`) it is, group by
group, the sum over positions of (output row) (input row)^T, so that

    <(r, n), (s, m)> = sum over groups and positions t, u of (a_nt . a_mu) (g_rnt . g_smu).

With one position this is a product of two small Gram matrices, whatever the size of the weight. Where many positions
share it, rows written out are cheaper; which of the two it is, is a matter of their shapes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellarepro.curvature.rule import CurvatureRule, with_positions
from ellarepro.curvature.structures import Structure

_ELEMENTWISE = 16
"""Multiplications of a matrix product that one of an elementwise product takes as long as."""
_PART = 2**22
"""Products of positions that are held at once, 32 MB."""


@dataclass
class DenseRows:
    """Rows `(M, P)` written out."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.rows.nbytes

    def products(self, other: "DenseRows") -> Tensor:
        """Inner products with the rows of `other`, `(M, M')`, in float64."""
        return self.rows.double() @ other.rows.double().mT

    def squares(self) -> Tensor:
        """Their squared norms, `(M,)`, in float64."""
        return self.rows.double().square().sum(1)

    def first(self, count: int) -> "DenseRows":
        """The first `count` rows."""
        return DenseRows(self.rows[:count])

    def to(self, device: torch.device) -> "DenseRows":
        """The same on `device`."""
        return DenseRows(self.rows.to(device))


@dataclass
class FactoredRows:
    """Rows by their factors, R columns of N samples with S positions in G groups: M = R N, column after column.

    Attributes:
        inputs: `(G, N, S, I)`.
        outputs: `(G, R, N, S, O)`.
    """

    inputs: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return self.outputs.shape[1] * self.outputs.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.inputs.nbytes + self.outputs.nbytes

    def products(self, other: "FactoredRows") -> Tensor:
        """Inner products with the rows of `other`, `(M, M')`, in float64."""
        _, columns, samples, positions, _ = self.outputs.shape
        wide = len(other) * other.outputs.shape[3]
        together = max(_PART // (columns * positions * wide), 1)
        parts = [self._some(other, slice(n, n + together)) for n in range(0, samples, together)]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def _some(self, other: "FactoredRows", some: slice) -> Tensor:
        """`(R, n, M')`: the products of the samples `some`."""
        inputs, outputs = self.inputs[:, some], self.outputs[:, :, some]
        groups, columns, samples, positions, _ = outputs.shape
        _, others, of_others, at_others, _ = other.outputs.shape
        total = outputs.new_zeros(columns, samples, len(other), dtype=torch.float64)
        together = max(_PART // (columns * samples * positions * len(other) * at_others), 1)
        for first in range(0, groups, together):
            group = slice(first, first + together)
            a = _products(inputs[group], other.inputs[group])
            g = _products(outputs[group], other.outputs[group])
            a = a.view(len(a), 1, samples, positions, 1, of_others, at_others)
            g = g.view(len(g), columns, samples, positions, others, of_others, at_others)
            total += g.mul_(a).sum((0, 3, 6)).flatten(2)
        return total

    def squares(self) -> Tensor:
        """Their squared norms, `(M,)`, in float64."""
        if self.inputs.shape[2] == 1:
            a, g = (side.double().square().sum((-1, -2)) for side in (self.inputs, self.outputs))
            return (a[:, None] * g).sum(0).flatten()
        a = self.inputs.double() @ self.inputs.double().mT
        g = self.outputs.double() @ self.outputs.double().mT
        return g.mul_(a[:, None]).sum((0, 3, 4)).flatten()

    def first(self, count: int) -> "FactoredRows":
        """The first `count` rows, whole columns of them."""
        return FactoredRows(self.inputs, self.outputs[:, : count // self.inputs.shape[1]])

    def to(self, device: torch.device) -> "FactoredRows":
        """The same on `device`."""
        return FactoredRows(self.inputs.to(device), self.outputs.to(device))


Rows = DenseRows | FactoredRows


def _products(left: Tensor, right: Tensor) -> Tensor:
    """`(G, A, B)`, float64: inner products over the last axis of `(G, ..., d)`, group by group."""
    return left.flatten(1, -2).double() @ right.flatten(1, -2).double().mT


def rows_by_factors(inputs: Tensor, outputs: Tensor) -> Rows:
    """The rows of a weight from its layer's `inputs (G, N, S, I)` and `outputs (G, R, N, S, O)`.

    G is 1 for a side that all groups share.
    """
    if len(inputs) != len(outputs):
        # Groups that meet one and the same row of the other side are features of one group.
        inputs, outputs = _one_group(inputs), _one_group(outputs)
    groups, columns, samples, positions, width = outputs.shape
    by_factors = positions**2 * (inputs.shape[3] / columns**2 + width + _ELEMENTWISE)
    if by_factors <= inputs.shape[3] * width:
        # Copies: an activation in place may still change what inputs are a view of.
        return FactoredRows(inputs.clone(memory_format=torch.contiguous_format), outputs.contiguous())
    written = outputs.mT @ inputs[:, None]
    return DenseRows(written.permute(1, 2, 0, 3, 4).reshape(columns * samples, -1))


def _one_group(rows: Tensor) -> Tensor:
    return rows.movedim(0, -2).flatten(-2)[None]


class RowStructure(Structure):
    """Keeps a layer's rows: what its inputs and each of its class passes give, part by part of a batch."""

    def __init__(self, rule: CurvatureRule, trainable: set[str]):
        super().__init__(rule, trainable)
        self.parts: list[tuple[Tensor | None, dict[str, list[Tensor]]]] = []

    def keep_inputs(self, inputs: Tensor) -> None:
        super().keep_inputs(inputs)
        weighs = "weight" in self.trainable
        self.parts.append((with_positions(self.rule.matched_input_rows(inputs)) if weighs else None, {}))

    def add_gradients(self, gradients: Tensor) -> None:
        super().add_gradients(gradients)
        if "weight" in self.trainable:
            self._add("weight", with_positions(self.rule.output_rows(gradients)))
        if "bias" in self.trainable:
            self.add_exact("bias", self.rule.bias_rows(gradients))

    def add_exact(self, name: str, rows: Tensor) -> None:
        self._add(name, rows)

    def _add(self, name: str, rows: Tensor) -> None:
        self.parts[-1][1].setdefault(name, []).append(rows)

    def take(self) -> list[dict[str, Rows]]:
        """The rows of each parameter, by its name, of every part since the last call."""
        found = [self._rows(*part) for part in self.parts]
        self.parts = []
        return found

    def _rows(self, inputs: Tensor | None, gradients: dict[str, list[Tensor]]) -> dict[str, Rows]:
        rows: dict[str, Any] = {}
        for name, columns in gradients.items():
            if name == "weight" and inputs is not None:
                rows[name] = rows_by_factors(inputs, torch.stack(columns, dim=1))
            else:
                rows[name] = DenseRows(torch.cat(columns))
        return rows
