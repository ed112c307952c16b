"""Is a layer's curvature rule right? Every claim that can be checked, against automatic Jacobians.

`assert_rule_matches_oracle(layer, inputs)` is for whoever writes a rule: it passes, or says what is wrong and where.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from ellarepro.curvature.exact import jacobians
from ellarepro.curvature.factors import second_moment
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.hooks import evaluation_mode
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.layer_calls import Call, calls_of
from ellarepro.curvature.likelihood import softmax_hessian
from ellarepro.curvature.rule import rules_of, with_positions
from ellarepro.curvature.structures import STRUCTURES, Block

CLASSES = 3


@dataclass(frozen=True)
class BlockReport:
    """How far one tensor's block is from the exact one on the data given.

    Attributes:
        tensor: the parameter's name.
        structure: `kron`, `kron_blockwise` or `diag`.
        trace_ratio: trace over the exact trace.
        error: of the block, relative, in the Frobenius norm.
    """

    tensor: str
    structure: str
    trace_ratio: float
    error: float

    def __str__(self) -> str:
        return f"{self.tensor:<24} {self.structure:<15} trace ratio {self.trace_ratio:6.3f}   error {self.error:.2e}"


class Readout(nn.Module):
    """A layer, then a fixed nonlinear map of its outputs to logits: nothing but the layer can be trained."""

    def __init__(self, layer: nn.Module, outputs: Tensor, generator: torch.Generator):
        super().__init__()
        self.layer = layer
        features = outputs[0].numel()
        # Logits of about one: probabilities near zero and one would leave a Lambda of rounding errors.
        weights = torch.randn(features, CLASSES, generator=generator, dtype=outputs.dtype) * features**-0.5
        self.register_buffer("weights", weights)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).sin().flatten(1) @ self.weights


def assert_rule_matches_oracle(layer: nn.Module, inputs: Tensor, tolerance: float = 1e-8) -> list[BlockReport]:
    """Check the rules of `layer`, or of the leaf layers that it is made of, on `inputs (B, ...)`, B at least 2.

    Rows: their shapes, and that their products are the gradients of the weights. Input factors: that they are the mean
    of the rows' products. Blocks: biases and pointwise parameters exact in `kron` and `kron_blockwise`; `diag` exact;
    with one datum of one position, weights exact within groups, for one group in `kron` too. What no rule can have
    exactly is printed and returned: trace ratio and error of every block.

    The check runs on a copy of the layer in float64 and evaluation mode, with constant tensors (biases at zero, scales
    at one) moved, so that an error in them shows.

    Raises:
        AssertionError: a claim that does not hold: the tensor, the claim and by how much.
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: fewer than two samples.
    """
    if len(inputs) < 2:
        raise ValueError(f"inputs must hold at least 2 samples, got {len(inputs)}")
    generator = torch.Generator().manual_seed(0)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    layer = _moved(deepcopy(layer).double(), generator)
    with evaluation_mode(layer):
        model = Readout(layer, layer(inputs[:1]).detach(), generator)
        for name, call in calls_of(model, inputs).items():
            _check_rows(name, call, tolerance)
        _check_blocks(model, inputs, tolerance)
        _check_one_datum(model, inputs[:1].repeat_interleave(2, 0), tolerance)
        found = block_reports(model, [inputs])
    reports = [replace(report, tensor=report.tensor.removeprefix("layer.")) for report in found]
    print("\n".join(map(str, reports)))
    return reports


def block_reports(model: nn.Module, batches: Sequence[Tensor]) -> list[BlockReport]:
    """Every tensor's block under every structure beside the exact one, for a network small enough for it.

    Args:
        model: maps `(B, ...)` to logits `(B, K)`; in float64, unless rounding is to be seen.
        batches: the data, inputs `(B, ...)`.
    """
    return [
        BlockReport(tensor, structure, (ours.trace() / exact.trace()).item(), _error(ours, exact))
        for tensor, structure, ours, exact in _block_pairs(model, batches)
    ]


def _check_rows(name: str, call: Call, tolerance: float) -> None:
    """Rows against the gradients that autograd gives for the layer's parameters, sample by sample."""
    _check_shapes(name, call)
    for parameter, wanted in _sample_gradients(call).items():
        got = call.gradient_rows(parameter)
        _assert_close(f"{name}.{parameter}", "gradient of each sample by its rows", got, wanted, tolerance)
    if call.has_factors:
        rows = with_positions(call.rule.input_rows(call.inputs))
        wanted = second_moment(rows) / rows.shape[2]
        claim = "input factor beside the mean of the products of input rows"
        _assert_close(f"{name}.weight", claim, call.rule.input_factor(call.inputs), wanted, tolerance)


