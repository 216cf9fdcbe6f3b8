"""The memory of outputs: what callers let go of serves the next run.

An output of megabytes in fresh memory costs more than many a kernel: the OS clears each page as it is first written, and takes the
pages back when the array goes. So a session remembers the blocks that it gave out, and uses one again once nothing else refers to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod

import numpy as np

_LEAST_BYTES = 1 << 16  # smaller blocks stay in the C library's heap
_ALIGN = 64
_GENERATIONS = 2  # of a run's outputs: those that the caller still holds, and the next
_STEPS = 8  # sizes of blocks to a doubling


Block = tuple[np.ndarray, int]  # bytes, and where in them an array begins


def _new_block(capacity: int) -> Block:
    block = np.empty(capacity + _ALIGN, np.uint8)
    return block, -block.__array_interface__["data"][0] % _ALIGN


def _references(blocks: list[Block], index: int) -> int:
    return sys.getrefcount(blocks[index][0])


_UNSHARED = _references([_new_block(1)], 0)  # what the interpreter counts for a block that only its list holds
_COUNTED = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


def _capacity(size: int) -> int:
    """A size rounded up so that outputs that grow run by run fit the blocks of earlier ones."""
    step = 1 << max(0, size.bit_length() - _STEPS.bit_length())
    return -(-size // step) * step


class OutputMemory:
    """Makes the arrays of one session's outputs. One thread at a time.

    Holds up to two blocks for each output of a size; blocks that callers keep longer are theirs alone.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, list[Block]] = {}
        self._next: dict[int, int] = {}
        self._most: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """What the session remembers, in use by callers or not."""
        return sum(block.nbytes for blocks in self._blocks.values() for block, _ in blocks)

    def prepare(self, sizes: list[int]) -> None:
        """Announces the sizes in bytes of a run's outputs. Blocks of other sizes are forgotten."""
        found = [_capacity(size) for size in sizes if _COUNTED and size >= _LEAST_BYTES]
        self._most = {capacity: _GENERATIONS * found.count(capacity) for capacity in found}
        self._blocks = {capacity: self._blocks.get(capacity, [])[:most] for capacity, most in self._most.items()}
        self._next = {capacity: self._next.get(capacity, 0) for capacity in self._most}

    @property
    def maker(self) -> Callable[[tuple[int, ...], np.dtype], np.ndarray]:
        """``empty``, or NumPy's own where no output is large."""
        return self.empty if self._most else np.empty

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of a shape, row-major, its values undefined; aligned to 64 bytes where its block may serve again."""
        capacity = _capacity(prod(shape) * dtype.itemsize)
        most = self._most.get(capacity)
        if most is None:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, *self._block(capacity, most))

    def _block(self, capacity: int, most: int) -> Block:
        """The block that was given out the longest ago, where nobody refers to it any more; else a new one."""
        blocks, index = self._blocks[capacity], self._next[capacity]
        oldest = index % len(blocks) if blocks else 0
        if blocks and _references(blocks, oldest) == _UNSHARED:
            self._next[capacity] = oldest + 1
            return blocks[oldest]
        made = _new_block(capacity)
        if len(blocks) < most:
            blocks.insert(index, made)
            self._next[capacity] = index + 1
        else:
            blocks[oldest] = made
            self._next[capacity] = oldest + 1
        return made
