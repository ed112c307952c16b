"""Does it find the symmetry that is there? Four labels of the same moved digits, each with a known symmetry.

    python -m scripts.symmetry_study [key=value ...] [--report]

The data are those of `ellarepro/data/moves.py`, the runs those of configs/experiment/study/, the same as
`python -m ellarepro -m experiment=study/laplace,study/map` makes: what is finished is not run again, what was
interrupted goes on. Keys are for all runs, as there; by default three seeds, one at a time, on one thread. Then
study.md and study.png are written beside the runs' folder, from the result files of these runs alone, as many as there
are: measures of the paths of F-FC+CONV+GCONV beside the truth. What a person reads in it goes into reading.md, which
study.md ends with.
"""

import sys

from scripts.studies import Study, experiments
from scripts.symmetry_report import draw, page

STUDY = Study(
    name="symmetry_study",
    question=__doc__.partition("\n")[0],
    sweeps=(experiments("study"),),
    defaults=(
        "seed=711,712,713",
        "output_dir=results/symmetry_study/runs",
    ),
    # What says most comes first: each seed is complete before the next one begins.
    order=lambda config: (-(config["dataset"]["strength"] or 0), config["seed"]),
    page=page,
    draw=draw,
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
