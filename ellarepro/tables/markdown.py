"""Text as Markdown."""

from collections.abc import Sequence
from statistics import fmean, stdev


def sections(*parts: str) -> str:
    """Return a page of `parts`, a blank line between two; empty ones are left out."""
    return "\n\n".join(filter(None, map(str.strip, parts))) + "\n"


def markdown_table(lines: Sequence[Sequence[str]], labels: int) -> str:
    """Return `lines`, the first of which holds the headers, as a Markdown table, padded so that it reads well as it is.

    The first `labels` columns are aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if i < labels else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [[f"{text:{'<' if i < labels else '>'}{widths[i]}}" for i, text in enumerate(line)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def mean_cell(values: Sequence[float], form: str, missing: str = "") -> str:
    """Return the mean of `values`, and from two on ± their sample standard deviation; `missing` where there are none.

    Args:
        values: what is averaged.
        form: as of `format`; a sign that it asks for stands before the mean alone.
        missing: what stands for no value.
    """
    if not values:
        return missing
    spread = f" ± {stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{spread}"
