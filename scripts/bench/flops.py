"""The arithmetic of a call, as PyTorch counts it, and what its counter does not know."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, baddbmm_flop, bmm_flop

aten = torch.ops.aten


def flops_of(call: Callable[[], object]) -> int:
    """Operations of `call`'s matrix products and convolutions, a multiply-add being two; Fourier transforms are not.

    Products that are added in place, as curvature factors are, count here; complex ones count as four real ones.
    """
    with FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as counter:
        call()
    return counter.get_total_flops()


def _added_product(total: Sequence[int], left: Sequence[int], right: Sequence[int], **options: Any) -> int:
    return baddbmm_flop((1, *total), (1, *left), (1, *right)) if len(left) == 2 else baddbmm_flop(total, left, right)


def _batched_product(left: Tensor, right: Tensor, *rest: Any, **options: Any) -> int:
    return bmm_flop(left.shape, right.shape) * (4 if left.is_complex() else 1)


setattr(_batched_product, "_get_raw", True)  # noqa: B010 (how the counter is told to give tensors, not their shapes)
_UNKNOWN = {aten.addmm_: _added_product, aten.baddbmm_: _added_product, aten.bmm: _batched_product}
