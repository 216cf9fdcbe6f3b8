"""Threads that executables share."""

from __future__ import annotations

import weakref
from functools import cache

from tcompile.errors import Error
from tcompile.runtime import abi


class Pool:
    """Threads for kernels, the calling thread included. Executables with one pool share its threads: where several
    run at once, each leaves threads to the others. ``threads`` None: the physical cores that this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise Error(f"threads is {threads!r}, expected a number from 1, or None", hint="None uses the cores of this process")
        self.handle: int = abi.native.tc_pool_new(threads or 0)
        if not self.handle:
            raise MemoryError("no memory for a thread pool")
        weakref.finalize(self, abi.native.tc_pool_free, self.handle).atexit = False

    @property
    def threads(self) -> int:
        """How many threads work, the caller's included."""
        return abi.native.tc_pool_threads(self.handle)


_shared: weakref.WeakValueDictionary[int, Pool] = weakref.WeakValueDictionary()


@cache
def _default_pool() -> Pool:
    """Counting the cores reads a dozen files: it is done once."""
    pool = Pool()
    return _shared.setdefault(pool.threads, pool)


def shared_pool(threads: int | Pool | None) -> Pool:
    """The given pool; or the process' pool of that many threads, made when first asked for."""
    if threads is None:
        return _default_pool()
    if isinstance(threads, Pool):
        return threads
    pool = Pool(threads)
    return _shared.setdefault(pool.threads, pool)
