"""The gradient of the evidence in whatever the curvature depends on, without differentiating a decomposition.

With H_l = s B kron A and delta fixed, d log|H_l + delta| = <G_A, dA> + <G_B, dB>. In the eigenbasis of A

    G_A = U_A diag_j( sum_i s b_i / (s a_j b_i + delta) ) U_A^T

and likewise G_B. These are constants, so one pass over the data with a graph gives the gradient: A and B are sums over
samples of what the rules make of inputs and output gradients. No eigenvalue is differentiated, and none can be NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ellarepro.curvature.accumulators import BlockAccumulator
from ellarepro.curvature.eigen import symmetric_eigenvectors
from ellarepro.curvature.hooks import evaluation_mode, forward_hooks
from ellarepro.curvature.rule import with_positions
from ellarepro.curvature.structures import Block, KronStructure, Structure
from ellarepro.data.loading import batches_of
from ellarepro.evidence.marglik import Fit, MarginalLikelihood


def evidence_gradient(
    fit: Fit, marglik: MarginalLikelihood, log_precision: Tensor, hyperparameters: Sequence[Tensor]
) -> list[Tensor]:
    """d log p(D|eta) / d h, in nats, for each of `hyperparameters` that network outputs depend on; weights are fixed.

    Args:
        fit: finished, of `structure=kron` or `kron_blockwise` and `fit_size=null`; `data_size` may exceed its data.
        marglik: its result.
        log_precision: `(L,)`.
        hyperparameters: tensors that require gradients.

    Raises:
        ValueError: a fit of another structure, or of a part of its data.
    """
    accumulator = fit.accumulator
    if not isinstance(accumulator, BlockAccumulator) or fit.settings.structure == "diag" or fit.settings.fit_size:
        raise ValueError(
            "the gradient of the evidence needs structure=kron or kron_blockwise and fit_size=null; "
            f"got structure={fit.settings.structure}, fit_size={fit.settings.fit_size}"
        )
    factor = float(torch.as_tensor(fit.likelihood.precision()).detach())
    deltas = (log_precision.detach().exp() / factor).tolist()
    blocks = marglik.curvature.blocks or {}
    adjoints = _adjoints(list(blocks.values()), deltas)
    scale = factor * marglik.data_size / fit.size
    total = [torch.zeros_like(h) for h in hyperparameters]
    device = fit.prior.parameters[0].device
    with evaluation_mode(fit.model), torch.enable_grad():
        for inputs, targets in batches_of(fit.data, fit.settings.batch_size, device):
            outputs, log_det = _log_det_part(fit, accumulator, adjoints, inputs)
            value = -log_det / 2 - scale * fit.likelihood.losses(outputs, targets).double().sum()
            parts = torch.autograd.grad(value, list(hyperparameters), allow_unused=True)
            total = [t if part is None else t + part for t, part in zip(total, parts, strict=True)]
    return total


def _log_det_part(
    fit: Fit, accumulator: BlockAccumulator, adjoints: dict[int, Tensor], inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of `inputs`, and the sum over factors of <G, the batch's part of the factor>; both with a graph."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, layer_inputs: Tensor, output: Tensor) -> None:
        seen[name] = layer_inputs, output

    with forward_hooks(accumulator.layers, keep):
        logits = fit.model(inputs)
    value = torch.zeros((), dtype=torch.float64, device=logits.device)
    for name, (layer_inputs, _) in seen.items():
        part = accumulator.parts[name]
        if isinstance(part, KronStructure) and id(part.input_factor) in adjoints:
            rows = with_positions(part.rule.input_rows(layer_inputs))
            value = value + _quadratic(rows, adjoints[id(part.input_factor)]) / rows.shape[2]
    columns = fit.likelihood.columns(logits, 0.0, fit.settings.sampled, getattr(accumulator, "generator", None))
    for index in range(int(columns.passes_needed.max())):
        column = columns.column(index).to(logits.dtype)
        layer_outputs = [output for _, output in seen.values()]
        gradients = torch.autograd.grad(logits, layer_outputs, column, create_graph=True)
        for (name, (layer_inputs, _)), gradient in zip(seen.items(), gradients, strict=True):
            value = value + _of_gradient(accumulator.parts[name], layer_inputs, gradient, adjoints)
    return logits, value


def _of_gradient(part: Structure, inputs: Tensor, gradient: Tensor, adjoints: dict[int, Tensor]) -> Tensor:
    """What one class pass adds: the output factor's part, and those of biases and pointwise parameters."""
    rule, value = part.rule, torch.zeros((), dtype=torch.float64, device=gradient.device)
    if isinstance(part, KronStructure) and id(part.output_factor) in adjoints:
        value = value + _quadratic(rule.output_rows(gradient), adjoints[id(part.output_factor)])
    for name, total in part.exact.items():
        if name == "bias":
            rows = rule.bias_rows(gradient)
        else:
            rows = rule.pointwise_rows(gradient * rule.tangent(inputs, name), name)
        value = value + _quadratic(rows[None], adjoints[id(total)])
    return value


def _quadratic(rows: Tensor, adjoint: Tensor) -> Tensor:
    """Sum over `rows (G, ..., d)` of r^T G r, with `adjoint (G or 1, d, d)`."""
    flat = rows.flatten(1, -2).double()
    return (flat @ adjoint * flat).sum()


@torch.no_grad()
def _adjoints(blocks: Sequence[Block], deltas: Sequence[float]) -> dict[int, Tensor]:
    """G of each running sum, by its identity: d sum_l log|H_l + delta_l| = sum <G, d sum>."""
    found: dict[int, Tensor] = {}
    taken: dict[int, tuple[Tensor, Tensor]] = {}
    for block, delta in zip(blocks, deltas, strict=True):
        for part in block.parts:
            if id(part.total) not in taken:
                taken[id(part.total)] = symmetric_eigenvectors(part.total.dense().double(), "factor")
        scale = 1.0
        for part in block.parts:
            scale *= part.scale
        pairs = [taken[id(part.total)] for part in block.parts]
        for index, part in enumerate(block.parts):
            values, basis = pairs[index]
            others = pairs[1 - index][0] if len(pairs) == 2 else torch.ones_like(values[:, :1])
            weights = scale * others[:, None, :] / (scale * values[:, :, None] * others[:, None, :] + delta)
            weights = weights.sum(2)
            if len(values) == 1:  # one factor of all groups
                weights = weights.sum(0, keepdim=True)
            adjoint = basis * weights[:, None, :] @ basis.mT
            found[id(part.total)] = found.get(id(part.total), 0) + adjoint
    return found
