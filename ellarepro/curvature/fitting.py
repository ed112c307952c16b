"""How a curvature is fitted: the settings, checked once and passed whole."""

from dataclasses import dataclass

from ellarepro.curvature.ggn import DEFAULT_TOLERANCE
from ellarepro.curvature.structures import STRUCTURES


@dataclass(frozen=True)
class FitSettings:
    """What a fit of the curvature gathers, and from how much.

    Attributes:
        structure: `kron` (the paper's), `kron_blockwise`, `diag`, or `full` for small networks.
        tolerance: probability mass of a sample that class passes may leave out; 0 takes every pass.
        batch_size: samples a forward pass; no part of the result but rounding.
        fit_size: take the curvature from the first `fit_size` data, scaled up to all of them; None takes all.

    Raises:
        ValueError: an impossible value.
    """

    structure: str = "kron"
    tolerance: float = DEFAULT_TOLERANCE
    batch_size: int = 150
    fit_size: int | None = None

    def __post_init__(self):
        if self.structure not in (*STRUCTURES, "full"):
            raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}, full; got {self.structure!r}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {self.tolerance}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.fit_size is not None and self.fit_size < 1:
            raise ValueError(f"fit_size must be at least 1, or None for all; got {self.fit_size}")
