"""A task's images with their targets."""

import torch
from matplotlib.figure import Figure

from ellarepro.data.dataset import Task


def draw_contact_sheet(task: Task, rows: int, columns: int) -> Figure:
    """Return the first rows * columns training images of `task`, each under its target."""
    figure = Figure(figsize=(1.25 * columns, 1.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    mean, std = torch.tensor(task.mean), torch.tensor(task.std)
    for axis in axes:
        axis.axis("off")
    for axis, image, target in zip(axes, task.train.inputs, task.train.targets, strict=False):
        pixels = (image.permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(task.title(target), fontsize=8)
    return figure
