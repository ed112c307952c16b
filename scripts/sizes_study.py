"""Where does Laplace pay? Five networks on CIFAR-10 as it is, MAP beside Laplace, by training size.

    python -m scripts.sizes_study [key=value ...] [--report]

The runs are those of configs/experiment/sizes/, the smallest first: what is finished is not run again, what was
interrupted goes on. Keys are for all runs, as for `python -m ellarepro`; `dataset=cifar10_jpeg dataset.root=PATH` takes
the JPEG copy. Then study.md and study.png are written beside the runs' folder, from the result files of these runs
alone, as many as there are. What a person reads in it goes into reading.md, which study.md ends with.
"""

import sys

from scripts.sizes_report import draw, page
from scripts.studies import Study, experiments

STUDY = Study(
    name="sizes_study",
    question=__doc__.partition("\n")[0],
    sweeps=(experiments("sizes"),),
    defaults=("output_dir=results/sizes/runs",),
    order=lambda config: (config["train_size"] or 0, config["seed"]),
    page=page,
    draw=draw,
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
