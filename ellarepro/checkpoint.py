"""Checkpoints: written atomically, read without running pickled code."""

import io
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import UserError
from ellarepro.files import write_atomically

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts of them) to `path`, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, on the CPU; None where there is no checkpoint.

    Raises:
        UserError: the file is damaged, holds code, or is of another format.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler or the zip reader does.
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); delete it to start afresh"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} is not of format {FORMAT}; delete it to start afresh")
    return state
