"""The factors of separable group convolutions (Knigge et al., 2022), in the image frame, and their curvature.

    k    filters of 3 x 3 pixels: element r sees its own map, with the filter turned by r
    h    a group convolution of 1 x 1 pixels: it mixes channels and elements
    g    the same in each channel by itself: it mixes elements
    m    a matrix that mixes channels, the same for every element

Each is a leaf module. r and s are elements of the group G, folded into the channels as `groups.py` says.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ellarepro.curvature.factors import second_moment
from ellarepro.curvature.patches import KERNEL, circular_patch_moments
from ellarepro.curvature.rule import register
from ellarepro.layers.conv import ConvolutionRule, convolve, pad_circular
from ellarepro.layers.groups import PointGroup
from ellarepro.layers.spatial import normal_parameter, zero_bias
from ellarepro.layers.subsample import largest_phase, take_phase

Channels = tuple[int, int]
"""Of the input and of the output, C and D; each stands for |G| maps."""


class GroupFactor(nn.Module):
    """A weight that every element r of the group applies to what it sees: F entries a channel, in an order of its own.

    At every pixel y(d, r) = bias[d] + sum over c, f of weight[d, c, f] (entry of c that r sees as f); depthwise, c = d.

    Parameters: `weight (D, C, *entries)`, depthwise `(D, *entries)`; `bias (D)` of a layer's last factor alone.
    """

    moves: Tensor
    """`(|G|, F)`: the entry, a pixel or an element, to which r takes f."""

    def __init__(self, channels: Channels, group: PointGroup, entries: tuple[int, ...], depthwise: bool = False):
        super().__init__()
        self.in_features, self.out_features = channels
        self.group, self.depthwise, self.subsamples = group, depthwise, False
        shape = self.out_features, *(() if depthwise else (self.in_features,)), *entries
        self.weight = normal_parameter(*shape, std=prod(shape[1:]) ** -0.5)
        if depthwise:
            # Products of norms of a few normal numbers each would let the scale drift from layer to layer.
            self.weight.data.copy_(F.normalize(self.weight.data.flatten(1)).view(shape))
        self.register_parameter("bias", None)

    def become_last(self, gain: float, subsamples: bool) -> None:
        """Take a layer's gain, its bias and its subsampling."""
        self.weight.data.mul_(gain)
        self.bias = zero_bias(self.out_features)
        self.subsamples = subsamples

    def full_resolution(self, features: Tensor) -> Tensor:
        """Features `(B, C*|G|, H, W)` to `(B, D*|G|, H, W)`, before subsampling."""
        raise NotImplementedError

    def seen(self) -> Tensor:
        """`(|G|, F)`: which of a channel's entries, map after map, r sees as f."""
        return self.moves

    def turned(self) -> Tensor:
        """weight[d, c, r^-1 f], what r applies to the entries as they stand: `(D, |G|, C, F)`, depthwise C = 1."""
        flat = self.weight.view(self.out_features, -1, self.moves.shape[1])
        return torch.stack([flat.index_select(2, self.moves[inverse]) for inverse in self.group.inverses], 1)

    def bias_of_maps(self) -> Tensor:
        """The bias of every output map, `(D*|G|)`; zeros where there is none."""
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        return bias[:, None].expand(-1, self.group.order).flatten()


