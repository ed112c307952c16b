"""Whether a network is the one, to the bit, that something was computed of."""

import torch
from torch import Tensor, nn

_PART = 2**20
"""Words that are summed at a time."""


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Type, shape and a checksum of every tensor in `model.state_dict()`, by name: weights and running statistics.

    No version counter says as much: what is written through `.data` leaves it as it was.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: f"{value.dtype} {tuple(value.shape)} {_checksum(value)}" for name, value in tensors.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of the tensors that are not the same in both, or in one alone."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    """Sum, modulo 2^64, of the words of `tensor`, each times an odd number of its own place."""
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = raw.view(torch.int32) if tensor.element_size() % 4 == 0 else raw
    total, start = torch.zeros((), dtype=torch.int64, device=tensor.device), 0
    for part in words.split(_PART):
        places = torch.arange(start, start + len(part), device=tensor.device)
        # Odd numbers have inverses modulo 2^64, so that one change never goes unnoticed.
        total += (part.long() * (places * 0x5851F42D4C957F2D * 2 + 1)).sum()
        start += len(part)
    return int(total)
