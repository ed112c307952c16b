"""A layer that is the mean of its paths (eq. 4, with a mean in place of the sum)."""

from collections.abc import Mapping

from torch import Tensor, nn


class PathMean(nn.Module):
    """Mean over named paths that share input and output shapes; a single path is passed through.

    Args:
        paths: name to layer, in the order in which they are added.

    Raises:
        ValueError: no path is given.
    """

    def __init__(self, paths: Mapping[str, nn.Module]):
        super().__init__()
        if not paths:
            raise ValueError("a layer needs at least one path")
        self.paths = nn.ModuleDict(paths)

    def forward(self, features: Tensor) -> Tensor:
        outputs = [path(features) for path in self.paths.values()]
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total / len(outputs) if len(outputs) > 1 else total
