"""The paper's tables, ours beside the published numbers.

    python -m ellarepro.tables table1|table2|table3 [--runs DIR]... [--format md|tex|csv] [--budget NAME]
    python -m ellarepro.tables table2 --orderings
    python -m ellarepro.tables table2 --measures more
    python -m ellarepro.tables table2 --against OLD_RUNS

Runs of different budgets, data sources or settings never share a table: each such edition is printed on its own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ellarepro.errors import UserError, command
from ellarepro.tables import RENDERERS, SPECS, build_grids, changes, load_runs
from ellarepro.tables.cells import Grid
from ellarepro.tables.orderings import page as orderings_page
from ellarepro.tables.spec import MEASURED


@command("tables")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=SPECS)
    parser.add_argument(
        "--runs", type=Path, action="append", default=[], metavar="DIR", help="folder of finished runs; may be repeated"
    )
    parser.add_argument("--format", choices=RENDERERS, help="format of the table (default: md)")
    parser.add_argument("--budget", metavar="NAME", help="show the runs of this budget only")
    what = "published, or more: training accuracy, calibration error, linearised predictive, bounds of the evidence"
    parser.add_argument("--measures", choices=MEASURED, default="published", help=what)
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument(
        "--orderings",
        action="store_true",
        help="list the paper's orderings in place of the table, those that do not hold first",
    )
    pages.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="list how each cell has changed since these runs, in place of the table",
    )
    options = parser.parse_args(arguments)
    if options.format and (options.orderings or options.against):
        raise UserError("--orderings and --against: they are Markdown; leave --format out")

    def built(folders: Sequence[Path]) -> list[Grid]:
        return build_grids(options.table, load_runs(options.table, folders), options.budget, options.measures)

    print(_page(options, built), end="")
    return 0


def _page(options: argparse.Namespace, built: Callable[[Sequence[Path]], list[Grid]]) -> str:
    grids = built(options.runs)
    if options.against:
        return changes.page(grids, built([options.against]))
    return orderings_page(grids) if options.orderings else RENDERERS[options.format or "md"](grids)


if __name__ == "__main__":
    sys.exit(main())
