"""What the curvature needs to know of a layer: one convention, one registry.

A rule brings the inputs of a leaf layer, and the gradients with respect to its outputs, to rows of one form:

    input rows     (G, N, T, I)     groups, samples, shared positions, input features
    output rows    (G, N, S, O)     groups, samples, positions, output features

so that the weights' Jacobian of sample n is, group by group, the sum over positions of (input row) (output row)^T.
Groups are blocks of the input factor that never meet (the channels of `theta2`, say); a plain layer has G = 1.
Factors, scaling and structure are then the same for every layer and live in `factors.py` and `structures.py`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ellarepro.curvature.factors import second_moment

COPIES = "copies"
"""Attribute of a network that averages its outputs over so many copies of each input."""
_RULES: dict[type[nn.Module], type["CurvatureRule"]] = {}


class UnclaimedParameterError(TypeError):
    """A trainable parameter for which no curvature rule is registered: its curvature would silently be zero."""


class CurvatureRule:
    """Rows of one leaf layer. Subclasses say how its tensors are laid out.

    Attributes:
        group_axis: where the groups stand in the weight seen as three axes: 0 for `(G, first, second)`, 1 for
            `(first, G, second)`, None without groups.
        input_first: whether the input features come before the output features in the weight.
        bias_is_output: whether, where samples have one position, the bias's gradient is the row of the output, so that
            the output factor is its exact block.
        pointwise: names of parameters of which every entry of the output depends on one entry at most: scales and
            scalars. Their blocks are exact, by `tangent`.
    """

    group_axis: int | None = None
    input_first: bool = False
    bias_is_output: bool = False
    pointwise: tuple[str, ...] = ()

    layer: Any  # of the type that the rule is registered for
    copies: int = 1
    """Inputs of the layer a sample, in a row."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def input_rows(self, inputs: Tensor) -> Tensor:
        """`(G, N, T, I)` or, with one position a sample, `(G, N, I)`: the rows whose products make the input factor."""
        raise NotImplementedError

    def output_rows(self, gradients: Tensor) -> Tensor:
        """`(G, N, S, O)` or `(G, N, O)`: gradients of one function of the logits with respect to the layer's output."""
        raise NotImplementedError

    def bias_rows(self, gradients: Tensor) -> Tensor:
        """`(N, P)`: the exact gradient of each sample with respect to the bias."""
        raise NotImplementedError

    def tangent(self, inputs: Tensor, name: str) -> Tensor:
        """The derivative of each entry of the layer's output in its entry of the pointwise parameter `name`.

        It has the output's shape, or one that broadcasts to it.
        """
        raise NotImplementedError

    def pointwise_rows(self, products: Tensor, name: str) -> Tensor:
        """`(N, P)`: the exact gradient of each sample with respect to the pointwise parameter `name`.

        Args:
            products: gradients with respect to the output times `tangent`. Those of one entry are to be summed; all of
                them, for the parameters of one entry that this stands for unless a rule says otherwise.
        """
        return products.flatten(1).sum(1, keepdim=True)

    def matched_input_rows(self, inputs: Tensor) -> Tensor:
        """Input rows at just the positions of `output_rows` (T = S), for structures that pair them."""
        return self.input_rows(inputs)

    def weight_gradients(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """`(N, P)`: the gradient of each sample with respect to the weight, as the rows make it."""
        first, second = with_positions(self.matched_input_rows(inputs)), with_positions(self.output_rows(gradients))
        if not self.input_first:
            first, second = second, first
        by_group = (first.mT @ second).transpose(0, 1)
        return (by_group.transpose(1, 2) if self.group_axis == 1 else by_group).flatten(1)

    def squared_weight_gradients(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """From gradients with respect to the output to `(P,)`: the sum over samples of `weight_gradients`, squared."""
        rows_in = with_positions(self.matched_input_rows(inputs))

        def summed(gradients: Tensor) -> Tensor:
            rows = with_positions(self.output_rows(gradients))
            if rows.shape[2] == 1:
                squares = rows[:, :, 0].square().transpose(1, 2) @ rows_in[:, :, 0].square()
            else:
                squares = (rows.transpose(2, 3) @ rows_in).square().sum(1)
            if self.input_first:
                squares = squares.transpose(1, 2)
            return (squares.transpose(0, 1) if self.group_axis == 1 else squares).reshape(-1)

        return summed

    def kept_rows(self, inputs: Tensor) -> Tensor | None:
        """Input rows `(G, N, I)` of one position a sample, which are kept in place of the factor while they are few.

        None where positions are shared, and `input_factor` is the way to the factor.
        """
        rows = self.input_rows(inputs)
        return rows if rows.ndim == 3 else None

    def input_factor(self, inputs: Tensor) -> Tensor:
        """`(G, I, I)`: sum over samples and mean over shared positions of a a^T."""
        rows = self.input_rows(inputs)
        positions = rows.shape[2] if rows.ndim == 4 else 1
        return second_moment(rows) / positions

    def counts_live_positions(self, inputs: Tensor) -> bool:
        """Whether positions without a gradient are left out of the mean over positions: padding, in sequences.

        Images of a data set have one size, and the mean goes over all of their positions.
        """
        return False

    def weighted_input_factor(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """`(G, I, I)`: sum over samples and positions of a a^T times `weights (N, S)`, at the output's positions."""
        rows = with_positions(self.matched_input_rows(inputs))
        return second_moment(rows * weights.sqrt().unsqueeze(2))


class ReducedRule(CurvatureRule):
    """`rule` in a network that averages its outputs over `copies` of each input, those of one sample in a row.

    The Jacobian of the average is a sum over copies of products. The factors take the mean of the input rows and the
    sum of the output rows over a sample's copies ("reduce" of Immer et al., 2022). Biases and pointwise parameters
    stay exact, as their gradients are summed.
    """

    def __init__(self, rule: CurvatureRule, copies: int):
        super().__init__(rule.layer)
        self.rule, self.copies = rule, copies
        self.group_axis, self.bias_is_output = rule.group_axis, rule.bias_is_output
        self.input_first, self.pointwise = rule.input_first, rule.pointwise

    def _by_sample(self, rows: Tensor) -> Tensor:
        """`(G, N S, ...)` to `(G, N, S, ...)`."""
        return rows.unflatten(1, (-1, self.copies))

    def input_rows(self, inputs: Tensor) -> Tensor:
        return self._by_sample(self.rule.input_rows(inputs)).mean(2)

    def matched_input_rows(self, inputs: Tensor) -> Tensor:
        return self._by_sample(with_positions(self.rule.matched_input_rows(inputs))).mean(2)

    def output_rows(self, gradients: Tensor) -> Tensor:
        return self._by_sample(self.rule.output_rows(gradients)).sum(2)

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return self.rule.bias_rows(gradients).unflatten(0, (-1, self.copies)).sum(1)

    def tangent(self, inputs: Tensor, name: str) -> Tensor:
        return self.rule.tangent(inputs, name)

    def pointwise_rows(self, products: Tensor, name: str) -> Tensor:
        return self.rule.pointwise_rows(products, name).unflatten(0, (-1, self.copies)).sum(1)


def register(layer_type: type[nn.Module]) -> Callable[[type[CurvatureRule]], type[CurvatureRule]]:
    """Class decorator: the rule serves `layer_type` and its subclasses."""

    def decorate(rule_type: type[CurvatureRule]) -> type[CurvatureRule]:
        _RULES[layer_type] = rule_type
        return rule_type

    return decorate


def rule_for(layer: nn.Module) -> CurvatureRule | None:
    """The rule of the layer's class or of its nearest base class; None where there is none.

    A class with a forward pass of its own is another layer than its base, whose rule then says nothing of it.
    """
    for layer_type in type(layer).__mro__:
        if layer_type in _RULES:
            return _RULES[layer_type](layer)
        if "forward" in vars(layer_type):
            return None
    return None


def rules_of(model: nn.Module) -> dict[str, CurvatureRule]:
    """Rules of all leaf layers with trainable parameters, by module name, in the order of `model.parameters()`.

    Raises:
        UnclaimedParameterError: a trainable parameter that no rule claims, or one that two layers share.
    """
    rules: dict[str, CurvatureRule] = {}
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full_name = f"{name}.{parameter_name}" if name else parameter_name
            if parameter in owners:
                raise UnclaimedParameterError(
                    f"{full_name} is the same tensor as {owners[parameter]}: no rule covers tied weights; give each "
                    "layer its own, or freeze this one"
                )
            owners[parameter] = full_name
            rule = rules.get(name) or rule_for(module)
            if rule is None or parameter_name not in ("weight", "bias", *rule.pointwise):
                raise UnclaimedParameterError(
                    f"no curvature rule claims the trainable parameter {full_name} of {type(module).__name__}; "
                    f"rules exist for the weight and bias of {sorted(t.__name__ for t in _RULES)}, not for subclasses "
                    "with another forward: register one with ellarepro.curvature.rule.register, or freeze the parameter"
                )
            rules[name] = rule
    copies = getattr(model, COPIES, 1)
    return {name: ReducedRule(rule, copies) for name, rule in rules.items()} if copies > 1 else rules


def with_positions(rows: Tensor) -> Tensor:
    """Rows with an axis of positions, of one entry where they had none."""
    return rows if rows.ndim == 4 else rows.unsqueeze(2)
