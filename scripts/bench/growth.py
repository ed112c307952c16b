"""How the time and memory of an exact fit grow: with training size, alpha, image size and classes.

A row's exponent is the slope of the logarithm of its seconds over that of what grows, fitted to the sizes of the row.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from math import log
from typing import Any

import torch
from matplotlib.figure import Figure

from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.structures import factor_bytes
from ellarepro.network import build_network
from scripts.bench.plain import LAYERS
from scripts.bench.tables import Measure, Table
from scripts.bench.timing import measured, seconds, summary

SIZES: dict[str, tuple[int, ...]] = {
    "training size": (256, 512, 1024, 2048),
    "alpha": (2, 4, 8),
    "image size": (8, 16, 32),
    "classes": (5, 10, 20, 40),
}
BASE = {"training size": 256, "alpha": 4, "image size": 32, "classes": 10}
NARROW = {**BASE, "image size": 16}
"""For the training size: from 256 images on, no factor of these maps is kept by its rows."""
_BATCH = 128


def main(rounds: int) -> Iterator[Table]:
    """One table for each of what grows."""
    for name, sizes in SIZES.items():
        yield growth(name, sizes, max(rounds // 2, 1), NARROW if name == "training size" else BASE)


def growth(name: str, sizes: tuple[int, ...], rounds: int, base: Mapping[str, int]) -> Table:
    """Seconds of fits at `sizes` of `name`, all else as in `base`, and the exponents of seconds and of bytes."""
    rows: dict[str, dict[str, Measure]] = {}
    for layer in LAYERS:
        held: dict[int, int] = {}
        calls = {size: _fit(layer, {**base, name: size}, held, size) for size in sizes}
        found = measured({str(size): call for size, call in calls.items()}, rounds)
        slopes = [slope(dict(zip(sizes, turn, strict=True))) for turn in zip(*found.values(), strict=True)]
        rows[layer] = {size: seconds(times) for size, times in found.items()}
        rows[layer] |= {"exponent": summary(slopes), "exponent of bytes": Measure(slope(held))}
    return Table(f"an exact fit by {name} (else {_words(base, name)})", rows)


def _words(base: Mapping[str, int], but: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in base.items() if name != but)


def _fit(layer: str, at: Mapping[str, int], held: dict[int, int], size: int) -> Callable[[], Any]:
    network = build_network(
        layer, in_channels=1, num_classes=at["classes"], alpha=at["alpha"], image_size=at["image size"]
    )
    images = torch.randn(at["training size"], 1, at["image size"], at["image size"])

    def call() -> None:
        ggn = GGN(network, tolerance=0.0)
        for batch in images.split(_BATCH):
            ggn.update(batch)
        held[size] = factor_bytes(ggn.blocks(len(images)))

    return call


def slope(values: Mapping[int, float]) -> float:
    """Least squares: the exponent p of values proportional to size^p."""
    return statistics.linear_regression([log(size) for size in values], [log(v) for v in values.values()]).slope


def draw(tables: list[Table]) -> Figure:
    """One panel for each of what grows: seconds over size, both on logarithmic axes."""
    figure = Figure(figsize=(3.2 * len(tables), 3.2), layout="constrained")
    for axes, table, name in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, SIZES, strict=True):
        for layer, row in table.rows.items():
            points = {int(size): cell for size, cell in row.items() if size.isdigit()}
            axes.errorbar(
                list(points),
                [cell.value for cell in points.values()],
                [cell.noise for cell in points.values()],
                marker="o",
                label=f"{layer}: {row['exponent'].value:.2f}",
            )
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds of a fit")
        axes.legend(frameon=False, fontsize="small", title="exponent", title_fontsize="small")
    return figure
