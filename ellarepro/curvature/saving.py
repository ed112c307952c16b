"""A curvature as tensors and plain values, to be saved and loaded."""

from typing import Any

import torch

from ellarepro.curvature.factors import MomentSum
from ellarepro.curvature.spectra import Curvature, FullCurvature, SpectralCurvature
from ellarepro.curvature.structures import Block, Factor, sums_of


def state_of(curvature: Curvature) -> dict[str, Any]:
    """`curvature` as `curvature_of` takes it; a sum that two tensors share is there once.

    Raises:
        ValueError: a curvature that is neither made of blocks nor a full matrix.
    """
    if isinstance(curvature, FullCurvature):
        return {"matrix": curvature.matrix, "sizes": curvature.sizes.tolist()}
    if curvature.blocks is None:
        raise ValueError(f"a {type(curvature).__name__} cannot be saved: take structure=kron, diag or full")
    sums = sums_of(curvature.blocks)
    places = {id(total): place for place, total in enumerate(sums)}
    blocks = {
        name: {"parts": [(places[id(p.total)], p.scale) for p in block.parts], "group_axis": block.group_axis}
        for name, block in curvature.blocks.items()
    }
    return {"sums": [total.state_dict() for total in sums], "blocks": blocks}


def curvature_of(state: dict[str, Any], device: torch.device) -> Curvature:
    """The curvature of which `state` was, on `device`."""
    if "matrix" in state:
        return FullCurvature(state["matrix"].to(device), state["sizes"])
    sums = [MomentSum.of_state(total, device) for total in state["sums"]]
    blocks = {
        name: Block([Factor(sums[place], scale) for place, scale in block["parts"]], block["group_axis"])
        for name, block in state["blocks"].items()
    }
    return SpectralCurvature.from_blocks(blocks)
