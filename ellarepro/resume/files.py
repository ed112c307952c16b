"""Files that are written whole or not at all."""

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    Raises:
        OSError: the folder is missing or cannot be written to; nothing is left behind.
    """
    path = Path(path)
    # Not tempfile.mkstemp: its files are readable by their owner alone, results are shared.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Put `value` at `path` as JSON, by `write_atomically`; `options` as of `json.dumps`.

    Raises:
        OSError: as `write_atomically`.
    """
    write_atomically(path, (json.dumps(value, **options) + "\n").encode())
