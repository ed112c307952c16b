"""Both sides of the exact log-determinant log|D + H| - log|D| of more rows than one kernel holds, by drawing rows.

H is the sum of r_i r_i^T over all rows. Row i is drawn with the chance p_i, in proportion to the squared norm of its
column of the root of Lambda and at most 1, and then counts 1 / p_i times. So H' = sum r_i r_i^T / p_i over the drawn
rows is unbiased for H. With A = D + H',

    E log|A|  <=  log|D + H|  <=  log|A| + tr(A^-1 (H - H')),

because the log-determinant is concave: below by Jensen's inequality, above as its tangent at A, which holds for every
A. Rows with p_i = 1 are in both and cancel in the trace. Of the others, those in H' are known by their kernel, and rows
drawn afresh stand for those in H, each by its variance under A, r_i^T A^-1 r_i / p_i. Where all rows are drawn, both
sides are the log-determinant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ellarepro.curvature.columns import Columns, OneColumn
from ellarepro.curvature.eigen import CurvatureError
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.kernel import Chunk, RowAccumulator, cholesky_of_identity_plus
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.curvature.memory import Forecast
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.settings.parts import BracketSettings

_TOGETHER = 500
"""Data that pass forward at once."""
_CHUNK = 100
"""Rows that are computed at once."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of log|H + D| - log|D|, in nats, summed over the data; in the mean over draws.

    Attributes:
        errors: standard errors of `lower`, over the rows that meet, and of `upper`, over those drawn afresh.
    """

    lower: float
    upper: float
    errors: tuple[float, float] = (0.0, 0.0)


class ColumnRows(RowAccumulator):
    """One row a datum: that of column `index`."""

    index = 0

    def columns(self, outputs: Tensor) -> Columns:
        return OneColumn(super().columns(outputs), self.index)

    def most_passes(self, width: int) -> int:
        return 1


def log_det_bounds(
    model: nn.Module,
    precisions: Tensor,
    inputs: Tensor,
    settings: BracketSettings,
    generator: torch.Generator,
    likelihood: Likelihood | None = None,
) -> Bounds:
    """Bounds of log|H + D| - log|D| for the data `inputs (N, ...)` and one precision a tensor `(L,)`.

    Args:
        settings: how many rows meet each other, and how many others are drawn beside them.
        generator: draws the rows; on the CPU.

    Raises:
        CurvatureError: rows that are not finite.
    """
    accumulator = ColumnRows(model, likelihood=likelihood)
    sizes = _column_sizes(model, inputs, accumulator.likelihood)
    met = chances(sizes, settings.rows)
    chunks, p = _drawn_rows(accumulator, inputs, met, generator)
    if not chunks:
        return Bounds(0.0, 0.0)
    root = cholesky_of_identity_plus(_kernel_of(chunks, precisions))
    lower = 2 * root.diagonal().log().sum().item()
    # The share of each row in H' that A explains, r^T A^-1 r / p.
    leverage = 1 - torch.cholesky_inverse(root).diagonal()
    others = chances(sizes.masked_fill(met == 1, 0), settings.fresh)
    afresh, q = _drawn_rows(accumulator, inputs, others, generator)
    variances = torch.cat([leverage[:0], *(_variances(chunk, chunks, root, precisions) for chunk in afresh)])
    upper = lower + (variances.sum() - leverage[p < 1].sum()).item()
    return Bounds(lower, upper, (_error((-leverage).log1p(), p), _error(variances, q)))


def bracket_forecast(
    model: nn.Module, inputs: Tensor, settings: BracketSettings, likelihood: Likelihood | None = None
) -> Forecast:
    """What `log_det_bounds` takes: the rows that meet, and their kernel, its root and inverse."""
    accumulator = ColumnRows(model, likelihood=likelihood)
    with torch.no_grad(), evaluation_mode(model):
        width = accumulator.likelihood.most_columns(model(inputs[:1]).shape[1])
    count = min(settings.rows, len(inputs) * width)
    rows = accumulator.rows_of(inputs, count)
    sizes = {name: sum(own.nbytes for own in layer.values()) for name, layer in rows.items()}
    return Forecast(sizes, workspace=3 * 8 * count**2, remedy="lower objective.bracket")


def evidence_bounds(
    evidence: MarginalLikelihood, log_precision: Tensor, bounds: Bounds
) -> tuple[list[float], list[float]]:
    """Bounds of -log p(D|eta) / N with `bounds` for the log-determinant of `evidence`, and their standard errors."""
    value, size = evidence.evidence(log_precision), evidence.data_size
    rest = -(value.data_fit + value.log_prior).item()
    found = [(rest + log_det / 2) / size for log_det in (bounds.lower, bounds.upper)]
    return found, [error / 2 / size for error in bounds.errors]


def _kernel_of(chunks: Sequence[Chunk], precisions: Tensor) -> Tensor:
    """R D^-1 R^T of all rows in `chunks`, `(M, M)`, float64; above the diagonal blocks zero, as no root looks there."""
    sizes = [len(next(iter(chunk.values()))) for chunk in chunks]
    rows = [torch.cat([_block(one, b, precisions) for b in chunks[: a + 1]], dim=1) for a, one in enumerate(chunks)]
    return torch.cat([nn.functional.pad(row, (0, sum(sizes) - row.shape[1])) for row in rows])


def _block(one: Chunk, other: Chunk, precisions: Tensor) -> Tensor:
    total: Tensor | None = None
    for name, delta in zip(one, precisions.tolist(), strict=True):
        products = one[name].products(other[name])  # type: ignore[arg-type]
        total = products.div_(delta) if total is None else total.add_(products, alpha=1 / delta)
    assert total is not None
    return total


@torch.no_grad()
def _column_sizes(model: nn.Module, inputs: Tensor, likelihood: Likelihood) -> Tensor:
    """The squared norm of each column of each datum, `(N, R)`, on the CPU."""
    found = []
    with evaluation_mode(model):
        for some in inputs.split(_TOGETHER):
            outputs = model(some)
            columns = likelihood.columns(outputs, 0.0, None, None)
            most = range(likelihood.most_columns(outputs.shape[1]))
            found.append(torch.stack([columns.column(index).double().square().sum(1) for index in most], dim=1))
    return torch.cat(found).cpu()


def chances(sizes: Tensor, count: int) -> Tensor:
    """min(1, c `sizes`), with c such that they add up to `count`; 1 for all but zeros where these are no more.

    Raises:
        CurvatureError: sizes that are not finite.
    """
    if not torch.isfinite(sizes).all():
        raise CurvatureError("the network's outputs are not finite: lower the learning rate")
    sure = torch.zeros_like(sizes, dtype=torch.bool)
    if count >= (sizes > 0).sum():
        return (sizes > 0).to(sizes)
    while True:
        left = sizes.masked_fill(sure, 0)
        found = left * ((count - sure.sum()) / left.sum())
        if not (found >= 1).any():
            return found.masked_fill(sure, 1)
        sure |= found >= 1


def _drawn_rows(
    accumulator: ColumnRows, inputs: Tensor, probabilities: Tensor, generator: torch.Generator
) -> tuple[list[Chunk], Tensor]:
    """Rows drawn by their `probabilities (N, R)`, each over the root of its own; these, in the rows' order.

    The order is that of columns, and of the data within a column.
    """
    taken = _systematic(probabilities.flatten(), generator).view(probabilities.shape)
    chunks, found = [], [probabilities[:0, 0]]
    for index in range(probabilities.shape[1]):
        data = taken[:, index].nonzero().flatten()
        accumulator.index = index
        for some in _parts(data):
            p = probabilities[some, index]
            here = some.to(inputs.device)
            chunks += accumulator.chunks(inputs[here], p.reciprocal().to(inputs.device))[0]
            found.append(p)
    return chunks, torch.cat(found).to(inputs.device)


def _systematic(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Which of `(M,)` are drawn, each with its probability and as many as these add up to, in a random order."""
    order = torch.randperm(len(probabilities), generator=generator)
    ends = probabilities.masked_fill(probabilities == 1, 0)[order].cumsum(0)
    ends = ends + torch.rand((), generator=generator, dtype=torch.float64)
    passed = ends.floor().diff(prepend=ends.new_zeros(1)) > 0
    return (probabilities == 1).index_put((order,), passed) | (probabilities == 1)


def _error(values: Tensor, probabilities: Tensor) -> float:
    """The standard error of the sum of `values` of rows drawn so (Hajek, 1964)."""
    weights = 1 - probabilities
    centred = values - (weights * values).sum() / weights.sum().clamp_min(1e-300)
    return (weights * centred.square()).sum().sqrt().item()


def _variances(chunk: Chunk, others: Sequence[Chunk], root: Tensor, precisions: Tensor) -> Tensor:
    """r^T A^-1 r of the rows in `chunk`, with the `root` of I + K of `others`."""
    pairs = zip(chunk.values(), precisions.tolist(), strict=True)
    squares = torch.stack([rows.squares() / delta for rows, delta in pairs]).sum(0)
    across = torch.cat([_block(one, chunk, precisions) for one in others])
    return squares - torch.linalg.solve_triangular(root, across, upper=False).square().sum(0)


def _parts(indices: Tensor) -> Sequence[Tensor]:
    return indices.split(_CHUNK) if len(indices) else ()
