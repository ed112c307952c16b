"""G-CONV: regular group convolution (Cohen and Welling, 2016) in the image frame, and its curvature."""

import torch
from torch import Tensor

from ellarepro.curvature.rule import register
from ellarepro.layers.conv import KERNEL, ConvolutionRule, ConvRule, convolve
from ellarepro.layers.groups import REFLECTION, ROTATION, PointGroup, group_of
from ellarepro.layers.spatial import RELU_GAIN, Shape, SpatialLayer, normal_parameter, zero_bias


class GroupConv(SpatialLayer):
    """y(d, r)(p) = bias[d] + sum over (c, s, q) of x(c, s)(p + q) weight[d, c, r^-1 s, r^-1 q], circular.

    r and s are elements of the point group G, folded into the channels as `groups.py` says: `in_channels` counts C*|G|
    maps and `out_channels` D*|G|. A lifting layer takes plain images x(c), `in_channels` of them, and has no s. It
    commutes with every shift and every element of G. With an output map of half the size, all channels of a sample
    keep the same phase, which shifts, rotations and reflections permute. (Of an image that one of these leaves as it is
    while it exchanges the largest phases, any choice breaks the symmetry.)

    Parameters: `weight (D, C, |G|, 3, 3)`, lifting `(D, C, 3, 3)`; `bias (D)`.

    Args:
        group: the name of G, one of `GROUPS`.
        lifting: whether the input is plain images.

    Raises:
        ValueError: an unknown group, or channels that are no multiple of |G|.
    """

    sources: Tensor
    title, colour, marker = "GCONV", "#009E73", "s"
    equivariant_to = frozenset({"translation", "rotation"})
    """Rotation: by 90 degrees, where G has it and maps are square; reflection: of left and right, where G has it."""
    options = frozenset({"group", "lifting"})
    padding_mode = "circular"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_shape: Shape,
        out_shape: Shape,
        gain: float = RELU_GAIN,
        group: str = "c4",
        lifting: bool = False,
    ):
        super().__init__(in_channels, out_channels, in_shape, out_shape)
        self.group = group_of(group)
        self.lifting = lifting
        self.equivariant_to = claims_of(self.group, in_shape)
        channels = unfolded("in_channels", in_channels, 1 if lifting else self.group.order)
        features = unfolded("out_channels", out_channels, self.group.order)
        elements = () if lifting else (self.group.order,)
        std = gain * (in_channels * KERNEL**2) ** -0.5
        self.weight = normal_parameter(features, channels, *elements, KERNEL, KERNEL, std=std)
        self.bias = zero_bias(features)
        self.register_buffer("sources", _filter_sources(self.group, lifting, channels), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self._convolve(features, self.subsamples)

    def full_resolution(self, features: Tensor) -> Tensor:
        """The group convolution before subsampling, `(B, D*|G|, H, W)`."""
        return self._convolve(features, subsamples=False)

    def _convolve(self, features: Tensor, subsamples: bool) -> Tensor:
        bias = self.bias[:, None].expand(-1, self.group.order).flatten()
        return convolve(features, self.filters(), bias, self.padding_mode, subsamples)

    def unit_variance(self, features: Tensor) -> Tensor:
        return features.square().mean() * (self.in_channels * KERNEL**2)

    def filters(self) -> Tensor:
        """The filter of every output map: `(D*|G|, C*|G|, 3, 3)`, lifting `(D*|G|, C, 3, 3)`."""
        # A copy of the weights for each element makes the sources distinct: gradients are then added up in a fixed
        # order, and on a GPU the same run gives the same bits.
        copies = self.weight.flatten(1).repeat(1, self.group.order)
        return copies.index_select(1, self.sources).view(self.out_channels, self.in_channels, KERNEL, KERNEL)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group.name}, lifting={self.lifting}"


def claims_of(group: PointGroup, shape: Shape) -> frozenset[str]:
    """What a convolution over `group` commutes with on maps of this shape `(H, W)`."""
    claims = {"translation"}
    if ROTATION in group.elements and shape[0] == shape[1]:
        claims.add("rotation")
    if REFLECTION in group.elements:
        claims.add("reflection")
    return frozenset(claims)


def unfolded(name: str, folded: int, order: int) -> int:
    """How many channels there are of `order` maps each, where `name` says that there are `folded` maps.

    Raises:
        ValueError: no whole number of them.
    """
    if folded % order:
        raise ValueError(f"{name} must be a multiple of {order}, the order of the group; got {folded}")
    return folded // order


def _filter_sources(group: PointGroup, lifting: bool, channels: int) -> Tensor:
    """`(|G| I)`, I input features: for r and each of (c, s, q), where (c, r^-1 s, r^-1 q) lies in copy r of the weight.

    Copy r begins at r I; modulo I, part r permutes the input features by r^-1.
    """
    turned = []
    for inverse in group.inverses:
        pixels = group.act_on_kernel(inverse, KERNEL)
        elements = [0] if lifting else group.products[inverse]
        turned.append([element * KERNEL**2 + pixel for element in elements for pixel in pixels])
    one_channel = torch.tensor(turned)
    width = one_channel.shape[1]
    within_copy = torch.arange(channels)[:, None] * width + one_channel[:, None]
    return (within_copy + torch.arange(group.order)[:, None, None] * (channels * width)).flatten()


@register(GroupConv)
class GroupConvRule(ConvolutionRule):
    """KFAC with the weight shared by positions and group elements: `(D, D)` kron `(I, I)`, I = 9 C |G| (lifting: 9 C).

    The output of element r at position t is the weight times the patch at t with its entries permuted by r, so both
    positions and elements are shared, T*|G| of them: rows stand element by element.
    """

    def __init__(self, layer: GroupConv):
        super().__init__(layer)
        self.plain = ConvRule(layer)

    def input_rows(self, inputs: Tensor) -> Tensor:
        return self.permuted(self.plain.input_rows(inputs))

    def matched_input_rows(self, inputs: Tensor) -> Tensor:
        return self.permuted(self.plain.matched_input_rows(inputs))

    def input_factor(self, inputs: Tensor) -> Tensor:
        factor = self.plain.patch_factor(inputs)[0]
        permutations = self.permutations(factor.shape[0])
        return sum((factor[order][:, order] for order in permutations), torch.zeros(()))[None] / len(permutations)

    def output_rows(self, gradients: Tensor) -> Tensor:
        return super().output_rows(self.unfolded(gradients))

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return super().bias_rows(self.unfolded(gradients))

    def permuted(self, patches: Tensor) -> Tensor:
        """The patches `(1, N, T, I)` as each element of the group sees them, `(1, N, |G| T, I)`."""
        return torch.cat([patches[..., order] for order in self.permutations(patches.shape[-1])], dim=2)

    def permutations(self, width: int) -> list[Tensor]:
        """For each element r, the order in which it takes the I = `width` entries of a patch."""
        # The patch is to be met by the weight, not the weight by the patch: the inverse of the filters' permutation.
        by_inverse = self.layer.sources.view(-1, width) % width
        return [by_inverse[inverse] for inverse in self.layer.group.inverses]

    def unfolded(self, gradients: Tensor) -> Tensor:
        """`(N, D*|G|, H', W')` as `(N, D, |G|, H', W')`."""
        return gradients.unflatten(1, (-1, self.layer.group.order))
