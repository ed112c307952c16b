"""The network of every experiment (after Neyshabur, 2020): eight layers of the same kind, then a small head.

One stage table and one head serve all layer types; a layer is the mean of the paths that its name lists.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from ellarepro.layers.anchors import Anchored
from ellarepro.layers.conv import Conv
from ellarepro.layers.dense import Dense
from ellarepro.layers.factored import FactoredDense
from ellarepro.layers.gconv import GroupConv
from ellarepro.layers.groups import group_of
from ellarepro.layers.paths import PathMean
from ellarepro.layers.separable import DepthwiseGroupConv, GroupSpaceConv, PointwiseGroupConv, SpaceGroupConv
from ellarepro.layers.sparse import SparseConv, SparseDense
from ellarepro.layers.spatial import RELU_GAIN, SpatialLayer
from ellarepro.layers.tensors import BIAS, HEAD, WEIGHT, TensorInfo, by_path
from ellarepro.settings.parts import DEFAULT_RELAXATION, AnchorSettings

CHANNELS = (1, 2, 2, 4, 4, 8, 8, 16)
"""Output channels of each layer, in units of alpha."""
STRIDES = (1, 2, 1, 2, 1, 2, 2, 2)
HEAD_WIDTH = 64
"""Hidden width of the head, in units of alpha."""
IMAGE_SIZES = (8, 16, 32)
PRIORS = ("theta", "u", "omega")
"""Where the learned prior is placed (Section 3.2): weights, anchor values, or inverse lengthscales."""

PATHS: dict[str, type[SpatialLayer]] = {
    "fc": Dense,
    "conv": Conv,
    "f_fc": FactoredDense,
    "s_fc": SparseDense,
    "s_conv": SparseConv,
    "gconv": GroupConv,
    "pgconv": PointwiseGroupConv,
    "sgconv": SpaceGroupConv,
    "gsconv": GroupSpaceConv,
    "dgconv": DepthwiseGroupConv,
}
"""Path name to layer."""
SUMS = (
    ("fc", "conv"),
    ("f_fc", "conv"),
    ("s_fc", "s_conv"),
    ("conv", "gconv"),
    ("f_fc", "conv", "gconv"),
    ("f_fc", "conv", "sgconv"),
    ("f_fc", "conv", "dgconv"),
)
"""Paths that make a layer together."""
LAYERS = {"_".join(paths): paths for paths in (*((path,) for path in PATHS), *SUMS)}
"""`layer=` name to the names of its paths: every path by itself, and sums of paths."""


class Network(nn.Module):
    """Blocks of (mean of paths, ReLU) down to a map of one pixel, then linear, ReLU, linear.

    Maps `(B, C, S, S)` to logits `(B, K)`. Parameters are named `blocks.<index>.paths.<path>.…` and `head.…`. With
    group features, folded into the channels, the head sees the largest over the group.
    """

    def __init__(self, blocks: Iterable[PathMean], head: nn.Sequential, group_order: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.group_order = group_order

    @property
    def layers(self) -> list[PathMean]:
        """The layers before the head, from the image on."""
        return cast(list[PathMean], list(self.blocks))

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(images, 0)

    def unit(self, features: Tensor) -> Tensor:
        """What the head does between its layers, on all features."""
        return self.head[1](features)

    def rest(self, features: Tensor, first: int) -> Tensor:
        """Logits `(B, K)` from the `features` that block `first`, of `len(blocks)` then the head, takes."""
        for block in self.blocks[first:]:
            features = self.unit(block(features))
        return self.head(self.pool(features))

    def pool(self, features: Tensor) -> Tensor:
        """The features of the head, `(B, D)`, from maps `(B, D*|G|, 1, 1)`: the largest over the group."""
        flat = features.flatten(1)
        return flat.unflatten(1, (-1, self.group_order)).amax(2) if self.group_order > 1 else flat

    def tensor_info(self) -> dict[str, TensorInfo]:
        """What each parameter tensor is, by name, in the order of `named_parameters()`; layers count from "1"."""
        found: dict[str, TensorInfo] = {}
        for index, block in enumerate(self.layers):
            for path, layer in block.paths.items():
                own = cast(SpatialLayer, layer).tensor_info(str(index + 1), path)
                found |= {f"blocks.{index}.paths.{path}.{name}": tensor for name, tensor in own.items()}
        for index, module in enumerate(self.head):
            for name, p in module.named_parameters():
                role = BIAS if name == "bias" else WEIGHT
                found[f"head.{index}.{name}"] = TensorInfo(HEAD, f"linear{index}", name, role, p.numel())
        return found

    def factor_groups(self) -> list[list[str]]:
        """Names of the weight tensors whose product is one path's map, path by path, for paths of several tensors."""
        return [names for names in by_path(self.tensor_info(), WEIGHT).values() if len(names) > 1]

    def anchor_values(self) -> set[str]:
        """Names of the tensors u of sparse layers, whose prior `prior=omega` leaves as it is."""
        return {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, Anchored)}


def priors_of(layer: str) -> tuple[str, ...]:
    """The `prior=` choices that have a meaning for every path of `layer=`."""
    return tuple(prior for prior in PRIORS if all(prior in PATHS[path].priors for path in LAYERS[layer]))


