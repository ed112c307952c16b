"""The curvature of `nn.Conv2d` and `nn.Conv1d`: any kernel, stride, dilation, padding, padding mode and groups."""

import torch.nn.functional as F
from torch import Tensor, nn

from ellarepro.curvature.patches import SMALL_MAP, circular_patch_moment, zero_padded_patch_moment
from ellarepro.curvature.rule import CurvatureRule, register

_MOMENTS = {"circular": circular_patch_moment, "zeros": zero_padded_patch_moment}


@register(nn.Conv2d)
class Conv2dRule(CurvatureRule):
    """KFAC of a convolution (Grosse and Martens, 2016): in each of G groups `(D/G, D/G)` kron `(C/G k, C/G k)`.

    Patches are padded as the layer pads; positions are shared. Groups of channels are groups of the rule: a depthwise
    convolution has one for each channel.
    """

    def __init__(self, layer: nn.Conv2d | nn.Conv1d):
        super().__init__(layer)
        if layer.groups > 1:
            self.group_axis = 0

    def input_rows(self, inputs: Tensor) -> Tensor:
        layer = self.layer
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        # The layer itself pads by this list, for every padding mode but zeros.
        padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        return self._grouped(self.unfold(padded))

    def kept_rows(self, inputs: Tensor) -> None:
        return None

    def unfold(self, padded: Tensor) -> Tensor:
        """Patches `(N, C k, T)` of the padded map, k pixels of a channel after another."""
        layer = self.layer
        return F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)

    def input_factor(self, inputs: Tensor) -> Tensor:
        layer = self.layer
        moment = _MOMENTS.get(layer.padding_mode)
        if moment and _is_plain(layer) and inputs[0, 0].numel() >= SMALL_MAP:
            return moment(inputs)
        return super().input_factor(inputs)

    def output_rows(self, gradients: Tensor) -> Tensor:
        return self._grouped(gradients.flatten(2))

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(2).sum(2)

    def _grouped(self, features: Tensor) -> Tensor:
        """`(G, N, T, F)` from `(N, G F, T)`."""
        return features.unflatten(1, (self.layer.groups, -1)).permute(1, 0, 3, 2)


@register(nn.Conv1d)
class Conv1dRule(Conv2dRule):
    """As `Conv2dRule`, on one axis: that of a sequence, of which padding is no part."""

    def unfold(self, padded: Tensor) -> Tensor:
        layer = self.layer
        options = {"dilation": (1, *layer.dilation), "stride": (1, *layer.stride)}
        return F.unfold(padded.unsqueeze(2), (1, *layer.kernel_size), **options)

    def input_factor(self, inputs: Tensor) -> Tensor:
        return CurvatureRule.input_factor(self, inputs)

    def counts_live_positions(self, inputs: Tensor) -> bool:
        return True


def _is_plain(layer: nn.Conv2d) -> bool:
    """Whether the layer is a 3 x 3 convolution from a map to one of its size, for which no patches are needed."""
    same = layer.padding in ((1, 1), "same")
    return same and layer.kernel_size == (3, 3) and layer.stride == layer.dilation == (1, 1) and layer.groups == 1
