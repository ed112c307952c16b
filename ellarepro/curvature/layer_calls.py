"""Each leaf layer as a network calls it, beside the gradient of one function of the network's outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellarepro.curvature.hooks import forward_hooks, generic_sum
from ellarepro.curvature.rule import CurvatureRule, rules_of, with_positions


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

    def gradient_rows(self, parameter: str, samples: slice = slice(None)) -> Tensor:
        """`(N, P)`: the gradient of each of the `samples` with respect to `parameter`, as the rule's rows make it."""
        rule, inputs, gradients = self.rule, self.inputs[samples], self.output_gradient[samples]
        if parameter in rule.pointwise:
            return rule.pointwise_rows(gradients * rule.tangent(inputs, parameter), parameter)
        return rule.bias_rows(gradients) if parameter == "bias" else rule.weight_gradients(inputs, gradients)


def calls_of(model: nn.Module, inputs: Tensor) -> dict[str, Call]:
    """The calls of all leaf layers with a rule; `output_gradient` is that of an arbitrary function of the logits."""
    return calls_and_function(model, inputs)[0]


def calls_and_function(model: nn.Module, inputs: Tensor) -> tuple[dict[str, Call], Tensor]:
    """As `calls_of`, and the function, whose graph is kept."""
    rules, calls, outputs = rules_of(model), {}, {}
    layers = {name: model.get_submodule(name) for name in rules}

    def keep(name: str, layer_inputs: Tensor, output: Tensor) -> None:
        calls[name] = Call(layers[name], rules[name], layer_inputs.detach())
        # As in `GGN`: an in-place activation would make the tensor stand for its own output.
        outputs[name] = torch.autograd.graph.get_gradient_edge(output)

    with forward_hooks(layers, keep), torch.enable_grad():
        function = generic_sum(model(inputs))
    gradients = torch.autograd.grad(function, list(outputs.values()), retain_graph=True)
    for call, gradient in zip(calls.values(), gradients, strict=True):
        call.output_gradient = gradient
    return calls, function
