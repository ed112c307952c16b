"""The code as it is now, kept beside a sweep: what waits in a queue runs as it was submitted, whatever is edited."""

import shutil
from pathlib import Path

from ellarepro.config.explain import CONFIGS, PACKAGE
from ellarepro.results import git_commit
from ellarepro.results.provenance import COMMIT_FILE


def snapshot(folder: Path) -> Path:
    """Copy the package and its configurations to the new folder `folder`, with the commit that they are of.

    Returns:
        `folder`, absolute: first on Python's path, it is what is imported.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    if not CONFIGS.is_relative_to(PACKAGE):
        shutil.copytree(CONFIGS, folder / CONFIGS.name, ignore=ignored)
    (folder / COMMIT_FILE).write_text(git_commit() + "\n", encoding="utf-8")
    return folder.resolve()