def _check_shapes(name: str, call: Call) -> None:
    if not call.has_factors:
        return
    rows_in, rows_out = call.weight_rows()
    samples, entries, groups = len(call.inputs), call.layer.weight.numel(), max(len(rows_in), len(rows_out))
    _require(
        f"{name}.weight",
        f"rows (groups, {samples} samples, positions, features) that make {entries} entries, with as many positions on "
        "both sides",
        f"input {tuple(rows_in.shape)}, output {tuple(rows_out.shape)}",
        {len(rows_in), len(rows_out)} <= {1, groups}
        and rows_in.shape[1] == rows_out.shape[1] == samples
        and rows_in.shape[2] == rows_out.shape[2]
        and groups * rows_in.shape[3] * rows_out.shape[3] == entries,
    )


def _sample_gradients(call: Call) -> dict[str, Tensor]:
    """`(N, P)` by name of the parameter: the layer called on one sample after another."""
    parameters = call.parameters()
    found = []
    for one, gradient in zip(call.inputs.split(1), call.output_gradient.split(1), strict=True):
        with torch.enable_grad():
            output = call.layer(one)
        found.append([g.flatten() for g in torch.autograd.grad(output, list(parameters.values()), gradient)])
    return {name: torch.stack(rows) for name, rows in zip(parameters, zip(*found, strict=True), strict=True)}


def _check_blocks(model: nn.Module, inputs: Tensor, tolerance: float) -> None:
    rules = rules_of(model)
    for tensor, structure, ours, exact in _block_pairs(model, [inputs]):
        layer, _, parameter = tensor.rpartition(".")
        if structure == "diag":
            _assert_close(tensor, "diag beside the exact diagonal", ours.diagonal(), exact.diagonal(), tolerance)
        elif parameter != "weight" or parameter in rules[layer].pointwise:
            _assert_close(tensor, f"exact block under {structure}", ours, exact, tolerance)


def _check_one_datum(model: nn.Module, datum: Tensor, tolerance: float) -> None:
    """With one datum of one position, repeated, a block is one product: only what is between groups is left out."""
    exact = _exact_blocks(model, [datum])
    blocks = {structure: _blocks(model, [datum], structure) for structure in ("kron", "kron_blockwise")}
    for name, call in calls_of(model, datum).items():
        if not call.has_factors:
            continue
        rows = with_positions(call.rule.input_rows(call.inputs))
        if rows.shape[2] > 1:
            continue
        tensor = f"{name}.weight"
        block = blocks["kron_blockwise"][tensor]
        ones = [[torch.ones_like(factor) for factor in block.factors]]
        same_group = BlockKron(ones, [block.group_axis], [tensor]).to_matrix() != 0
        wanted = exact[tensor] * same_group
        _assert_close(tensor, "one datum, within groups, under kron_blockwise", _dense(block), wanted, tolerance)
        if rows.shape[0] == 1:
            _assert_close(tensor, "one datum under kron", _dense(blocks["kron"][tensor]), wanted, tolerance)


def _block_pairs(model: nn.Module, batches: Sequence[Tensor]) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Tensor, structure, its block under it and the exact one, `(P, P)`."""
    exact = _exact_blocks(model, batches)
    for structure in STRUCTURES:
        for tensor, block in _blocks(model, batches, structure).items():
            yield tensor, structure, _dense(block), exact[tensor]


def _blocks(model: nn.Module, batches: Sequence[Tensor], structure: str) -> dict[str, Block]:
    ggn = GGN(model, structure, tolerance=0)
    for inputs in batches:
        ggn.update(inputs)
    return ggn.blocks(data_size=sum(map(len, batches)))


def _exact_blocks(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """The exact GGN of each tensor, `(P, P)`."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    blocks: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in sizes}
    for inputs in batches:
        jacobian, logits = (found.detach() for found in jacobians(model, inputs))
        hessian = softmax_hessian(logits)
        for name, part in zip(sizes, jacobian.split(list(sizes.values()), dim=2), strict=True):
            blocks[name] = blocks[name] + torch.einsum("nkp,nkl,nlq->pq", part, hessian, part)
    return blocks


def _dense(block: Block) -> Tensor:
    """The block as one matrix `(P, P)`, entries in the order of the tensor."""
    return BlockKron.from_blocks({"": block}).to_matrix()


@torch.no_grad()
def _moved(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    for p in layer.parameters():
        if prod(p.shape) and (p == p.flatten()[0]).all():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return layer


def _error(got: Tensor, wanted: Tensor) -> float:
    norm = wanted.norm().item()
    return (got - wanted).norm().item() / (norm or 1.0)


def _assert_close(tensor: str, claim: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    _require(tensor, f"{claim}, of shape {tuple(wanted.shape)}", f"shape {tuple(got.shape)}", got.shape == wanted.shape)
    error = _error(got, wanted)
    _require(tensor, f"{claim}, within {tolerance:.0e}", f"a relative error of {error:.1e}", error <= tolerance)


def _require(tensor: str, claim: str, got: str, holds: bool) -> None:
    if not holds:
        raise AssertionError(f"{tensor.removeprefix('layer.')}: {claim}: got {got}")
