"""Compiled objects kept on disk by the content they were made from.

A key is a hash of everything an object depends on, so entries never go stale; they are only evicted, least
recently used first, when the cache outgrows its limit. Any number of processes may share a directory: files are
written whole and renamed, read with a checksum, and one that vanishes while it is read is a miss.

``TCOMPILE_CACHE_DIR`` moves the cache (empty: none is kept); ``TCOMPILE_CACHE_BYTES`` bounds it (default 1 GiB).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

_DIGEST = 32
_LIMIT = 1 << 30
_SLACK = 0.8  # eviction goes down to this part of the limit, so that it is rare
_PAUSE = 600.0  # seconds between two looks at all entries, which may be a hundred thousand files: no compilation waits for one in vain


class Cache:
    """Bytes by key in one directory."""

    def __init__(self, directory: Path, limit: int = _LIMIT) -> None:
        self.directory = directory
        self.limit = limit

    def get(self, key: str) -> bytes | None:
        """The bytes kept for a key; None where there are none, or damaged ones."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) < _DIGEST or hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what was used last is evicted last
        return data[_DIGEST:]

    def put(self, key: str, data: bytes) -> None:
        """Keeps bytes for a key. A directory that cannot be written is a warning: compiling goes on without it."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(temporary, path)
        except OSError as error:
            warnings.warn(f"the object cache {self.directory} cannot be written: {error}", RuntimeWarning, stacklevel=2)
            return
        if self._due():
            self.evict()

    def _due(self) -> bool:
        """Whether no process has looked for a while if the cache has outgrown its limit."""
        mark = self.directory / "looked"
        with contextlib.suppress(OSError):
            if 0 <= time.time() - mark.stat().st_mtime < _PAUSE:
                return False
        with contextlib.suppress(OSError):
            mark.touch()
        return True

    def evict(self) -> None:
        """Brings the cache under its limit, dropping what was used longest ago."""
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        if total <= self.limit:
            return
        for _, size, path in entries:
            if total <= self.limit * _SLACK:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.directory.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / key[2:]


def default_cache() -> Cache | None:
    """The cache of this user, or the one the environment names; None where it says that there is none."""
    chosen = os.environ.get("TCOMPILE_CACHE_DIR")
    if chosen == "":
        return None
    directory = Path(chosen) if chosen else _user_cache() / "tcompile"
    return Cache(directory / "objects", int(os.environ.get("TCOMPILE_CACHE_BYTES", _LIMIT)))


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home())))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