def has_relaxed_path(layer: str) -> bool:
    """Whether a path of `layer=` that is not equivariant stands beside one that is, and `relaxation` says its start."""
    return 0 < len(_equivariant(LAYERS[layer])) < len(LAYERS[layer])


def options_of(layer: str) -> frozenset[str]:
    """The options that a path of `layer=` takes beside its shapes, of `anchors` and `group`."""
    return frozenset().union(*(PATHS[path].options for path in LAYERS[layer]))


def build_network(  # noqa: PLR0913 (each is a choice of its own, and has a default)
    layer: str,
    *,
    in_channels: int,
    num_classes: int,
    alpha: int = 10,
    image_size: int = 32,
    anchors: AnchorSettings | None = None,
    group: str = "c4",
    relaxation: float = DEFAULT_RELAXATION,
    smooth: bool = False,
) -> Network:
    """Build the network with freshly drawn parameters (He-normal weights, zero biases; the global generator).

    Args:
        layer: one of `LAYERS`.
        in_channels: C of the images.
        num_classes: K.
        alpha: width; layers have alpha times `CHANNELS` output channels, and with a `gconv` path as many for each
            element of the group: all paths then see and make group features.
        image_size: S: 32, or a smaller one of `IMAGE_SIZES`, which skips the halvings that are left at one pixel.
        anchors: of sparse layers; the default settings if not given.
        group: of `gconv` paths, one of `groups.GROUPS`.
        relaxation: scale at which paths that are not equivariant start beside one that is: below 1 a relaxed layer
            starts near strict equivariance and must find reasons in the data to leave it; 1 prefers no path.
        smooth: whether the network has a gradient in its image everywhere, as a learned invariance needs: layers halve
            their maps by a fixed phase, so that they are no longer strictly equivariant, and units are GELU for ReLU.

    Raises:
        ValueError: an unknown layer, or a size that is not possible.
    """
    if layer not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}")
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size must be one of {IMAGE_SIZES}, got {image_size}")
    if min(in_channels, alpha) < 1 or num_classes < 1:
        raise ValueError(
            f"need in_channels >= 1, alpha >= 1, num_classes >= 1; got {in_channels}, {alpha}, {num_classes}"
        )
    if not 0 < relaxation < float("inf"):
        raise ValueError(f"relaxation must be positive and finite, got {relaxation}")
    symmetry = group_of(group)
    path_names = LAYERS[layer]
    order = symmetry.order if any("group" in PATHS[name].options for name in path_names) else 1
    gains = gains_of(path_names, relaxation)
    channels = [in_channels, *(alpha * width * order for width in CHANNELS)]
    sizes = _map_sizes(image_size)
    blocks = []
    for index, (sides, widths) in enumerate(zip(pairwise(sizes), pairwise(channels), strict=True)):
        given = {"anchors": anchors, "group": group, "lifting": index == 0}
        blocks.append(_layer(gains, widths, sides, given, adaptive=not smooth))
    return Network(blocks, _head(channels[-1] // order, alpha * HEAD_WIDTH, num_classes, smooth), order)


def _layer(
    gains: dict[str, float], widths: tuple[int, int], sides: tuple[int, int], given: dict, adaptive: bool
) -> PathMean:
    """One layer: its paths with their gains, of `widths` channels and maps of `sides` pixels (input, output)."""
    strict = _equivariant(gains)
    # A path by itself halves its map adaptively, at a quarter of the arithmetic; all else is the layer's to do.
    together = strict if (len(strict) > 1 or not adaptive) and sides[0] != sides[1] else []
    paths = {}
    for name, gain in gains.items():
        out_side = sides[0] if name in together else sides[1]
        options = {key: given[key] for key in PATHS[name].options}
        make: Callable[..., SpatialLayer] = PATHS[name]
        paths[name] = make(*widths, (sides[0],) * 2, (out_side,) * 2, gain=gain, **options)
    return PathMean(paths, together, adaptive)


def _equivariant(path_names: Iterable[str]) -> list[str]:
    return [name for name in path_names if PATHS[name].equivariant_to]


def gains_of(path_names: tuple[str, ...], relaxation: float) -> dict[str, float]:
    """Initial gain of each path of a layer, such that the mean of the paths keeps the scale of the signal.

    A path that is not equivariant starts at `relaxation` of the scale of one that is, where there is one.
    """
    strict = _equivariant(path_names)
    scale = {name: relaxation if strict and name not in strict else 1.0 for name in path_names}
    norm = sum(value**2 for value in scale.values()) ** 0.5
    return {name: RELU_GAIN * len(path_names) * value / norm for name, value in scale.items()}


def _map_sizes(image_size: int) -> list[int]:
    sizes = [image_size]
    for stride in STRIDES:
        sizes.append(max(sizes[-1] // stride, 1))
    return sizes


def _head(features: int, hidden: int, num_classes: int, smooth: bool) -> nn.Sequential:
    first, last = nn.Linear(features, hidden), nn.Linear(hidden, num_classes)
    nn.init.normal_(first.weight, std=RELU_GAIN * features**-0.5)
    nn.init.normal_(last.weight, std=hidden**-0.5)
    for linear in (first, last):
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.GELU() if smooth else nn.ReLU(), last)
