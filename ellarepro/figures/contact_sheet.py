"""A task's images with their labels."""

import torch
from matplotlib.figure import Figure

from ellarepro.data.dataset import Task


def draw_contact_sheet(task: Task, rows: int, columns: int) -> Figure:
    """Return the first rows * columns training images of `task`, each under the name of its class."""
    figure = Figure(figsize=(1.25 * columns, 1.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    mean, std = torch.tensor(task.mean), torch.tensor(task.std)
    for axis in axes:
        axis.axis("off")
    for axis, image, label in zip(axes, task.train.images, task.train.labels.tolist(), strict=False):
        pixels = (image.permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(task.class_names[label], fontsize=8)
    return figure
