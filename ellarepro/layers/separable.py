"""Separable group convolutions (Knigge et al., 2022): GCONV whose weight w[d, c, u, v] is a product of factors.

u is an element of the group and v a pixel; the factors k, h, g and m, and their curvature, are those of
`group_factors.py`. Scale can move between the factors of a layer without changing its map, as between those of F-FC.
"""

from math import prod
from typing import cast

from torch import Tensor

from ellarepro.layers.gconv import claims_of, unfolded
from ellarepro.layers.group_factors import ChannelMixing, Channels, GroupFactor, GroupMixing, TurnedFilters
from ellarepro.layers.groups import GROUPS, PointGroup, group_of
from ellarepro.layers.spatial import RELU_GAIN, Shape, SpatialLayer
from ellarepro.layers.tensors import BIAS, WEIGHT


class SeparableGroupConv(SpatialLayer):
    """A group convolution whose weight is a product, made of the factors that a subclass says, the first one first.

    Arguments, channels and what it commutes with are those of `GroupConv`.
    """

    options = frozenset({"group", "lifting"})
    equivariant_to = frozenset({"translation", "rotation"})

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
        order = self.group.order
        inputs = unfolded("in_channels", in_channels, 1 if lifting else order)
        outputs = unfolded("out_channels", out_channels, order)
        factors = self.factors((inputs, outputs), self.group, lifting)
        for name, factor in factors.items():
            self.add_module(name, factor)
        factor.become_last(gain, self.subsamples)

    @staticmethod
    def factors(channels: Channels, group: PointGroup, lifting: bool) -> dict[str, GroupFactor]:
        """The factors from C to D channels, by name, in the order in which they are applied."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        for factor in self.children():
            features = factor(features)
        return features

    def unit_variance(self, features: Tensor) -> Tensor:
        factors = cast(list[GroupFactor], list(self.children()))
        return features.square().mean() * prod(factor.weight[0].numel() for factor in factors)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group.name}, lifting={self.lifting}"


def _parts(names: str) -> dict[str, tuple[str, str]]:
    return {f"{name}.weight": (name, WEIGHT) for name in names} | {f"{names[-1]}.bias": ("bias", BIAS)}


class PointwiseGroupConv(SeparableGroupConv):
    """w[d, c, u, v] = k[d, c, v] where u is the identity, else 0: elements meet in the head alone. 9 D C weights."""

    title, colour, marker = "pointwise GCONV", "#999933", "<"
    parts = _parts("k")

    @staticmethod
    def factors(channels: Channels, group: PointGroup, lifting: bool) -> dict[str, GroupFactor]:
        return {"k": TurnedFilters(channels, group, lifting)}


class SpaceGroupConv(SeparableGroupConv):
    """w[d, c, u, v] = h[d, c, u] k[c, u^-1 v]: first space, then the group. |G| D C + 9 C weights.

    Lifting, the filters make group features of an image: w[d, c, v] = sum over u of h[d, c, u] k[c, u^-1 v].
    """

    title, colour, marker = "SGCONV", "#44AA99", "P"
    parts = _parts("kh")

    @staticmethod
    def factors(channels: Channels, group: PointGroup, lifting: bool) -> dict[str, GroupFactor]:
        inputs = channels[0], channels[0]
        return {"k": TurnedFilters(inputs, group, lifting, depthwise=True), "h": GroupMixing(channels, group)}


class GroupSpaceConv(SeparableGroupConv):
    """w[d, c, u, v] = h[d, c, u] k[d, v]: first the group, then space. |G| D C + 9 D weights.

    Lifting, an image has no elements to mix: w[d, c, v] = h[d, c] k[d, v].
    """

    title, colour, marker = "GSCONV", "#117733", "X"
    parts = _parts("hk")

    @staticmethod
    def factors(channels: Channels, group: PointGroup, lifting: bool) -> dict[str, GroupFactor]:
        outputs = channels[1], channels[1]
        mixing = GroupMixing(channels, GROUPS["c1"] if lifting else group)
        return {"h": mixing, "k": TurnedFilters(outputs, group, lifting, depthwise=True)}


class DepthwiseGroupConv(SeparableGroupConv):
    """w[d, c, u, v] = m[d, c] g[c, u] k[c, u^-1 v]: space, the group, channels. D C + |G| C + 9 C weights.

    Lifting, as `SpaceGroupConv`.
    """

    title, colour, marker = "DGCONV", "#882255", "d"
    parts = _parts("kgm")

    @staticmethod
    def factors(channels: Channels, group: PointGroup, lifting: bool) -> dict[str, GroupFactor]:
        inputs = channels[0], channels[0]
        return {
            "k": TurnedFilters(inputs, group, lifting, depthwise=True),
            "g": GroupMixing(inputs, group, depthwise=True),
            "m": ChannelMixing(channels, group),
        }
