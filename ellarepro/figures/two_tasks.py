"""Two labels of the same images, and what one network learned for each: the picture of the front page."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from ellarepro.figures.shares import draw_shares
from ellarepro.inspection import untrained_shares
from ellarepro.results import RunResult
from ellarepro.symmetry.labels import layer_title


def draw_two_tasks(
    images: Sequence[Tensor], labels: Mapping[str, Sequence[str]], results: Mapping[str, RunResult]
) -> Figure:
    """Return a row a task: `images (H, W)` in 0 to 1 under the task's labels, then the shares by layer of its run.

    Args:
        labels: of each image, by what a task is called.
        results: the run of each task, by the same names.
    """
    figure = Figure(figsize=(11, 3.1 * len(results)), layout="constrained")
    columns = len(images)
    grid = figure.add_gridspec(len(results), columns + 1, width_ratios=[1] * columns + [3.2])
    for row, (task, result) in enumerate(results.items()):
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"“{labels[task][column]}”", fontsize=11)
        axes = figure.add_subplot(grid[row, columns])
        draw_shares(axes, result.relative_effective_parameters, untrained_shares(result)[0])
        axes.set_title(f"label: {task}. {layer_title(result.layer)}: test {result.measured()}", fontsize=11)
        axes.set_ylabel("share of the layer (%)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure
