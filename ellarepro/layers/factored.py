"""F-FC: the factored fully-connected layer (eq. 5), as two leaf modules, and the curvature of both (Section 5.1)."""

from math import prod

import torch
from torch import Tensor, nn

from ellarepro.curvature.rule import CurvatureRule, register
from ellarepro.layers.spatial import RELU_GAIN, Shape, SpatialLayer, normal_parameter, zero_bias
from ellarepro.layers.tensors import BIAS, WEIGHT


class SpatialSum(nn.Module):
    """Second factor of eq. 5: h[b, d, c] = sum over x of theta2[d, c, x] x[b, c, x].

    Parameter: `weight (D, C, H, W)`. Maps `(B, C, H, W)` to `(B, D, C)`.
    """

    def __init__(self, in_channels: int, out_channels: int, in_shape: Shape):
        super().__init__()
        self.weight = normal_parameter(out_channels, in_channels, *in_shape, std=prod(in_shape) ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        return spatial_sum(features, self.weight)


class ChannelSum(nn.Module):
    """First factor of eq. 5: y[b, d, y] = sum over c of theta1[d, c, y] h[b, d, c], plus a bias for each d.

    Parameters: `weight (D, C, H', W')`, `bias (D)`. Maps `(B, D, C)` to `(B, D, H', W')`.
    """

    def __init__(self, in_channels: int, out_channels: int, out_shape: Shape, gain: float):
        super().__init__()
        self.weight = normal_parameter(out_channels, in_channels, *out_shape, std=gain * in_channels**-0.5)
        self.bias = zero_bias(out_channels)

    def forward(self, hidden: Tensor) -> Tensor:
        return channel_sum(hidden, self.weight, self.bias)


class FactoredDense(SpatialLayer):
    """theta = theta1 theta2 (eq. 5): 2 D C X parameters instead of D C X^2. Commutes with no transformation."""

    title, colour, marker = "F-FC", "#E69F00", "^"
    parts = {"theta2.weight": ("theta2", WEIGHT), "theta1.weight": ("theta1", WEIGHT), "theta1.bias": ("bias", BIAS)}

    def __init__(self, in_channels: int, out_channels: int, in_shape: Shape, out_shape: Shape, gain: float = RELU_GAIN):
        super().__init__(in_channels, out_channels, in_shape, out_shape)
        self.theta2 = SpatialSum(in_channels, out_channels, in_shape)
        self.theta1 = ChannelSum(in_channels, out_channels, out_shape, gain)

    def forward(self, features: Tensor) -> Tensor:
        return self.theta1(self.theta2(features))

    def unit_variance(self, features: Tensor) -> Tensor:
        return features.square().mean() * (self.in_channels * prod(self.in_shape))


def spatial_sum(features: Tensor, theta2: Tensor) -> Tensor:
    """h[b, d, c] = sum over x of theta2[d, c, x] x[b, c, x] for `(B, C, H, W)` and `(D, C, H, W)`: `(B, D, C)`."""
    per_channel = torch.bmm(theta2.flatten(2).transpose(0, 1), features.flatten(2).permute(1, 2, 0))
    return _SwappedCopy.apply(per_channel).permute(2, 0, 1)


def channel_sum(hidden: Tensor, theta1: Tensor, bias: Tensor) -> Tensor:
    """y[b, d, y] = sum over c of theta1[d, c, y] h[b, d, c] + bias[d] for `(B, D, C)`: `(B, D, H', W')`."""
    per_output = torch.baddbmm(bias[:, None, None], theta1.flatten(2).transpose(1, 2), hidden.permute(1, 2, 0))
    return per_output.permute(2, 0, 1).unflatten(2, theta1.shape[2:])


class _SwappedCopy(torch.autograd.Function):
    """Swap the first two of three axes in memory, in the forward and in the backward pass.

    The products are batched over c, then over d, and samples come last in memory: between the two, whole runs of
    samples are copied. A plain transposition would leave the second product matrices without a unit stride, each of
    which is copied on its own, at about three times the time.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SwappedCopy.apply(gradient)

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return _SwappedCopy.apply(tangent)


@register(SpatialSum)
class SpatialSumRule(CurvatureRule):
    """theta2 (Section 5.1): `(D, D)` kron C blocks `(X, X)`; the sum over c makes the factors shared, hence / C."""

    group_axis = 1

    def input_rows(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(2).transpose(0, 1)

    def output_rows(self, gradients: Tensor) -> Tensor:
        return gradients.permute(2, 0, 1)


@register(ChannelSum)
class ChannelSumRule(CurvatureRule):
    """theta1 (Section 5.1): D blocks `(C, C)` kron `(Y, Y)`; the input side comes first in the parameter."""

    group_axis = 0
    input_first = True

    def input_rows(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(0, 1)

    def output_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(2).transpose(0, 1)

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(2).sum(2)
