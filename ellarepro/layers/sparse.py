"""S-CONV (eq. 6), S-FC (eq. 7): filters and factors by their values at anchors, and their curvature (Section 5.2)."""

from math import prod

import torch.nn.functional as F
from torch import Tensor

from ellarepro.curvature.rule import register
from ellarepro.layers.anchors import Anchored, AnchoredRule
from ellarepro.layers.conv import KERNEL, ConvRule, convolve, pad_circular
from ellarepro.layers.factored import ChannelSumRule, SpatialSumRule, channel_sum, spatial_sum
from ellarepro.layers.spatial import RELU_GAIN, Shape, SpatialLayer
from ellarepro.layers.tensors import BIAS, LENGTHSCALE, WEIGHT
from ellarepro.settings.parts import AnchorSettings


class SparseSpatialSum(Anchored):
    """As `SpatialSum` with theta2 = u2 Psi2: `(B, C, H, W)` to `(B, D, C)`."""

    def response(self, features: Tensor, basis: Tensor) -> Tensor:
        return spatial_sum(features, self.filters(basis))


class SparseChannelSum(Anchored):
    """As `ChannelSum` with theta1 = u1 Psi1: `(B, D, C)` to `(B, D, H', W')`."""

    sums_over_positions = False

    def response(self, hidden: Tensor, basis: Tensor) -> Tensor:
        return channel_sum(hidden, self.filters(basis), self.bias)


class SparseFilters(Anchored):
    """As `Conv` with filters u Psi: `(B, C, H, W)` to `(B, D, H', W')`, circular."""

    padding_mode = "circular"
    subsamples = False

    def response(self, features: Tensor, basis: Tensor) -> Tensor:
        return convolve(features, self.filters(basis), self.bias, self.padding_mode, self.subsamples)

    def full_resolution(self, features: Tensor) -> Tensor:
        """The convolution before subsampling, `(B, D, H, W)`."""
        return convolve(features, self.filters(self.basis()), self.bias, self.padding_mode)


class SparseLayer(SpatialLayer):
    """What S-FC and S-CONV are built from: `anchors`, the default settings if not given, beside a layer's arguments."""

    options = frozenset({"anchors"})
    priors = ("u", "omega")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_shape: Shape,
        out_shape: Shape,
        gain: float = RELU_GAIN,
        anchors: AnchorSettings | None = None,
    ):
        super().__init__(in_channels, out_channels, in_shape, out_shape)
        self.add_leaves((out_channels, in_channels), gain, anchors or AnchorSettings())

    def add_leaves(self, channels: tuple[int, int], gain: float, anchors: AnchorSettings) -> None:
        """Make the anchored leaf modules, of `channels` D and C."""
        raise NotImplementedError


class SparseDense(SparseLayer):
    """S-FC (eq. 7): F-FC with both factors by their values at half of the positions. Commutes with no transformation.

    With a lengthscale that goes to infinity (omega -> 0) both factors become constant over positions: the output then
    is the same everywhere and depends on the mean of the input only.
    """

    title, colour, marker = "S-FC", "#CC79A7", "D"
    parts = {
        **{f"u{i}.weight": (f"u{i}", WEIGHT) for i in (1, 2)},
        **{f"u{i}.omega": (f"omega{i}", LENGTHSCALE) for i in (1, 2)},
        "u1.bias": ("bias", BIAS),
    }

    def add_leaves(self, channels: tuple[int, int], gain: float, anchors: AnchorSettings) -> None:
        in_shape, out_shape = self.in_shape, self.out_shape
        std2, std1 = prod(in_shape) ** -0.5, gain * self.in_channels**-0.5
        self.u2 = SparseSpatialSum(channels, in_shape, anchors.count(in_shape), anchors, std2, bias=False)
        self.u1 = SparseChannelSum(channels, out_shape, anchors.count(out_shape), anchors, std1, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.u1(self.u2(features))

    def unit_variance(self, features: Tensor) -> Tensor:
        seen = features.flatten(2) @ self.u2.basis().T
        return seen.square().sum((1, 2)).mean() * self.u1.basis().square().sum(0).mean()


class SparseConv(SparseLayer):
    """S-CONV (eq. 6): CONV with 3 x 3 filters by their values at four anchors. Commutes with translations, as CONV."""

    title, colour, marker = "S-CONV", "#56B4E9", "p"
    parts = {"u.weight": ("u", WEIGHT), "u.omega": ("omega", LENGTHSCALE), "u.bias": ("bias", BIAS)}
    equivariant_to = frozenset({"translation"})

    def add_leaves(self, channels: tuple[int, int], gain: float, anchors: AnchorSettings) -> None:
        std = gain * (self.in_channels * KERNEL**2) ** -0.5
        self.u = SparseFilters(channels, (KERNEL, KERNEL), anchors.per_filter, anchors, std, bias=True)
        self.u.subsamples = self.subsamples

    def forward(self, features: Tensor) -> Tensor:
        return self.u(features)

    def unit_variance(self, features: Tensor) -> Tensor:
        patches = F.unfold(pad_circular(features), KERNEL).unflatten(1, (-1, KERNEL**2))
        return (self.u.basis() @ patches).square().sum((1, 2)).mean()


@register(SparseSpatialSum)
class SparseSpatialSumRule(AnchoredRule, SpatialSumRule):
    """u2: `(D, D)` kron C blocks Psi2 A_c Psi2^T `(P, P)`."""

    def input_rows(self, inputs: Tensor) -> Tensor:
        return self.project(super().input_rows(inputs))


@register(SparseChannelSum)
class SparseChannelSumRule(AnchoredRule, ChannelSumRule):
    """u1: D blocks `(C, C)` kron Psi1 B Psi1^T `(P, P)`."""

    def output_rows(self, gradients: Tensor) -> Tensor:
        return self.project(super().output_rows(gradients))


@register(SparseFilters)
class SparseFiltersRule(AnchoredRule, ConvRule):
    """u: `(D, D)` kron (I_C kron Psi) A (I_C kron Psi)^T `(C P, C P)`, A the input factor of CONV."""

    def input_rows(self, inputs: Tensor) -> Tensor:
        return self.project_patches(self.patches(inputs))

    def input_factor(self, inputs: Tensor) -> Tensor:
        half = self.project_patches(self.patch_factor(inputs)[0])
        return self.project_patches(half.T)[None]

    def project_patches(self, rows: Tensor) -> Tensor:
        """Rows over patches `(..., 9C)` to rows over anchors `(..., C P)`: rows (I_C kron Psi)^T."""
        return self.project(rows.unflatten(-1, (-1, KERNEL**2))).flatten(-2)
