"""What the factors of a fit will take, known before it starts."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_KINDS = {
    "0::": (_GROUPS, "memory.max", "memory.current", "inactive_file"),
    ":memory:": (_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of either version of control groups: the mark of its line, folder, and names of limit, use and file cache."""


class FactorsTooLarge(MemoryError):
    """The factors of a fit would not fit into the memory that is free; the message says what to change."""


@dataclass(frozen=True)
class Forecast:
    """What a fit will take.

    Attributes:
        sizes: bytes of the factors, by layer.
        workspace: bytes that the largest decomposition takes beside them.
        decompositions: what is decomposed once a fit, as (number of matrices, their width).
        eigenvalues: how many a hyper-step sums over.
        remedy: what to change where it does not fit.
    """

    sizes: dict[str, int]
    workspace: int
    decompositions: Sequence[tuple[int, int]] = ()
    eigenvalues: int = 0
    remedy: str = "lower alpha, take layer=f_fc for fc, or objective=map"

    @property
    def total(self) -> int:
        """Bytes of all factors."""
        return sum(self.sizes.values())

    @property
    def peak(self) -> int:
        """Bytes while the largest matrix is decomposed."""
        return self.total + self.workspace

    def check(self, device: torch.device, free: int | None = None) -> str:
        """One line on what a fit will take.

        Args:
            free: bytes taken to be free on `device`; measured if not given.

        Raises:
            FactorsTooLarge: the peak exceeds what is free.
        """
        largest = max(self.sizes, key=lambda name: self.sizes[name])
        free = free_bytes(device) if free is None else free
        if self.peak > free:
            raise FactorsTooLarge(
                f"the curvature factors need about {self.peak / 1e9:.1f} GB "
                f"({largest}: {self.sizes[largest] / 1e9:.1f} GB), {free / 1e9:.1f} GB are free on {device}; "
                f"{self.remedy}"
            )
        return f"curvature factors {self.total / 1e6:.1f} MB, {self.peak / 1e6:.1f} MB at the peak of a fit"


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on `device` now; on systems that do not tell, all that is built in."""
    if device.type == "cuda":
        # What PyTorch holds and does not use, of runs before in this process, can be had as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if _MEMINFO.exists():
        # Not the free pages: those leave out the file cache, which gives way when memory is asked for.
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return min([int(fields["MemAvailable"].split()[0]) * 1024, *_left_by_groups()])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_groups() -> Iterator[int]:
    """Bytes that each control group with a limit leaves this process, a scheduler's job or a container say."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    for mark, (root, limit, use, cache) in _KINDS.items():
        for path in [line.partition(mark)[2] for line in lines if mark in line]:
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError, KeyError):  # "max" is no number, and not all of this need be there
                    used = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    most, now = (int((folder / name).read_text()) for name in (limit, use))
                    yield max(most - now + int(used[cache]), 0)


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch says by `error` that memory, on whichever device, does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
