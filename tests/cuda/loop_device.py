"""A device of the runtime whose kernels run in the Loop IR interpreter, on host memory: plans, sessions and arrays without a GPU.

Every address must lie in a block that is allocated; a launch, copy or transfer that leaves its block raises AssertionError.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tcompile.errors import Error, OutOfMemory
from tcompile.ir.loops import Kernel, Status
from tcompile.ir.loops_evaluate import compile_dim
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.program import Program
from tcompile.ir.program_text import program_kernels
from tcompile.runtime.cuda_device import Extents, Stream

CODES = {status: code for code, status in enumerate(Status, 1)}


class LoopDevice:
    """Runs the kernels of given programs. ``launches`` and ``uploads`` count what happened; ``limit`` is its memory in bytes."""

    name, number, sm, takes_text = "the interpreter", 0, 90, True

    def __init__(self, *programs: Program, captures: bool = True, limit: int = 1 << 32) -> None:
        self.kernels = {kernel.name: kernel for program in programs for kernel in program_kernels(program)}
        self.captures, self.limit = captures, limit
        self.blocks: dict[int, np.ndarray] = {}
        self.launches = self.uploads = self.downloads = self.graphs = self.synchronized = self.activated = 0
        self.streams = [0]
        self._recording: dict[Stream, list[Callable[[], None]]] = {}
        self._clock = 0

    # Memory -------------------------------------------------------------------------------------------

    def active(self) -> nullcontext[None]:
        self.activated += 1
        return nullcontext()

    def allocate(self, size: int) -> int:
        assert size > 0
        if sum(block.size for block in self.blocks.values()) + size > self.limit:
            raise OutOfMemory(f"{size} bytes are wanted")
        whole = np.full(size + 512, 0xA5, np.uint8)
        start = -whole.ctypes.data % 256
        block = whole[start : start + size]
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address: int) -> None:
        del self.blocks[address]

    def bytes(self, address: int, size: int) -> np.ndarray:
        """The memory at an address."""
        if size == 0:
            return np.empty(0, np.uint8)
        starts = sorted(self.blocks)
        found = bisect.bisect_right(starts, address) - 1
        assert found >= 0, f"no block holds {address:#x}"
        block, offset = self.blocks[starts[found]], address - starts[found]
        assert offset + size <= block.size, f"{size} bytes at {offset} of a block of {block.size}"
        return block[offset : offset + size]

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        assert array.flags.c_contiguous
        self.uploads += 1
        self.bytes(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        assert array.flags.c_contiguous and stream not in self._recording
        self.downloads += 1
        array.reshape(-1).view(np.uint8)[:] = self.bytes(address, array.nbytes)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        def run() -> None:
            self.bytes(target, size)[:] = self.bytes(source, size)

        self._do(run, stream)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        self._do(lambda: self.bytes(address, size).fill(byte), stream)

    # Code ---------------------------------------------------------------------------------------------

    def module(self, image: bytes) -> LoopDevice:
        assert b"__global__" in image
        return self

    def function(self, name: str) -> Kernel:
        if name not in self.kernels:
            raise Error(f"there is no kernel {name}")
        return self.kernels[name]

    def launch(self, function: Kernel, grid: Extents, block: Extents, shared: int, arguments: Sequence[int], stream: Stream) -> None:
        assert min(grid) >= 1 and 1 <= math.prod(block) <= 1024

        def run() -> None:
            self.launches += 1
            self._launch(function, arguments)

        self._do(run, stream)

    def _launch(self, kernel: Kernel, arguments: Sequence[int]) -> None:
        addresses, values = arguments[: len(kernel.params)], arguments[len(kernel.params) : -1]
        assert len(values) == len(kernel.dims)
        env, arrays = dict(zip(kernel.dims, values, strict=True)), []
        for param, address in zip(kernel.params, addresses, strict=True):
            size = math.prod(int(compile_dim(extent)(env)) for extent in param.shape)
            assert address % 16 == 0 or not size, f"{param.name} of {kernel.name} is not aligned"
            arrays.append(self.bytes(address, size * param.dtype.bytes).view(param.dtype.numpy))
        status = run_kernel(kernel, arrays, list(values))
        word = self.bytes(arguments[-1], 4).view(np.int32)
        if status is not None and word[0] == 0:
            word[0] = CODES[status]

    # Streams ------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[], None], stream: Stream) -> None:
        assert stream in self.streams
        if stream in self._recording:
            self._recording[stream].append(work)
        else:
            work()

    def new_stream(self) -> Stream:
        self.streams.append(max(self.streams) + 1)
        return self.streams[-1]

    def free_stream(self, stream: Stream) -> None:
        self.streams.remove(stream)

    def synchronize(self, stream: Stream) -> None:
        assert stream in self.streams and stream not in self._recording
        self.synchronized += 1

    def new_event(self) -> list[int]:
        return []

    def record(self, event: list[int], stream: Stream) -> None:
        self._clock += 1
        event[:] = [self._clock]

    def finish(self, event: list[int]) -> None:
        assert event

    def elapsed(self, begin: list[int], end: list[int]) -> float:
        return (end[0] - begin[0]) / 1e6

    def begin_capture(self, stream: Stream) -> None:
        assert stream != 0
        self._recording[stream] = []

    def end_capture(self, stream: Stream) -> Any:
        self.graphs += 1
        return _Graph(self._recording.pop(stream))


class _Graph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def launch(self, stream: Stream) -> None:
        for item in self.work:
            item()
