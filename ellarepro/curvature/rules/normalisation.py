"""The curvature of the affine parameters of normalisation layers: exact, as for all biases and scales.

y = weight x^ + bias for the normalised input x^: every entry of the output depends on one entry of each, so the
gradient of a sample is at hand without a product of factors.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ellarepro.curvature.rule import CurvatureRule, register


class ScaleRule(CurvatureRule):
    """Scale and bias of each channel, the second axis; subclasses say how their layer normalises."""

    pointwise = ("weight",)

    def normalised(self, inputs: Tensor) -> Tensor:
        """x^, of the input's shape."""
        raise NotImplementedError

    def tangent(self, inputs: Tensor, name: str) -> Tensor:
        return self.normalised(inputs)

    def pointwise_rows(self, products: Tensor, name: str) -> Tensor:
        return self.bias_rows(products)

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(*gradients.shape[:2], -1).sum(2)


@register(nn.BatchNorm1d)
@register(nn.BatchNorm2d)
class BatchNormRule(ScaleRule):
    """Batch normalisation with its running statistics, as in evaluation mode."""

    def normalised(self, inputs: Tensor) -> Tensor:
        return F.batch_norm(inputs, self.layer.running_mean, self.layer.running_var, eps=self.layer.eps)


@register(nn.GroupNorm)
class GroupNormRule(ScaleRule):
    """Group normalisation."""

    def normalised(self, inputs: Tensor) -> Tensor:
        return F.group_norm(inputs, self.layer.num_groups, eps=self.layer.eps)


@register(nn.LayerNorm)
class LayerNormRule(ScaleRule):
    """Layer normalisation over the last axes: scale and bias have their shape."""

    def normalised(self, inputs: Tensor) -> Tensor:
        return F.layer_norm(inputs, self.layer.normalized_shape, eps=self.layer.eps)

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(len(gradients), -1, self.layer.weight.numel()).sum(1)
