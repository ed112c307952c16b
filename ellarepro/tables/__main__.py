"""The paper's tables, ours beside the published numbers.

    python -m ellarepro.tables table1|table2|table3 [--runs DIR]... [--format md|tex|csv] [--budget NAME]
    python -m ellarepro.tables table2 --orderings

Runs of different budgets, data sources or settings never share a table: each such edition is printed on its own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ellarepro.errors import UserError, command
from ellarepro.tables import RENDERERS, SPECS, build_grids, load_runs
from ellarepro.tables.orderings import page as orderings_page


@command("tables")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=SPECS)
    parser.add_argument("--runs", type=Path, action="append", default=[], metavar="DIR", help="may be repeated")
    parser.add_argument("--format", choices=RENDERERS, help="of the table (md)")
    parser.add_argument("--budget", metavar="NAME", help="show the runs of this budget only")
    parser.add_argument(
        "--orderings", action="store_true", help="instead, which orderings of the paper hold, those that do not first"
    )
    options = parser.parse_args(arguments)
    if options.orderings and options.format:
        raise UserError("--orderings: it is Markdown; leave --format out")
    grids = build_grids(options.table, load_runs(options.table, options.runs), options.budget)
    print(orderings_page(grids) if options.orderings else RENDERERS[options.format or "md"](grids), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
