"""The device of the runtime's protocol (``runtime/cuda_device.py``) on the shim: kernels run on the CPU as they are launched.

Memory is the process's own, with blocks known by address, so that copies outside of them are refused. Captured graphs are
lists of what was asked for.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import numpy as np

from tcompile.errors import ExecutionError, OutOfMemory
from tests.cuda.shim_build import Function, ShimModule

_ALIGNMENT = 256


class ShimGraph:
    """Work that was written down."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def launch(self, stream: int) -> None:
        """Runs all of it."""
        for step in self.work:
            step()


class ShimDevice:
    """One device; ``launches`` counts kernels run, for tests. ``memory`` is the most that may be allocated, in bytes."""

    name = "shim"
    number = 0
    captures = True
    takes_text = True

    def __init__(self, sm: int = 90, memory: int = 8 << 30) -> None:
        self.sm = sm
        self.memory = memory
        self.launches = 0
        self._blocks: dict[int, np.ndarray] = {}
        self._order: list[int] = []
        self._captured: dict[int, list[Callable[[], None]]] = {}
        self._streams = 0

    def active(self) -> nullcontext[None]:
        """Nothing to do."""
        return nullcontext()

    # Memory -------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes that hold 0xCD, so that what nobody wrote shows."""
        used = sum(block.nbytes for block in self._blocks.values())
        if used + size > self.memory:
            raise OutOfMemory(f"the shim device has {self.memory - used} bytes free, {size} were asked for")
        block = np.full(size + _ALIGNMENT, 0xCD, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % _ALIGNMENT
        self._blocks[address] = block
        bisect.insort(self._order, address)
        return address

    def free(self, address: int) -> None:
        """Gives a block back."""
        if address not in self._blocks:
            raise ExecutionError(f"the shim device has no block at {address:#x}")
        del self._blocks[address]
        self._order.remove(address)

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copies from the host; the array is copied first, as a capture must not see later changes."""
        content = np.ascontiguousarray(array).tobytes()
        self._work(stream, lambda: ctypes.memmove(self._inside(address, len(content)), content, len(content)))

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copies to the host."""
        if not array.flags.c_contiguous:
            raise ExecutionError("download: expected a C-contiguous array")
        self._work(stream, lambda: ctypes.memmove(array.ctypes.data, self._inside(address, array.nbytes), array.nbytes))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copies on the device."""
        self._work(stream, lambda: ctypes.memmove(self._inside(target, size), self._inside(source, size), size))

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Sets bytes."""
        self._work(stream, lambda: ctypes.memset(self._inside(address, size), byte, size))

    def _inside(self, address: int, size: int) -> int:
        """The address, if ``size`` bytes from it lie in one block."""
        place = bisect.bisect_right(self._order, address) - 1
        start = self._order[place] if place >= 0 else 0
        if place < 0 or address + size > start + self._blocks[start].nbytes - _ALIGNMENT:
            raise ExecutionError(f"the shim device has no {size} bytes at {address:#x}")
        return address

    # Code ---------------------------------------------------------------------------------------------

    def module(self, image: bytes) -> ShimModule:
        """Compiles CUDA C text."""
        return ShimModule(image.rstrip(b"\0").decode())

    def launch(
        self, function: Function, grid: Sequence[int], block: Sequence[int], shared: int, arguments: Sequence[int], stream: int
    ) -> None:
        """Runs a kernel. Raises ShimError for what it does wrong."""
        if not (min(grid) >= 1 and grid[0] < 2**31 and max(grid[1:]) < 2**16):
            raise ExecutionError(f"kernel {function.name}: a grid of {tuple(grid)}")
        held = tuple(arguments)

        def run() -> None:
            self.launches += 1
            function(grid, block, shared, held)

        self._work(stream, run)

    # Streams, events, graphs --------------------------------------------------------------------------

    def _work(self, stream: int, step: Callable[[], Any]) -> None:
        if stream in self._captured:
            self._captured[stream].append(step)
        else:
            step()

    def new_stream(self) -> int:
        """A number: all work runs at once."""
        self._streams += 1
        return self._streams

    def free_stream(self, stream: int) -> None:
        """Nothing to do."""

    def synchronize(self, stream: int) -> None:
        """Nothing to wait for."""
        if stream in self._captured:
            raise ExecutionError("a stream that is captured cannot be waited for")

    def new_event(self) -> list[float]:
        """A place for a time."""
        return [0.0]

    def record(self, event: list[float], stream: int) -> None:
        """The time now."""

        def mark() -> None:
            event[0] = perf_counter()

        self._work(stream, mark)

    def finish(self, event: list[float]) -> None:
        """Nothing to wait for."""

    def elapsed(self, begin: list[float], end: list[float]) -> float:
        """Seconds between two events."""
        return end[0] - begin[0]

    def begin_capture(self, stream: int) -> None:
        """Writes down what follows."""
        if stream in self._captured:
            raise ExecutionError("the stream is captured already")
        self._captured[stream] = []

    def end_capture(self, stream: int) -> ShimGraph:
        """What was written down."""
        return ShimGraph(self._captured.pop(stream))
