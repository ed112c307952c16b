"""What a run learned, by layer and path (Appendix D)."""

from ellarepro.inspection.rendering import RENDERERS, comma_separated, markdown, notes
from ellarepro.inspection.rows import (
    PathRow,
    has_curvature,
    heading,
    is_learned,
    path_rows,
    precision_curves,
    ratio_curves,
    references,
)

__all__ = [
    "RENDERERS",
    "PathRow",
    "comma_separated",
    "has_curvature",
    "heading",
    "is_learned",
    "markdown",
    "notes",
    "path_rows",
    "precision_curves",
    "ratio_curves",
    "references",
]
