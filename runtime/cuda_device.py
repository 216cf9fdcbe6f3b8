"""What the runtime asks of a CUDA device: memory, modules, launches, streams, events and captured graphs.

``cuda_pycuda.py`` is the device of the CUDA driver. Whatever else has these methods runs the same plans; the tests have one
that runs the kernels' text on the CPU.

Addresses are plain integers: ``address + offset`` lies in the same block, and 0 is no address. Streams are handles as the
driver's ``CUstream``, so that a caller's stream of another library can be given; 0 is the default stream. Work on one stream
runs in order. All methods raise ``tcompile.errors.Error`` with the driver's name of what went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

Stream = int
Extents = tuple[int, int, int]  # x, y, z


class Module(Protocol):
    """Loaded code."""

    def function(self, name: str) -> Any:
        """The kernel of this name, for ``Device.launch``. Raises Error where there is none."""
        ...


class Graph(Protocol):
    """Work that was captured once and runs as often as wanted."""

    def launch(self, stream: Stream) -> None:
        """Runs all of it, in order, on a stream."""
        ...


class Device(Protocol):
    """One GPU. ``name`` is what a person calls it, ``number`` its number among the devices of the process, from 0; ``sm`` its
    compute capability as 10 * major + minor.

    ``captures`` says whether ``begin_capture`` works: where it does not, plans are walked launch by launch.
    ``takes_text``: ``module`` wants the CUDA C text of the kernels in place of compiled code (no driver does).
    """

    name: str
    number: int
    sm: int
    captures: bool
    takes_text: bool

    def active(self) -> AbstractContextManager[object]:
        """The device is the calling thread's inside of ``with device.active():``; the other methods are called there. At its end the
        thread has what it had before: a caller's own choice of device stays."""
        ...

    def allocate(self, size: int) -> int:
        """The address of ``size`` > 0 bytes, aligned to 256. Raises OutOfMemory naming the sizes asked for and free."""
        ...

    def free(self, address: int) -> None:
        """Gives back a block of ``allocate``; waits for work that uses it."""
        ...

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        """Copies a C-contiguous host array to the device; the array may change once this returns."""
        ...

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        """Copies from the device into a C-contiguous host array, after all work of the stream; returns when it is there."""
        ...

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copies bytes on the device; the places are equal or do not overlap."""
        ...

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        """Sets ``size`` bytes to one value in 0..255."""
        ...

    def module(self, image: bytes) -> Module:
        """Loads code: a cubin, or PTX (text that ends with a zero byte); CUDA C text where the device ``takes_text``.

        Raises ArtifactError where the device refuses it.
        """
        ...

    def launch(self, function: Any, grid: Extents, block: Extents, shared: int, arguments: Sequence[int], stream: Stream) -> None:
        """Starts a kernel. ``arguments`` are 64-bit words in order: addresses, and signed integers.

        ``shared``: bytes of dynamic shared memory. Extents are at least 1; x of the grid below 2^31, y and z below 2^16.
        """
        ...

    def new_stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        ...

    def free_stream(self, stream: Stream) -> None:
        """Gives back a stream of ``new_stream``."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Waits for all work of a stream. Raises ExecutionError where a kernel failed."""
        ...

    def new_event(self) -> Any:
        """A point in time, for ``record``."""
        ...

    def record(self, event: Any, stream: Stream) -> None:
        """The event happens when all work so far of the stream is done."""
        ...

    def finish(self, event: Any) -> None:
        """Waits until a recorded event has happened, also where its stream is gone."""
        ...

    def elapsed(self, begin: Any, end: Any) -> float:
        """Seconds between two recorded events; waits for the later one."""
        ...

    def begin_capture(self, stream: Stream) -> None:
        """From here on, work on the stream is written down instead of run."""
        ...

    def end_capture(self, stream: Stream) -> Graph:
        """What was written down since ``begin_capture``."""
        ...
