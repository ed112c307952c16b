"""Both sides of the exact log-determinant of more data than one kernel holds: log|I + K| of all their rows.

The rows of some data, the core, meet all others; the rest comes in batches B, whose rows given the core have the Schur
complement I + E_B. With weights w_B that sum to one, here by the traces of Lambda,

    log|I + K_core| + sum_B w_B log|I + E_B / w_B|  <=  log|I + K|  <=  log|I + K_core| + sum_B log|I + E_B|,

above by Fischer's inequality. Below, H is the core's plus the mean, by w_B, of H_B / w_B, and the log-determinant is
concave. Without a core they are the sum over batches, and the mean of batches scaled up. Both hold for every partition;
the core is best made of the data of which the network is least sure, whose rows are large.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.kernel import Chunk, RowAccumulator, cholesky_of_identity_plus
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.curvature.memory import Forecast
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.settings.parts import BracketSettings

_TOGETHER = 500
LEFT_OUT = 1e-3
"""Nats a datum that the smallest rows may add to the upper bound by themselves, in place of meeting others."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of log|H + D| - log|D|, in nats, summed over the data.

    Attributes:
        errors: standard errors of `lower` and `upper` over the draw of batches; zero where all were taken.
    """

    lower: float
    upper: float
    errors: tuple[float, float] = (0.0, 0.0)


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
        settings: how many data make the core and a batch, and how many batches are drawn.
        generator: draws the batches; on the CPU.

    Raises:
        CurvatureError: rows that are not finite.
    """
    accumulator = RowAccumulator(model, likelihood=likelihood)
    sizes, order = _least_sure_first(model, inputs, likelihood or Classification())
    core, rest = order[: settings.core], order[settings.core :]
    known = [_large_rows(accumulator, inputs[some], precisions) for some in _parts(core, settings.batch_size)]
    chunks = [chunk for chunk, _ in known]
    root = cholesky_of_identity_plus(_lower(chunks, precisions)) if chunks else None
    whole = 0.0 if root is None else 2 * root.diagonal().log().sum().item()
    if settings.batches is not None:
        # Batches that are alike stand for each other; where all are taken, those of sure data cost next to nothing.
        rest = rest[torch.randperm(len(rest), generator=generator).to(rest.device)]
    batches = _parts(rest, settings.batch_size)
    lower, upper = [], []
    for some in batches[: settings.batches]:
        weight = (sizes[some].sum() / sizes[rest].sum()).item()
        chunk, left_out = _large_rows(accumulator, inputs[some], precisions)
        beyond = _block(chunk, chunk, precisions)
        if root is not None:
            across = torch.cat([_block(one, chunk, precisions) for one in chunks])
            seen = torch.linalg.solve_triangular(root, across, upper=False)
            beyond -= seen.mT @ seen
        values = torch.linalg.eigvalsh(beyond).clamp_min(0)
        lower.append(weight * (values / weight).log1p().sum().item())
        upper.append(values.log1p().sum().item() + left_out)
    below, above = _total(lower, len(batches)), _total(upper, len(batches))
    return Bounds(whole + below[0], whole + above[0] + sum(out for _, out in known), (below[1], above[1]))


def bracket_forecast(
    model: nn.Module, inputs: Tensor, settings: BracketSettings, likelihood: Likelihood | None = None
) -> Forecast:
    """What `log_det_bounds` takes at most: the rows of the core, and its kernel beside those that it is made of."""
    count = min(settings.core, len(inputs)) + settings.batch_size
    rows = RowAccumulator(model, likelihood=likelihood).rows_of(inputs, count)
    width = max(len(own) for layer in rows.values() for own in layer.values())
    sizes = {name: sum(own.nbytes for own in layer.values()) for name, layer in rows.items()}
    return Forecast(sizes, workspace=3 * 8 * width**2, remedy="lower objective.bracket")


def evidence_bounds(
    evidence: MarginalLikelihood, log_precision: Tensor, bounds: Bounds
) -> tuple[list[float], list[float]]:
    """Bounds of -log p(D|eta) / N with `bounds` for the log-determinant of `evidence`, and their standard errors."""
    value, size = evidence.evidence(log_precision), evidence.data_size
    rest = -(value.data_fit + value.log_prior).item()
    found = [(rest + log_det / 2) / size for log_det in (bounds.lower, bounds.upper)]
    return found, [error / 2 / size for error in bounds.errors]


def _large_rows(accumulator: RowAccumulator, inputs: Tensor, precisions: Tensor) -> tuple[Chunk, float]:
    """The rows of `inputs` but for columns of small ones, and what those add to the upper bound, row by row."""
    (chunk,), _ = accumulator.chunks(inputs)
    pairs = zip(chunk.values(), precisions.tolist(), strict=True)
    squares = torch.stack([rows.squares() / delta for rows, delta in pairs]).sum(0)
    columns = squares.log1p().view(-1, len(inputs)).sum(1)
    after = columns.flip(0).cumsum(0).flip(0)
    kept = max(int((after > LEFT_OUT * len(inputs)).sum()), 1)
    return {name: rows.first(kept * len(inputs)) for name, rows in chunk.items()}, columns[kept:].sum().item()


def _lower(chunks: Sequence[Chunk], precisions: Tensor) -> Tensor:
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
def _least_sure_first(model: nn.Module, inputs: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """The trace of Lambda of each datum, and the data's indices by it, largest first."""
    with evaluation_mode(model):
        outputs = torch.cat([model(some) for some in inputs.split(_TOGETHER)])
    traces = likelihood.hessian(outputs).diagonal(dim1=1, dim2=2).double().sum(1)
    return traces, traces.argsort(descending=True)


def _parts(indices: Tensor, size: int) -> Sequence[Tensor]:
    return indices.split(size) if len(indices) else ()


def _total(parts: list[float], batches: int) -> tuple[float, float]:
    """The sum over all `batches` from those of `parts`, and its standard error."""
    if len(parts) == batches:
        return sum(parts), 0.0
    found = torch.tensor(parts, dtype=torch.float64) * (batches / len(parts))
    return found.sum().item(), found.std().item() * len(parts) ** 0.5 * (1 - len(parts) / batches) ** 0.5
