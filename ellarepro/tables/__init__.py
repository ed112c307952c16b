"""The paper's tables, ours beside the published numbers."""

from ellarepro.tables.build import build_grids, load_runs, unique_runs
from ellarepro.tables.rendering import RENDERERS
from ellarepro.tables.spec import SPECS, published

__all__ = ["RENDERERS", "SPECS", "build_grids", "load_runs", "published", "unique_runs"]
