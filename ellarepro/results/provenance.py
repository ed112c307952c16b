"""What a result was made with: the code's commit, the packages' versions, the machine."""

import hashlib
import platform
import re
import resource
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COMMIT_FILE = "ellarepro_commit.txt"
"""Beside a copy of the package that is made to be run later: the commit it was copied from."""
RECORDED_PACKAGES = ("torch", "torchvision", "laplace-torch", "asdfghjkl", "hydra-core")


def git_commit() -> str:
    """Return the commit of the checkout this package lies in, "-dirty" appended when tracked files have changed.

    Those in results/ do not count: runs themselves replace them.

    "unknown" outside a checkout, without git, and when the package is installed below some other project's checkout; of
    a copy that waited in a queue, what held when it was made.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        if (root / COMMIT_FILE).is_file():
            return (root / COMMIT_FILE).read_text(encoding="utf-8").strip()
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def short_commit(commit: str) -> str:
    """What people read of a `git_commit()`."""
    name, dash, dirty = commit.partition("-")
    return f"{name[:8]}{dash}{dirty}"


@cache
def code_at_start() -> str:
    """The commit, and a digest of the package's files, which tells two edits of one commit apart.

    Of when this process first asked: what it then has in memory, whatever is edited later.
    """
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    # Editors keep locks there that are links to nothing.
    for file in sorted(path for path in package.rglob("*.py") if path.is_file()):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return f"{git_commit()} {digest.hexdigest()[:12]}"


def peak_memory(device: "torch.device") -> dict[str, int]:
    """The most bytes that this process has held so far: `host`, and `gpu` on a CUDA device."""
    import torch

    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    return peaks | ({"gpu": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


def versions() -> dict[str, str]:
    """Return {package: version} of Python and what a result depends on, "not installed" where a package is missing."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: "torch.device") -> str:
    """Return what a run on `device` computes with: the GPU's name, or the processor, its instruction set and threads.

    The instruction set is the one of torch's kernels, which ATEN_CPU_CAPABILITY can lower: each rounds in its own way.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()}), {threads} thread{'s' * (threads > 1)}"


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # elsewhere than on Linux
        names = []
    return names[0] if names else platform.processor() or f"{platform.machine()} CPU"


def _git(root: Path, *arguments: str) -> str:
    # The index stays as it is: to refresh it, git would lock it, and whoever commits meanwhile be refused.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
