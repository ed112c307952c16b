"""What is slower than it should be, by name, from the tables of one run on one card."""

from collections.abc import Iterator, Mapping, Sequence

from scripts.bench.tables import Measure, Table
from scripts.gpu.cells import ESTIMATED, SEEN, WHOLE
from scripts.gpu.measures import FIT, REPLAYED, SHARE, STEP

LEAST_SHARE = 10.0
"""Percent of the device's matrix rate below which a step or a fit waits for something else than products."""
MOST_BEYOND = 1.3
"""How many times its estimate a cell may take."""

Parts = Mapping[str, Sequence[Table]]


def slow(parts: Parts) -> list[str]:
    """A line for each thing that is slower than it should be."""
    return [*_below_the_rate(parts), *_decomposition(parts), *_beyond_the_estimate(parts)]


def hours(parts: Parts) -> list[str]:
    """A line for each table and number of runs side by side: how long the whole table takes."""
    gains = {jobs: row["gain"].value for jobs, row in _rows(parts, "jobs")}
    tables = {name: row[WHOLE].value for name in ("table1", "table2") for _, row in _rows(parts, name)}
    return [f"{t}: {jobs}: {whole / gain:.1f} h" for t, whole in tables.items() for jobs, gain in gains.items()]


def _rows(parts: Parts, name: str) -> Iterator[tuple[str, Mapping[str, Measure]]]:
    for table in parts.get(name, ()):
        yield from table.rows.items()


def _below_the_rate(parts: Parts) -> Iterator[str]:
    for name, row in _rows(parts, "bench"):
        if (share := row.get(SHARE)) and share.value < LEAST_SHARE:
            yield f"f_fc_conv: {name}: {share}% of the matrix rate"
    for layer, row in _rows(parts, "layers"):
        for name in (STEP, FIT):
            share = row.get(f"{name}, {SHARE}")
            if share is None or share.value >= LEAST_SHARE:
                continue
            better = row[REPLAYED].value / row[STEP].value if name == STEP and REPLAYED in row else None
            replayed = "" if better is None else f"; replayed it takes {better:.2f} of its time"
            yield f"{layer}: {name}: {share}% of the matrix rate{replayed}"


def _decomposition(parts: Parts) -> Iterator[str]:
    times = {name: cell for name, row in _rows(parts, "bench") for cell in row.values() if cell.unit == "s"}
    taken, fit = times.get("decomposition of a fit"), times.get("exact fit")
    if taken and fit and taken.value > fit.value:
        yield f"f_fc_conv: decomposition of a fit: {taken} s, longer than the fit of all images ({fit} s)"


def _beyond_the_estimate(parts: Parts) -> Iterator[str]:
    for table in ("table1", "table2"):
        for name, row in _rows(parts, table):
            ratio = row[SEEN].value / row[ESTIMATED].value
            if ratio > MOST_BEYOND:
                yield f"{table}: {name}: {ratio:.1f} times its estimate"
