"""Writes an artifact's bytes into a file: whole or not at all."""

from __future__ import annotations

import contextlib
import os

_CHUNK = 1 << 24  # bytes written at once: mapped files are never held whole


def save_whole(path: str | os.PathLike[str], data: memoryview) -> None:
    """Writes a file beside its place, then renames it. Raises OSError, and leaves nothing then."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as stream:
            for start in range(0, len(data), _CHUNK):
                stream.write(data[start : start + _CHUNK])
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
