"""One run, one writer: a lock in the run's folder that its holder's death releases."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ellarepro.errors import RunFailure, UserError

LOCK_FILE = ".lock"
_POLL_SECONDS = 1.0


class Lock:
    """The lock that this process holds on `folder`."""

    def __init__(self, folder: Path, descriptor: int):
        self.folder, self.descriptor = folder, descriptor

    def check(self) -> None:
        """Refuse to go on where the folder that was locked is no longer the one that lies there.

        Raises:
            RunFailure: the folder was removed, moved or made anew.
        """
        if not _same_file(self.descriptor, self.folder / LOCK_FILE):
            raise RunFailure(f"the run's folder {self.folder} was removed or replaced while the run went on")


@contextmanager
def only_writer(folder: Path, wait: bool = False, say: Callable[[str], None] = print) -> Iterator[Lock]:
    """Hold the lock of `folder`, which must be there, for as long as the context lasts.

    Args:
        folder: the run's folder.
        wait: wait for the process that holds it.
        say: told that it waits.

    Raises:
        UserError: another process holds it and `wait` is false; it is named.
    """
    descriptor = _acquire(folder, wait, say)
    try:
        yield Lock(folder, descriptor)
    finally:
        if _same_file(descriptor, folder / LOCK_FILE):
            (folder / LOCK_FILE).unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Of processes of this machine that come with the same `folder`, made if need be, let one after the other through.

    The folder itself is locked and nothing is written to it; where it cannot be made, or not locked, nobody waits.
    """
    with ExitStack() as held:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _acquire(folder: Path, wait: bool, say: Callable[[str], None]) -> int:
    path, told = folder / LOCK_FILE, False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if not wait:
                raise UserError(
                    f"output_dir: {folder} is being written by {holder}; wait=true waits for it, or take another folder"
                ) from error
            if not told:
                say(f"{folder.name}: waits for {holder}")
                told = True
            time.sleep(_POLL_SECONDS)
            continue
        # Whoever held it may have removed the file between opening and locking it: that lock locks nobody out.
        if _same_file(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
            return descriptor
        os.close(descriptor)


def _self() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    since = datetime.now().isoformat(" ", "seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since} | ({"job": job} if job else {})


def _holder(descriptor: int) -> str:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        job = f" (job {told['job']})" if "job" in told else ""
        return f"process {told['process']} on {told['host']}{job} since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
