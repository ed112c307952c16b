"""Each leaf layer as a network calls it, and whether its rule accounts for the gradient of its parameters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.hooks import evaluation_mode, forward_hooks
from ellarepro.curvature.likelihood import Likelihood
from ellarepro.curvature.rule import CurvatureRule, rules_of, with_positions

CHECKED = 2
"""Samples on which the rules are checked against a network's gradients."""
_ALLOWED = 1e-3
"""Relative error of a gradient that rounding in float32 may leave."""
_FLOOR = 1e-2
"""Part of the gradient at a layer's output below which its parameters' gradients count as zero."""


@dataclass
class Call:
    """One leaf layer in one forward pass: its rule, inputs, and the gradient of one function of the logits.

    Attributes:
        output_gradient: of the function with respect to the layer's output.
    """

    layer: Any
    rule: CurvatureRule
    inputs: Tensor
    output_gradient: Any = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The layer's trainable parameters by their names in it."""
        return {name: p for name, p in self.layer.named_parameters(recurse=False) if p.requires_grad}

    @property
    def has_factors(self) -> bool:
        """Whether the layer has a trainable weight whose block is a product of factors."""
        return "weight" in self.parameters() and "weight" not in self.rule.pointwise

    def weight_rows(self) -> tuple[Tensor, Tensor]:
        """Input rows `(G, N, S, I)` and output rows `(G, N, S, O)` at the same positions."""
        rows_in = with_positions(self.rule.matched_input_rows(self.inputs))
        return rows_in, with_positions(self.rule.output_rows(self.output_gradient))

    def gradient_rows(self, parameter: str) -> Tensor:
        """`(N, P)`: the gradient of each sample with respect to `parameter`, as the rule's rows make it."""
        rule = self.rule
        if parameter in rule.pointwise:
            return rule.pointwise_rows(self.output_gradient * rule.tangent(self.inputs, parameter), parameter)
        if parameter == "bias":
            return rule.bias_rows(self.output_gradient)
        rows_in, rows_out = self.weight_rows()
        first, second = (rows_in, rows_out) if rule.input_first else (rows_out, rows_in)
        by_group = (first.mT @ second).transpose(0, 1)
        return (by_group.transpose(1, 2) if rule.group_axis == 1 else by_group).flatten(1)


def calls_of(model: nn.Module, inputs: Tensor) -> dict[str, Call]:
    """The calls of all leaf layers with a rule; `output_gradient` is that of an arbitrary function of the logits."""
    return _calls_and_function(model, inputs)[0]


def check_gradients(model: nn.Module, inputs: Tensor, likelihood: Likelihood | None = None) -> None:
    """Refuse a network in which the layers' rules do not account for the gradients of their parameters.

    The gradient of each parameter by the whole network is set beside that of its layer's rows. They differ where a
    weight is also used outside of its layer's call (tied by hand), where a hook or an assigned forward changes what the
    layer does, or where a rule is wrong. And a sample's outputs must be its own, whatever else is in its batch.

    Args:
        inputs: a few samples `(B, ...)`.
        likelihood: `Classification` if not given.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims.
        ValueError: as said; it names the parameter.
    """
    ggn = GGN(model, likelihood=likelihood)
    with evaluation_mode(model):
        _check_input_kept(model, inputs)
        ggn.update(inputs)  # what it refuses by itself, it says more clearly
        _check_independence(model, inputs)
        calls, function = _calls_and_function(model, inputs)
        for name, call in calls.items():
            for parameter, value in call.parameters().items():
                (wanted,) = torch.autograd.grad(function, value, retain_graph=True)
                _check_gradient(f"{name}.{parameter}" if name else parameter, call, parameter, wanted)


@torch.no_grad()
def _check_input_kept(model: nn.Module, inputs: Tensor) -> None:
    given = inputs.clone()
    model(given)
    if not torch.equal(given, inputs):
        raise ValueError("the network changes its input in place: let it work on a copy, inputs.clone()")


@torch.no_grad()
def _check_independence(model: nn.Module, inputs: Tensor) -> None:
    among, beside_itself = model(inputs)[:1], model(inputs[:1].expand_as(inputs).clone())[:1]
    if (among - beside_itself).norm() > _ALLOWED * among.norm():
        raise ValueError(
            "the outputs of a sample depend on the other samples of its batch: no rule covers this, as the curvature "
            "is a sum over samples; normalise over a sample, or by running statistics"
        )


@torch.no_grad()
def _check_gradient(full_name: str, call: Call, parameter: str, wanted: Tensor) -> None:
    rows = call.gradient_rows(parameter)
    error = (rows.sum(0) - wanted.flatten()).norm()
    # Some gradients are zero but for rounding, that of a bias before a normalisation, say.
    size = max(rows.norm(dim=1).sum(), wanted.norm(), _FLOOR * call.output_gradient.norm())
    if error > _ALLOWED * size:
        raise ValueError(
            f"the curvature rule of its layer accounts for another gradient of {full_name} than the network has "
            f"(relative error {error / size:.1e}): is it used outside of the layer's own call, or does a hook or an "
            "assigned forward change what the layer does?"
        )


def _calls_and_function(model: nn.Module, inputs: Tensor) -> tuple[dict[str, Call], Tensor]:
    rules, calls, outputs = rules_of(model), {}, {}
    layers = {name: model.get_submodule(name) for name in rules}

    def keep(name: str, layer_inputs: Tensor, output: Tensor) -> None:
        calls[name] = Call(layers[name], rules[name], layer_inputs.detach())
        # As in `GGN`: an in-place activation would make the tensor stand for its own output.
        outputs[name] = torch.autograd.graph.get_gradient_edge(output)

    with forward_hooks(layers, keep), torch.enable_grad():
        logits = model(inputs)
        weights = torch.linspace(1, 2, logits.numel(), dtype=logits.dtype, device=logits.device)
        function = (logits * weights.view_as(logits)).sum()
    gradients = torch.autograd.grad(function, list(outputs.values()), retain_graph=True)
    for call, gradient in zip(calls.values(), gradients, strict=True):
        call.output_gradient = gradient
    return calls, function
