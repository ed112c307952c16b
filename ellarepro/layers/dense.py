"""FC: the fully-connected layer between feature maps (eq. 1), and its curvature."""

from math import prod

import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.rule import CurvatureRule, register
from ellarepro.layers.spatial import RELU_GAIN, Shape, SpatialLayer, normal_parameter, zero_bias


class Dense(SpatialLayer):
    """y(d, y) = sum over (c, x) of weight[(d, y), (c, x)] x(c, x) + bias[(d, y)] (eq. 1).

    Parameters: `weight (D*Y, C*X)`, `bias (D*Y)`. Commutes with no transformation of the map.
    """

    title, colour, marker = "FC", "#D55E00", "v"

    def __init__(self, in_channels: int, out_channels: int, in_shape: Shape, out_shape: Shape, gain: float = RELU_GAIN):
        super().__init__(in_channels, out_channels, in_shape, out_shape)
        in_features = in_channels * prod(in_shape)
        out_features = out_channels * prod(out_shape)
        self.weight = normal_parameter(out_features, in_features, std=gain * in_features**-0.5)
        self.bias = zero_bias(out_features)

    def forward(self, features: Tensor) -> Tensor:
        flat = F.linear(features.flatten(1), self.weight, self.bias)
        return flat.view(-1, self.out_channels, *self.out_shape)

    def unit_variance(self, features: Tensor) -> Tensor:
        return features.square().mean() * (self.in_channels * prod(self.in_shape))


@register(Dense)
class DenseRule(CurvatureRule):
    """KFAC of a matrix-vector product applied once to a sample (Martens and Grosse, 2015): `(D*Y)` kron `(C*X)`."""

    bias_is_output = True

    def input_rows(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[None]

    def output_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(1)[None]

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(1)
