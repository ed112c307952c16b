"""Sentences of the pages and docstrings, counted: the mean of a page at most 22 words, none above 45.

    python -m scripts.prose [PAGE or FOLDER ...]

Without arguments: the pages of the root, docs and results, and the docstrings of the package and the scripts. Pages
that are named are printed, of others those that are above. Code, tables, headings and pictures are left out. Exit
status 1 where a page is above.
"""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[1]
MOST_IN_THE_MEAN, MOST = 22, 45


def sentences(page: str) -> list[str]:
    """The sentences of a Markdown page; inline code and links count as a word each."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "![", "<"))]
    text = re.sub(r"`[^`]*`", "x", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines)))
    parts = re.split(r"\n\s*\n|\n\s*[-*] |\n\s*\d+\. ", text)
    found = [s.strip() for part in parts for s in re.split(r"(?<=[.!?])\s+", part.replace("\n", " "))]
    return [sentence for sentence in found if len(sentence.split()) > 1]


def docstrings(source: str) -> str:
    """The docstrings of a Python module as a page: its sections and arguments are points of a list."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    prose = [re.sub(r"\n\n    [^\n]*  [^\n]*(\n    [^\n]*)*", "", text) for text in texts]  # diagrams and commands
    return "\n\n".join(re.sub(r"\n *([A-Z]\w+:\n|[\w`*, ]+: )", r"\n\n\1", text) for text in prose)


def pages() -> list[Path]:
    """README, docs, the results pages, and the modules of the package and the scripts."""
    results = [*(ROOT / "results").glob("*.md"), *(ROOT / "results").glob("*/*.md")]
    modules = [path for folder in ("ellarepro", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted(results), *modules]


def pages_of(path: Path) -> list[Path]:
    """The page itself, or the pages that lie in a folder."""
    return sorted(path.glob("*.md")) if path.is_dir() else [path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the pages that are above, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.prose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="a page, or a folder of pages")
    given = parser.parse_args(arguments).pages
    above = 0
    for page in [page for path in given for page in pages_of(path)] or pages():
        text = page.read_text()
        lengths = {s: len(s.split()) for s in sentences(docstrings(text) if page.suffix == ".py" else text)}
        long = [(n, s) for s, n in lengths.items() if n > MOST]
        mean = fmean(lengths.values()) if lengths else 0.0
        if page in given or mean > MOST_IN_THE_MEAN or long:
            print(f"{page}: mean {mean:.1f} words a sentence, {len(long)} above {MOST}")
            print(*(f"  {n} words: {s[:110]} ..." for n, s in sorted(long, reverse=True)[:3]), sep="\n")
        above += mean > MOST_IN_THE_MEAN or bool(long)
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
