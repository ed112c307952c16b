"""CONV: the convolutional layer (eq. 3), circular so that it commutes with every shift, and its curvature."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.factors import second_moment
from ellarepro.curvature.patches import KERNEL, SMALL_MAP, circular_patch_moment, zero_padded_patch_moment
from ellarepro.curvature.rule import CurvatureRule, register
from ellarepro.layers.spatial import RELU_GAIN, Shape, SpatialLayer, normal_parameter, zero_bias
from ellarepro.layers.subsample import largest_phase, take_phase, window_at


class Conv(SpatialLayer):
    """y(d, y) = sum over (c, x) of x(c, x) weight[d, c, x - y], 3 x 3 filters, plus a bias for each d (eq. 3).

    With an output map of half the size, the full-resolution convolution is followed by adaptive polyphase
    subsampling, so the layer commutes with translations at any size (with circular padding).

    Parameters: `weight (D, C, 3, 3)`, `bias (D)`.

    Args:
        padding_mode: `circular`, or `zeros`, which commutes with no shift and is here for comparison.
    """

    title, colour = "CONV", "#0072B2"
    equivariant_to = frozenset({"translation"})

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_shape: Shape,
        out_shape: Shape,
        gain: float = RELU_GAIN,
        padding_mode: str = "circular",
    ):
        super().__init__(in_channels, out_channels, in_shape, out_shape)
        if padding_mode not in ("circular", "zeros"):
            raise ValueError(f"padding_mode must be 'circular' or 'zeros', got {padding_mode!r}")
        self.padding_mode = padding_mode
        if padding_mode != "circular":
            self.equivariant_to = frozenset()
        std = gain * (in_channels * KERNEL**2) ** -0.5
        self.weight = normal_parameter(out_channels, in_channels, KERNEL, KERNEL, std=std)
        self.bias = zero_bias(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return convolve(features, self.weight, self.bias, self.padding_mode, self.subsamples)

    def full_resolution(self, features: Tensor) -> Tensor:
        """The convolution before subsampling, `(B, D, H, W)`."""
        return convolve(features, self.weight, self.bias, self.padding_mode)

    def unit_variance(self, features: Tensor) -> Tensor:
        ones, zero = torch.ones_like(self.weight[:1]), torch.zeros_like(self.bias[:1])
        return convolve(features.square(), ones, zero, self.padding_mode).mean()


def convolve(
    features: Tensor,
    filters: Tensor,
    bias: Tensor,
    padding_mode: str = "circular",
    subsamples: bool = False,
    groups: int = 1,
) -> Tensor:
    """3 x 3 convolution of `features (B, C, H, W)` with `filters (D, C/groups, 3, 3)` plus `bias (D)`: `(B, D, H, W)`.

    With `subsamples` each sample's phase with the largest norm, `(B, D, H/2, W/2)`. Channels come last in memory: few
    to a layer, they leave the vendor's kernels for the other order half empty.
    """
    features, filters = _channels_last(features), _channels_last(filters)
    if not subsamples:
        return F.conv2d(_padded(features, padding_mode), filters, bias, groups=groups)
    whole = F.conv2d(_padded(features.detach(), padding_mode), filters.detach(), bias.detach(), groups=groups)
    phase = largest_phase(whole)
    around = window_at(features, phase, wraps=padding_mode == "circular")
    # Under autocast `whole` has another type than what made it; not every kernel of the backward pass takes both.
    inputs = (tensor.to(whole.dtype) for tensor in (around, filters, bias))
    return _KeptPhase.apply(*inputs, whole, phase, groups)


class _KeptPhase(torch.autograd.Function):
    """`conv2d(around, filters, bias, stride=2)` in `groups`: its value is the `phase` of `whole`, not computed again.

    Three quarters of a whole map's gradients would be zeros; seen from where its kept phase begins, each sample's
    convolution has stride 2, and a backward pass a quarter of the arithmetic.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(around: Tensor, filters: Tensor, bias: Tensor, whole: Tensor, phase: Tensor, groups: int) -> Tensor:
        return take_phase(whole, phase)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.groups = inputs[5]
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        around, filters = ctx.saved_tensors
        wanted, stride, none = list(ctx.needs_input_grad[:3]), [2, 2], [0, 0]
        gradients = torch.ops.aten.convolution_backward(
            gradient, around, filters, [len(filters)], stride, none, [1, 1], False, none, ctx.groups, wanted
        )
        return *gradients, None, None, None

    @staticmethod
    def jvp(ctx, around: Tensor | None, filters: Tensor | None, bias: Tensor | None, *_) -> Tensor:
        kept_around, kept_filters = ctx.saved_tensors
        moved = torch.zeros_like(kept_filters) if filters is None else filters
        tangent = F.conv2d(kept_around, moved, bias, stride=2, groups=ctx.groups)
        if around is None:
            return tangent
        return tangent + F.conv2d(around, kept_filters, stride=2, groups=ctx.groups)


def _channels_last(tensor: Tensor) -> Tensor:
    """`tensor (N, C, H, W)` with the channels of a pixel side by side in memory."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _padded(features: Tensor, padding_mode: str) -> Tensor:
    return pad_circular(features) if padding_mode == "circular" else F.pad(features, (1, 1, 1, 1))


def pad_circular(features: Tensor) -> Tensor:
    """Wrap `(B, C, H, W)` by one pixel: `(B, C, H+2, W+2)`. On a CPU, `F.pad` takes five times as long."""
    wide = torch.cat([features[..., -1:], features, features[..., :1]], dim=3)
    return torch.cat([wide[..., -1:, :], wide, wide[..., :1, :]], dim=2)


class ConvolutionRule(CurvatureRule):
    """What all convolutions share: positions of the input map, and of the output map."""

    def kept_rows(self, inputs: Tensor) -> None:
        return None

    def output_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(2).transpose(1, 2)[None]

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return gradients.flatten(2).sum(2)


@register(Conv)
class ConvRule(ConvolutionRule):
    """KFAC of a convolution (Grosse and Martens, 2016): `(D, D)` kron `(9C, 9C)`, positions shared.

    The input factor sees every position of the full-resolution map, padded as the layer pads. Positions dropped by
    the subsampling have no gradient, so the output factor sees only those that are kept.
    """

    def input_rows(self, inputs: Tensor) -> Tensor:
        return self.patches(inputs)

    def input_factor(self, inputs: Tensor) -> Tensor:
        return self.patch_factor(inputs)

    def patches(self, inputs: Tensor) -> Tensor:
        """The 3 x 3 patch around every position, `(1, N, T, 9C)`."""
        return F.unfold(_padded(inputs, self.layer.padding_mode), KERNEL).transpose(1, 2)[None]

    def patch_factor(self, inputs: Tensor) -> Tensor:
        """Sum over samples, mean over positions, of p p^T for all patches p: `(1, 9C, 9C)`."""
        if inputs[0, 0].numel() < SMALL_MAP:
            return second_moment(self.patches(inputs)) / inputs[0, 0].numel()
        moment = circular_patch_moment if self.layer.padding_mode == "circular" else zero_padded_patch_moment
        return moment(inputs)

    def matched_input_rows(self, inputs: Tensor) -> Tensor:
        rows = self.input_rows(inputs)
        if not self.layer.subsamples:
            return rows
        height, width = inputs.shape[2:]
        patches = rows[0].transpose(1, 2).unflatten(2, (height, width))
        kept = take_phase(patches, largest_phase(self.layer.full_resolution(inputs)))
        return kept.flatten(2).transpose(1, 2)[None]
