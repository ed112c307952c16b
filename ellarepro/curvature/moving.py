"""A curvature that follows a training: moving averages, batch after batch, of the factors that it is gathered as.

Each factor is averaged by itself, a datum at a time. After each batch of B data

    A <- decay A + (1 - decay) (sum over the batch of a a^T) / B,

where the first batches are weighed alike. A wide factor whose batches come as a few rows a, of a dense layer or of a
channel's map, is the mean over the last `KEPT` of them: its matrix, or the inverse, would take far longer than a step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.curvature.structures import Block, Factor, sums_of

KEPT = 128
"""Rows that a wide factor is the mean of."""
WIDE = 2 * KEPT
"""Width from which on it is: rows times a vector, and back, take no longer than the matrix times it."""


class MovingCurvature:
    """The generalised Gauss-Newton of a model in training, from a pass over some of its batches.

    Args:
        model: every trainable tensor needs a curvature rule.
        decay: of the moving average.
        every: of how many batches one is taken.
        share: part of that batch that is, from its start.
        passes: sampled passes (`SignedColumns`), each a backward pass; None for exact ones.
        likelihood: whose curvature; `Classification` if not given.
        seed: of the generator of sampled passes.

    Attributes:
        observed: batches so far.
        average: the blocks.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float = 0.95,
        every: int = 15,
        share: float = 1.0,
        passes: int | None = 1,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ):
        refuse("every", every, every >= 1, "at least 1")
        refuse("share", share, 0 < share <= 1, "above 0 and at most 1")
        self.model, self.every, self.share = model, every, share
        self.passes, self.likelihood = passes, likelihood
        self.observed = 0
        self.average = MovingBlocks(decay)
        self.device = next(model.parameters()).device
        self.generator = None if passes is None else torch.Generator(self.device).manual_seed(seed)
        self._new_fit()  # refuses what no rule covers, before anything is trained

    def _new_fit(self) -> GGN:
        return GGN(self.model, passes=self.passes, tolerance=0, generator=self.generator, likelihood=self.likelihood)

    def observe(self, inputs: Tensor) -> bool:
        """Count a batch of `inputs (B, ...)`, and take it in where it is due; returns whether it was.

        Raises:
            ValueError: as `GGN.update`.
        """
        due = self.observed % self.every == 0
        if due:
            taken = inputs[: max(round(len(inputs) * self.share), 1)]
            fit = self._new_fit()
            fit.update(taken)
            self.average.add(fit.blocks(1), len(taken))
        self.observed += 1
        return due

    def state_dict(self) -> dict[str, Any]:
        """All that going on needs, as tensors and plain values."""
        drawn = None if self.generator is None else self.generator.get_state()
        return {"observed": self.observed, "generator": drawn, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it."""
        self.observed = state["observed"]
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
        self.average.load_state_dict(state["average"], self.device)


def refuse(name: str, got: float, in_range: bool, wanted: str) -> None:
    """ValueError unless `in_range`."""
    if not in_range:
        raise ValueError(f"{name} must be {wanted}; got {got}")


class MovingBlocks:
    """The blocks of one datum in the mean over batches.

    Args:
        decay: of the average; 0 keeps the last batch alone.

    Attributes:
        batches: how many have been added.
    """

    def __init__(self, decay: float):
        refuse("decay", decay, 0 <= decay < 1, "at least 0 and below 1")
        self.decay, self.batches = decay, 0
        self._averages: list[MomentSum] = []
        self._layout: dict[str, tuple[list[tuple[int, float]], int | None]] = {}

    @torch.no_grad()
    def add(self, blocks: dict[str, Block], samples: int) -> None:
        """Add the blocks of a batch of `samples`, by parameter name, as `BlockAccumulator.blocks(1)` gives them."""
        sums = sums_of(blocks)
        places = {id(total): place for place, total in enumerate(sums)}
        self._layout = {
            name: ([(places[id(part.total)], part.scale) for part in block.parts], block.group_axis)
            for name, block in blocks.items()
        }
        weight = 1 - min(self.decay, self.batches / (self.batches + 1))
        before = self._averages or [MomentSum()] * len(sums)
        self._averages = [_averaged(old, new, samples, weight) for old, new in zip(before, sums, strict=True)]
        self.batches += 1

    def blocks(self, data_size: int = 1) -> dict[str, Block]:
        """The blocks of `data_size` data by parameter name, in the memory of the averages."""
        found = {}
        for name, (parts, axis) in self._layout.items():
            factors = [Factor(self._averages[place], scale * _mean_of(self._averages[place])) for place, scale in parts]
            found[name] = Block(factors, axis).scaled(data_size)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The averages, as tensors and plain values."""
        averages = [average.state_dict() for average in self._averages]
        return {"batches": self.batches, "averages": averages, "layout": self._layout}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`, as `state_dict` gave it, on `device`."""
        self.batches, self._layout = state["batches"], state["layout"]
        self._averages = [MomentSum.of_state(average, device) for average in state["averages"]]


def _mean_of(average: MomentSum) -> float:
    """What the sum that is kept is to be multiplied by: of rows it is a mean."""
    return 1 / average.shape[1] if average.rows else 1.0


def _averaged(old: MomentSum, new: MomentSum, samples: int, weight: float) -> MomentSum:
    if new.rows and new.rows[0].shape[-1] >= WIDE and old.matrix is None:
        kept = MomentSum()
        kept.rows = [torch.cat([*old.rows, _few(torch.cat(new.rows, 1), samples)], 1)[:, -KEPT:].contiguous()]
        return kept
    matrix = new.dense() / samples
    if old.matrix is not None:
        return MomentSum(old.matrix.lerp_(matrix, weight))
    return MomentSum(old.dense().mul_(_mean_of(old)).lerp_(matrix, weight) if old.rows else matrix)


def _few(rows: Tensor, samples: int) -> Tensor:
    """At most half of `KEPT` rows `(G, r, d)` in place of `rows (G, R, d)`, whose mean is the sum of those a datum."""
    every = -(-2 * rows.shape[1] // KEPT)
    return rows[:, ::every] * (rows.shape[1] / samples) ** 0.5
