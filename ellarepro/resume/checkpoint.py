"""Checkpoints: whole or not at all, verified by a checksum, read without running pickled code, the last two kept."""

import hashlib
import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ellarepro.errors import RunFailure, UserError
from ellarepro.resume.files import write_atomically

MAGIC = b"ellarepro checkpoint 2\n"
_DIGITS = 64
_SHARE = 10
"""A checkpoint is written at most every so many times what writing the one before took."""


class DamagedCheckpoint(UserError):
    """A file that is no checkpoint, or one whose bytes have changed since it was written."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts of them) and its SHA-256 to `path`.

    Raises:
        OSError: it cannot be written; what was at `path` is still there.
    """
    buffer = io.BytesIO(MAGIC + bytes(_DIGITS))
    start = buffer.seek(0, io.SEEK_END)
    torch.save(dict(state), buffer)
    digest = hashlib.sha256(buffer.getbuffer()[start:]).hexdigest().encode()
    buffer.seek(len(MAGIC))
    buffer.write(digest)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, on the CPU; None where there is no checkpoint.

    Raises:
        DamagedCheckpoint: the file is damaged, holds code, or is of another format.
    """
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        start = len(MAGIC) + _DIGITS
        if not content.startswith(MAGIC):
            raise ValueError("not of this format")
        if hashlib.sha256(content[start:]).hexdigest().encode() != content[len(MAGIC) : start]:
            raise ValueError("its checksum differs")
        return torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler or the zip reader does.
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise DamagedCheckpoint(f"checkpoint {path} cannot be read ({reason}); delete it to start afresh") from error


class Checkpoints:
    """The checkpoints of one run: `checkpoint.pt`, and the one before it beside it.

    Args:
        folder: of the run; must be there.
        identity: what a checkpoint must have been written with to be continued, by the name of the key to blame.
        replaces: what result the run is to replace; a checkpoint that was to replace another one is left over.
        seconds: at most this long between two, unless writing takes a tenth of it; 0 keeps every step.
        say: told what was set aside, a line at a time.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        replaces: str = "",
        seconds: float = 30.0,
        say: Callable[[str], None] = print,
    ):
        self.path, self.previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
        self.identity, self.replaces = dict(identity), replaces
        self.seconds, self.say = seconds, say
        self._saved, self._cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = max(self.seconds, _SHARE * self._cost) if self.seconds else 0.0
        return time.monotonic() - self._saved >= wait

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state`; the newest so far becomes the one before.

        Raises:
            RunFailure: it cannot be written; those that are there stay.
        """
        started = time.monotonic()
        draft = self.path.with_name("checkpoint.next.pt")
        try:
            save_checkpoint(draft, {"identity": self.identity, "replaces": self.replaces, "state": dict(state)})
            if self.path.exists():
                os.replace(self.path, self.previous)
            os.replace(draft, self.path)
        except OSError as error:
            raise RunFailure(
                f"checkpoint {self.path} cannot be written ({error.strerror or error}); the last good one is kept: "
                "free some space or repair the folder, and the same command continues from there"
            ) from error
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole; None where there is nothing to continue.

        A damaged file is renamed, so that nothing is lost and nothing tries it again, if the other one is whole.

        Raises:
            UserError: none is whole, or it is of another run or of other data.
        """
        damaged: list[DamagedCheckpoint] = []
        for path in (self.path, self.previous):
            try:
                kept = load_checkpoint(path)
            except DamagedCheckpoint as error:
                damaged.append(error)
                continue
            if kept is None:
                continue
            self._refuse_foreign(path, kept)
            if kept["replaces"] != self.replaces:
                return None
            if damaged:
                aside = _set_aside(self.path)
                self.say(f"{damaged[0]}: set aside as {aside.name}, going on from {path.name}")
            return kept["state"]
        if damaged:
            raise damaged[0]
        return None

    def discard(self) -> None:
        """Remove what a finished run needs no more; what was set aside stays."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)

    def _refuse_foreign(self, path: Path, kept: Any) -> None:
        if not (
            isinstance(kept, dict) and isinstance(kept.get("identity"), dict) and {"state", "replaces"} <= set(kept)
        ):
            raise UserError(f"checkpoint {path} is not one of a run; delete it to start afresh")
        for key, wanted in self.identity.items():
            # What an earlier version did not write cannot be compared.
            if (got := kept["identity"].get(key, wanted)) != wanted:
                raise UserError(
                    f"checkpoint {path} was written with another {key} ({got}, this run has {wanted}); "
                    "put back what it was written with, or delete it to start afresh"
                )


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"checkpoint.damaged-{number}.pt")).exists():
        number += 1
    return path.rename(aside)
