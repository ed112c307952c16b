"""What a run learned, by layer and path: prior precisions and effective numbers of parameters (Appendix D).

python -m ellarepro.inspection RUN_DIR_OR_RESULT_JSON [--format md|csv]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ellarepro.errors import command
from ellarepro.inspection import RENDERERS, has_curvature, notes
from ellarepro.results import read_result, result_file


@command("inspection")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a run learned; return the exit status (2 and one message for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="python -m ellarepro.inspection", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder or its result.json")
    parser.add_argument("--format", choices=RENDERERS, default="md")
    options = parser.parse_args(arguments)
    result = read_result(result_file(options.run))
    print(RENDERERS[options.format](result), end="")
    if options.format != "md" and not has_curvature(result):
        print(*notes(result), sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
