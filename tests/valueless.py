"""A device without values, to run whole programs on where there is no accelerator: PyTorch's meta device, made strict.

Tensors there have shapes only. Within `Valueless` every operation is refused that mixes them with tensors on the CPU
as CUDA would refuse it, which the meta device itself often lets pass; and what the host reads is answered by made-up
numbers and counted, for each read is a place where it would wait for the device.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
ANSWERS = {torch.bool: True, torch.int64: 2}
"""What the host reads: yes, two, and else one."""

_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class MixedDevices(AssertionError):
    """An operation on tensors of both devices."""


class Valueless(TorchDispatchMode):
    """See the module's docstring.

    Attributes:
        reads: how often the host has read values, by operation.
        sends: how often it has sent some, for which it waits as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.sends = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        valueless = [t for t in tensors if t.device == DEVICE]
        if valueless and function is torch.ops.aten._local_scalar_dense.default:
            return self._read(function, valueless[0]).item()
        if valueless and function in _MOVES and _target(function, args, kwargs) != DEVICE:
            read = self._read(function, valueless[0])
            return args[0].copy_(read) if function is torch.ops.aten.copy_.default else read
        if function in _MOVES and _target(function, args, kwargs) == DEVICE:
            sent = args[1 if function is torch.ops.aten.copy_.default else 0]
            self.sends += sent.device != DEVICE and sent.ndim > 0
        if valueless and function is torch.ops.aten._linalg_check_errors.default:
            self.reads[str(function)] += 1  # Nothing is looked at there, on a device with values the outcome is.
        if function is torch.ops.aten.index.Tensor and valueless:
            args = (args[0], [self._all_of(index) for index in args[1]])
        if valueless and function not in _MOVES:
            self._refuse_mixed(function, tensors)
        return function(*args, **kwargs)

    def _read(self, function, tensor: Tensor) -> Tensor:
        self.reads[str(function)] += 1
        return torch.full(tensor.shape, ANSWERS.get(tensor.dtype, 1), dtype=tensor.dtype)

    def _all_of(self, index: Tensor | None) -> Tensor | None:
        """A mask of one axis selects everything: how much it selects is read from the device, too."""
        if index is None or index.dtype != torch.bool or index.device != DEVICE:
            return index
        self.reads["mask"] += 1
        return torch.empty(len(index), dtype=torch.long, device=DEVICE)

    def _refuse_mixed(self, function, tensors: list[Tensor]) -> None:
        # CUDA takes single numbers from the CPU, and indices.
        several = [t for t in tensors if t.ndim or t.device == DEVICE]
        if function is torch.ops.aten.index.Tensor:
            several = several[:1]
        if len({t.device for t in several}) > 1:
            raise MixedDevices(f"{function}: {[(tuple(t.shape), str(t.device)) for t in tensors]}")


def _target(function, args, kwargs) -> torch.device:
    """Where a move moves to."""
    if function is torch.ops.aten.copy_.default:
        return args[0].device
    return torch.device(kwargs.get("device") or args[0].device)
