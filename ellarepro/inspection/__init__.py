"""What a run learned, by layer and path (Appendix D)."""

from ellarepro.inspection.rendering import RENDERERS, comma_separated, markdown, notes
from ellarepro.inspection.rows import HEAD, PathRow, by_path, has_curvature, heading, precision_curves

__all__ = [
    "HEAD",
    "RENDERERS",
    "PathRow",
    "by_path",
    "comma_separated",
    "has_curvature",
    "heading",
    "markdown",
    "notes",
    "precision_curves",
]
