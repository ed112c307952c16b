"""Both sides of the exact log-determinant of more data than one kernel holds: log|I + K| of all their rows.

The rows of some data, the core, meet all others; the rest comes in batches B, whose rows given the core have the Schur
complement I + E_B. With weights w_B that sum to one,

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
from ellarepro.curvature.kernel import Chunk, RowGatherer, cholesky_of_identity_plus
from ellarepro.curvature.likelihood import Classification, Likelihood
from ellarepro.evidence.marglik import MarginalLikelihood
from ellarepro.settings.parts import BracketSettings

_TOGETHER = 500


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
    gatherer = RowGatherer(model, likelihood=likelihood)
    order = _least_sure_first(model, inputs, likelihood or Classification())
    core, rest = order[: settings.core], order[settings.core :]
    rest = rest[torch.randperm(len(rest), generator=generator).to(rest.device)]
    known = [chunk for some in _parts(core, settings.batch_size) for chunk in gatherer.chunks(inputs[some])[0]]
    root = cholesky_of_identity_plus(kernel(known, known, precisions)) if known else None
    whole = 0.0 if root is None else 2 * root.diagonal().log().sum().item()
    lower, upper = [], []
    for some in _parts(rest, settings.batch_size)[: settings.batches]:
        chunks, weight = gatherer.chunks(inputs[some])[0], len(some) / len(rest)
        left = kernel(chunks, chunks, precisions)
        if root is not None:
            seen = torch.linalg.solve_triangular(root, kernel(known, chunks, precisions), upper=False)
            left -= seen.mT @ seen
        values = torch.linalg.eigvalsh(left).clamp_min(0)
        lower.append(weight * (values / weight).log1p().sum().item())
        upper.append(values.log1p().sum().item())
    taken = min(len(lower) * settings.batch_size, len(rest))
    (below, below_error), (above, above_error) = (_total(parts, taken, len(rest)) for parts in (lower, upper))
    return Bounds(whole + below, whole + above, (below_error, above_error))


def evidence_bounds(
    evidence: MarginalLikelihood, log_precision: Tensor, bounds: Bounds
) -> tuple[list[float], list[float]]:
    """Bounds of -log p(D|eta) / N with `bounds` for the log-determinant of `evidence`, and their standard errors."""
    value, size = evidence.evidence(log_precision), evidence.data_size
    rest = -(value.data_fit + value.log_prior).item()
    found = [(rest + log_det / 2) / size for log_det in (bounds.lower, bounds.upper)]
    return found, [error / 2 / size for error in bounds.errors]


def _parts(indices: Tensor, size: int) -> Sequence[Tensor]:
    return indices.split(size) if len(indices) else ()


def kernel(one: Sequence[Chunk], other: Sequence[Chunk], precisions: Tensor) -> Tensor:
    """R_1 D^-1 R_2^T of the rows in two lists of chunks, `(M_1, M_2)`, float64."""
    return torch.cat([torch.cat([_block(a, b, precisions) for b in other], dim=1) for a in one])


def _block(one: Chunk, other: Chunk, precisions: Tensor) -> Tensor:
    total: Tensor | None = None
    for name, delta in zip(one, precisions.tolist(), strict=True):
        products = one[name].products(other[name])  # type: ignore[arg-type]
        total = products.div_(delta) if total is None else total.add_(products, alpha=1 / delta)
    assert total is not None
    return total


@torch.no_grad()
def _least_sure_first(model: nn.Module, inputs: Tensor, likelihood: Likelihood) -> Tensor:
    """Indices of the data by the trace of Lambda, largest first."""
    with evaluation_mode(model):
        outputs = torch.cat([model(some) for some in inputs.split(_TOGETHER)])
    return likelihood.hessian(outputs).diagonal(dim1=1, dim2=2).sum(1).argsort(descending=True)


def _total(parts: list[float], taken: int, size: int) -> tuple[float, float]:
    """The sum over batches of `size` data in all, from those of `taken`; and its standard error."""
    if taken == size:
        return sum(parts), 0.0
    found = torch.tensor(parts, dtype=torch.float64) * (size / taken)
    spread = found.std().item() * len(parts) ** 0.5 * (1 - taken / size) ** 0.5
    return found.sum().item(), spread
