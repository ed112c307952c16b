"""Run what is missing of a study, and write its page and figure from what there is.

    python -m scripts.studies NAME [key=value ...] [--report]

What is finished is not run again, what was interrupted goes on. Keys are for all runs, as for `python -m ellarepro`.
Then results/NAME/study.md and study.png are written, from as many runs as there are. What a person reads in them goes
into reading.md beside them, which study.md ends with.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ellarepro.errors import command
from scripts.studies.study import Study

NAMES = ("evidence", "optimisers", "sizes", "symmetry")


def study_named(name: str) -> Study:
    """The study of the module `name`."""
    return import_module(f"scripts.studies.{name}").STUDY


@command("studies")
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where a run failed, 2 for a mistake."""
    about = "\n".join(f"  {name:10} {study_named(name).question}" for name in NAMES)
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies",
        description=f"{__doc__.splitlines()[0]}\n\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for all runs, as for python -m ellarepro")
    parser.add_argument("--report", action="store_true", help="run nothing, write the files from what there is")
    options = parser.parse_intermixed_args(arguments)
    return study_named(options.name).carry_out(options.keys, options.report)


if __name__ == "__main__":
    sys.exit(main())
