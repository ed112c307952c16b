"""What a run learned, by layer and path (Appendix D)."""

from ellarepro.inspection.rendering import RENDERERS, ablation_lines, comma_separated, learned_lines, markdown, notes
from ellarepro.inspection.rows import (
    PathRow,
    has_curvature,
    heading,
    is_learned,
    path_rows,
    precision_curves,
    ratio_curves,
    references,
    shown_curves,
    untrained_shares,
)

__all__ = [
    "RENDERERS",
    "PathRow",
    "ablation_lines",
    "comma_separated",
    "has_curvature",
    "heading",
    "is_learned",
    "learned_lines",
    "markdown",
    "notes",
    "path_rows",
    "precision_curves",
    "ratio_curves",
    "references",
    "shown_curves",
    "untrained_shares",
]
