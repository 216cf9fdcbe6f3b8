"""Large computed weights in files instead of memory.

Weights of a model are mapped from its file and cost no memory; what passes make of them (packed, folded) would. Inside
``spilling`` such arrays stay in memory up to a budget; beyond it they go to files without a name, which end with them.

    with spilling(budget):            # bytes
        kept(array)                   # the array, or an equal one in a file
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

SMALLEST = 1 << 20  # bytes from which an array is counted
_CHUNK = 1 << 24


@dataclass(eq=False)
class _Store:
    budget: int
    folder: str | None
    held: int = 0
    owners: set[int] = field(default_factory=set)  # ids of the arrays that own the memory that is counted

    def holds(self, owner: np.ndarray) -> bool:
        """Counts an array's memory, where the budget allows it."""
        if id(owner) in self.owners:
            return True
        if self.held + owner.nbytes > self.budget:
            return False
        self.held += owner.nbytes
        self.owners.add(id(owner))
        weakref.finalize(owner, self._gone, id(owner), owner.nbytes).atexit = False
        return True

    def _gone(self, owner: int, size: int) -> None:
        self.owners.discard(owner)
        self.held -= size


_store: ContextVar[_Store | None] = ContextVar("store", default=None)


@contextmanager
def spilling(budget: int, folder: str | None = None) -> Iterator[None]:
    """Counts what ``kept`` gets. ``folder``: where the files are, the system's place for temporary files by default."""
    token = _store.set(_Store(budget, folder))
    try:
        yield
    finally:
        _store.reset(token)


def kept(array: np.ndarray) -> np.ndarray:
    """The array itself, or an equal, read-only one in a file."""
    store = _store.get()
    if store is None or array.nbytes < SMALLEST or array.dtype.hasobject:
        return array
    owner = _owner(array)
    if not isinstance(owner, np.ndarray) or store.holds(owner):
        return array
    return _filed(array, store.folder)


def release(array: np.ndarray) -> None:
    """Gives the memory of a mapped array's pages back; they are read again from the file when somebody looks."""
    owner = _owner(array)
    if not isinstance(owner, mmap.mmap) or not hasattr(owner, "madvise") or array.nbytes < SMALLEST:
        return
    if not array.flags.c_contiguous:
        owner.madvise(mmap.MADV_DONTNEED)
        return
    offset = array.__array_interface__["data"][0] - np.frombuffer(owner, np.uint8).__array_interface__["data"][0]
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    owner.madvise(mmap.MADV_DONTNEED, start, offset + array.nbytes - start)


def _owner(array: np.ndarray) -> object:
    """What an array's memory belongs to: an array, or a mapped file."""
    owner: object = array
    while True:
        base = owner.base if isinstance(owner, np.ndarray) else owner.obj if isinstance(owner, memoryview) else None
        if base is None:
            return owner
        owner = base


def _filed(array: np.ndarray, folder: str | None) -> np.ndarray:
    data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    with tempfile.TemporaryFile(dir=folder, prefix="tcompile-") as file:
        for start in range(0, len(data), _CHUNK):
            file.write(data[start : start + _CHUNK])
        file.flush()
        mapped = mmap.mmap(file.fileno(), len(data), access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8).view(array.dtype).reshape(array.shape)