class TurnedFilters(GroupFactor):
    """k: y(d, r)(p) = bias[d] + sum over c, q of weight[d, c, r^-1 q] x(c, r)(p + q), circular.

    Lifting, x(c) of a plain image stands for every x(c, r).

    Parameters: `weight (D, C, 3, 3)`, depthwise `(D, 3, 3)`; `bias (D)`.
    """

    def __init__(self, channels: Channels, group: PointGroup, lifting: bool, depthwise: bool = False):
        super().__init__(channels, group, (KERNEL, KERNEL), depthwise)
        self.lifting = lifting
        moves = [group.act_on_kernel(element, KERNEL) for element in range(group.order)]
        self.register_buffer("moves", torch.tensor(moves), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self._convolve(features, self.subsamples)

    def full_resolution(self, features: Tensor) -> Tensor:
        return self._convolve(features, subsamples=False)

    def seen(self) -> Tensor:
        own_map = torch.arange(self.group.order, device=self.moves.device)[:, None]
        return self.moves if self.lifting else own_map * KERNEL**2 + self.moves

    def _convolve(self, features: Tensor, subsamples: bool) -> Tensor:
        filters, bias = self.turned().unflatten(3, (KERNEL, KERNEL)), self.bias_of_maps()
        if self.depthwise or self.lifting:
            groups = features.shape[1] if self.depthwise else 1
            return convolve(features, filters.flatten(0, 1), bias, subsamples=subsamples, groups=groups)
        # One convolution an element: its channels are to lie together.
        order = self.group.order
        filters, bias = filters.transpose(0, 1).flatten(0, 1), _swapped(bias[None], order)[0]
        maps = convolve(_swapped(features, order), filters, bias, subsamples=subsamples, groups=order)
        return _swapped(maps, self.out_features)


def _swapped(maps: Tensor, inner: int) -> Tensor:
    """`maps (B, outer * inner, ...)`, channels in the order `inner * outer`."""
    return maps.unflatten(1, (-1, inner)).transpose(1, 2).flatten(1, 2)


class Mixing(GroupFactor):
    """What works on each pixel by itself: it chooses the phase from all of them and mixes those of the phase."""

    def forward(self, features: Tensor) -> Tensor:
        if self.subsamples:
            with torch.no_grad():
                phase = largest_phase(self.full_resolution(features))
            features = take_phase(features, phase)
        return self.full_resolution(features)

    def full_resolution(self, features: Tensor) -> Tensor:
        mixed = self.mixed(features.flatten(2)).unflatten(2, features.shape[2:])
        return mixed if self.bias is None else mixed + self.bias_of_maps()[:, None, None]

    def mixed(self, features: Tensor) -> Tensor:
        """Features `(B, C*|G|, T)` by the weight: `(B, D*|G|, T)`."""
        raise NotImplementedError


class GroupMixing(Mixing):
    """h: y(d, r) = bias[d] + sum over c, s of weight[d, c, r^-1 s] x(c, s), pixel by pixel; g, depthwise: of c = d.

    Parameters: `weight (D, C, |G|)`, depthwise `(D, |G|)`; `bias (D)`.
    """

    def __init__(self, channels: Channels, group: PointGroup, depthwise: bool = False):
        super().__init__(channels, group, (group.order,), depthwise)
        self.register_buffer("moves", torch.tensor(group.products), persistent=False)

    def mixed(self, features: Tensor) -> Tensor:
        if self.depthwise:
            return (self.turned()[:, :, 0] @ features.unflatten(1, (self.in_features, -1))).flatten(1, 2)
        return self.turned().flatten(0, 1).flatten(1) @ features


class ChannelMixing(Mixing):
    """m: y(d, r) = bias[d] + sum over c of weight[d, c] x(c, r), pixel by pixel.

    Parameters: `weight (D, C)`; `bias (D)`.
    """

    def __init__(self, channels: Channels, group: PointGroup):
        super().__init__(channels, group, ())
        self.register_buffer("moves", torch.zeros(group.order, 1, dtype=torch.long), persistent=False)

    def seen(self) -> Tensor:
        return torch.arange(self.group.order, device=self.moves.device)[:, None]

    def mixed(self, features: Tensor) -> Tensor:
        of_all_elements = self.weight @ features.unflatten(1, (self.in_features, -1)).flatten(2)
        return of_all_elements.unflatten(2, (self.group.order, -1)).flatten(1, 2)


class GroupFactorRule(ConvolutionRule):
    """KFAC with the weight shared by positions and elements, T*|G| of them: `(D, D)` kron `(C F, C F)`.

    Depthwise, D blocks `(1, 1)` kron `(F, F)`. Rows stand element by element.
    """

    def __init__(self, layer: GroupFactor):
        super().__init__(layer)
        self.group_axis = 0 if layer.depthwise else None

    def patches(self, inputs: Tensor) -> Tensor:
        """What there is to be seen at every position, map after map: `(N, entries of all maps, H, W)`."""
        return inputs

    def moments(self, inputs: Tensor) -> Tensor:
        """Sum over samples, mean over positions, of a a^T for what is seen of S maps, each by itself.

        `(S, C F, C F)`, depthwise `(D S, F, F)`. S is |G|; 1 where elements see all maps at once, or an image.
        """
        raise NotImplementedError

    def input_factor(self, inputs: Tensor) -> Tensor:
        moves = self.layer.moves
        moments = self.moments(inputs).unflatten(0, (self.layer.in_features if self.layer.depthwise else 1, -1))
        moments = moments.unflatten(3, (-1, moves.shape[1])).unflatten(2, (-1, moves.shape[1]))
        by_element = [moments[:, r % moments.shape[1]][:, :, move][..., move] for r, move in enumerate(moves)]
        return torch.stack(by_element).mean(0).flatten(3).flatten(1, 2)

    def input_rows(self, inputs: Tensor) -> Tensor:
        return self.rows_of(self.patches(inputs))

    def matched_input_rows(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs)
        if self.layer.subsamples:
            patches = take_phase(patches, largest_phase(self.layer.full_resolution(inputs)))
        return self.rows_of(patches)

    def rows_of(self, patches: Tensor) -> Tensor:
        """Patches as each element sees them: `(1, N, |G| T, C F)`, depthwise `(D, N, |G| T, F)`."""
        seen = patches.flatten(2).unflatten(1, (self.layer.in_features, -1))[:, :, self.layer.seen()]
        if self.layer.depthwise:
            return seen.permute(1, 0, 2, 4, 3).flatten(2, 3)
        return seen.permute(0, 2, 4, 1, 3).flatten(3).flatten(1, 2)[None]

    def output_rows(self, gradients: Tensor) -> Tensor:
        by_channel = self.unfolded(gradients)
        return by_channel.transpose(0, 1)[..., None] if self.layer.depthwise else by_channel.mT[None]

    def bias_rows(self, gradients: Tensor) -> Tensor:
        return self.unfolded(gradients).sum(2)

    def unfolded(self, gradients: Tensor) -> Tensor:
        """`(N, D*|G|, H', W')` as `(N, D, |G| T')`."""
        return gradients.unflatten(1, (self.layer.out_features, -1)).flatten(2)


@register(TurnedFilters)
class TurnedFiltersRule(GroupFactorRule):
    """k: `(D, D)` kron `(9 C, 9 C)`, depthwise D blocks `(1, 1)` kron `(9, 9)`."""

    def patches(self, inputs: Tensor) -> Tensor:
        return F.unfold(pad_circular(inputs), KERNEL).unflatten(2, inputs.shape[2:])

    def moments(self, inputs: Tensor) -> Tensor:
        if self.layer.depthwise:
            return circular_patch_moments(inputs.transpose(0, 1)[:, :, None])
        return circular_patch_moments(inputs.unflatten(1, (self.layer.in_features, -1)).permute(2, 0, 1, 3, 4))


@register(GroupMixing)
class GroupMixingRule(GroupFactorRule):
    """h: `(D, D)` kron `(C |G|, C |G|)`; g: D blocks `(1, 1)` kron `(|G|, |G|)`."""

    def moments(self, inputs: Tensor) -> Tensor:
        apart = self.layer.in_features if self.layer.depthwise else 1
        return _mean_moment(inputs.flatten(2).unflatten(1, (apart, -1)).permute(1, 0, 3, 2))


@register(ChannelMixing)
class ChannelMixingRule(GroupFactorRule):
    """m: `(D, D)` kron `(C, C)`."""

    def input_factor(self, inputs: Tensor) -> Tensor:
        return _mean_moment(inputs.unflatten(1, (self.layer.in_features, -1)).flatten(2).mT[None])


def _mean_moment(rows: Tensor) -> Tensor:
    """Sum over samples, mean over positions, of a a^T for `rows (G, N, T, d)`: `(G, d, d)`."""
    return second_moment(rows) / rows.shape[2]
