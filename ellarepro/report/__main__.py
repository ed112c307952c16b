"""The tables and every run as one page: a file that opens in any browser, without a network.

python -m ellarepro.report [--runs DIR]... [--out FILE.html]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ellarepro.errors import command
from ellarepro.report import render_page
from ellarepro.report.cards import read_cards, read_noether
from ellarepro.resume.files import write_atomically
from ellarepro.tables import unique_runs

RESULTS = Path("results")
PAGE = RESULTS / "report.html"


@command("report")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and say where; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.report", description=__doc__.partition("\n")[0])
    help_text = f"all runs below it; may be repeated; default: {RESULTS}"
    parser.add_argument("--runs", type=Path, action="append", default=[], metavar="DIR", help=help_text)
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE.html", help=f"default: {PAGE}")
    options = parser.parse_args(arguments)
    folders = options.runs or [RESULTS]
    runs = unique_runs(folders)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, render_page(runs, read_cards(folders), read_noether(folders)).encode())
    print(f"{len(runs)} runs: {options.out} ({options.out.stat().st_size / 1e6:.1f} MB; open it in a browser)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
