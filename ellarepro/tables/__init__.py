"""The paper's tables, ours beside the published numbers."""

from ellarepro.tables.build import build_grids, load_runs, unique_runs
from ellarepro.tables.rendering import RENDERERS, plain
from ellarepro.tables.spec import SPECS, published, table_of

__all__ = ["RENDERERS", "SPECS", "build_grids", "load_runs", "plain", "published", "table_of", "unique_runs"]
