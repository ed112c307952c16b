"""One layer of paths on patches of an image, for learned layers beside learned invariance; and what it loses."""

import torch
from torch import Tensor, nn

from ellarepro.data import Task
from ellarepro.evidence.evaluation import evaluate, outputs_of
from ellarepro.layers.paths import PathMean
from ellarepro.network import PATHS, gains_of
from ellarepro.settings.parts import DEFAULT_RELAXATION

PATCH, CHANNELS, SIDE = 4, 16, 16


def patch_network(paths: tuple[str, ...], seed: int, classes: int) -> nn.Sequential:
    """A mean of `paths` on a map of 4x4 patches of 4x4 pixels, GELU, a mean over positions, a linear readout.

    CONV of one layer sees 12x12 pixels, and the network has no change of its outputs when it shifts by whole patches
    around the image.
    """
    torch.manual_seed(seed)
    shape = (SIDE // PATCH,) * 2
    gains = gains_of(paths, DEFAULT_RELAXATION)
    layer = PathMean({name: PATHS[name](PATCH**2, CHANNELS, shape, shape, gain=gain) for name, gain in gains.items()})
    readout = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, classes)
    return nn.Sequential(nn.PixelUnshuffle(PATCH), layer, nn.GELU(), *readout)


@torch.no_grad()
def points_lost(model: nn.Module, task: Task) -> dict[str, float]:
    """Points of test accuracy that are lost without each path of several, and without copies.

    In place of a path stands its mean over the training data, position by position.
    """
    whole, lost = evaluate(model, task.test).accuracy, {}
    (layer,) = (module for module in model.modules() if isinstance(module, PathMean))
    for name, path in layer.paths.items() if len(layer.paths) > 1 else ():
        seen: list[Tensor] = []
        with path.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output)):
            outputs_of(model, task.train)
        mean = torch.cat(seen).mean(0)
        with path.register_forward_hook(lambda module, inputs, output, mean=mean: mean.expand_as(output)):
            lost[name] = 100 * (whole - evaluate(model, task.test).accuracy)
    if "invariance" in dict(model.named_children()):
        eta = model.get_buffer("invariance.eta")
        ranges = eta.clone()
        eta.zero_()
        lost["copies"] = 100 * (whole - evaluate(model, task.test).accuracy)
        eta.copy_(ranges)
    return lost
