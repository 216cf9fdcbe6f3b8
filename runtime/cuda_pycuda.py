"""The device of the CUDA driver: PyCUDA opens it, in the primary context, so that memory of PyTorch and others can be read as it is;
what PyCUDA cannot do on a caller's stream goes through ``cuda_driver.py``. PyCUDA is imported here only, when a device is opened.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from tcompile.errors import Error
from tcompile.runtime.cuda_device import Extents, Stream
from tcompile.runtime.cuda_driver import Driver, library_name


class _Active:
    """The device's context is the thread's while this is entered; by any number of threads at once."""

    def __init__(self, driver: Driver, context: int) -> None:
        self._driver, self._context = driver, context

    def __enter__(self) -> None:
        self._driver.push(self._context)

    def __exit__(self, *_: object) -> None:
        self._driver.pop()


class _Function:
    """A kernel, and how much dynamic shared memory it is allowed."""

    def __init__(self, handle: int) -> None:
        self.handle, self.shared = handle, 0


class _Module:
    def __init__(self, device: PyCudaDevice, image: bytes) -> None:
        self._driver, self._handle = device.driver, device.driver.load(image)
        weakref.finalize(self, device.destroy, "cuModuleUnload", self._handle).atexit = False

    def function(self, name: str) -> _Function:
        return _Function(self._driver.function(self._handle, name))


class _Event:
    def __init__(self, device: PyCudaDevice) -> None:
        self.handle = device.driver.new("cuEventCreate", 0)
        weakref.finalize(self, device.destroy, "cuEventDestroy_v2", self.handle).atexit = False


class _Graph:
    def __init__(self, device: PyCudaDevice, graph: int) -> None:
        self._driver = device.driver
        try:
            self._handle = self._driver.new("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._driver.call("cuGraphDestroy", graph)
        weakref.finalize(self, device.destroy, "cuGraphExecDestroy", self._handle).atexit = False

    def launch(self, stream: Stream) -> None:
        self._driver.call("cuGraphLaunch", self._handle, stream)


def _pycuda() -> Any:
    """PyCUDA's driver module, initialised. Raises Error saying what is missing."""
    with suppress(OSError):  # builds of PyCUDA that name no driver's library find its functions in the process
        ctypes.CDLL(library_name(), mode=ctypes.RTLD_GLOBAL)
    try:
        import pycuda.driver as pycuda
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("pycuda")
        what = "PyCUDA is not installed" if absent else f"PyCUDA cannot be imported: {error}"
        hint = "pip install 'tcompile[cuda]'" if absent else "it needs the NVIDIA driver's library, libcuda.so.1"
        raise Error(f"{what}, which models on CUDA devices need", hint=hint) from error
    try:
        pycuda.init()
    except pycuda.Error as error:
        raise Error(f"the CUDA driver does not start: {error}", hint="nvidia-smi tells whether the machine has a working GPU") from error
    return pycuda


class PyCudaDevice:
    """One GPU, see ``cuda_device.Device``."""

    captures = True
    takes_text = False

    def __init__(self, number: int) -> None:
        """Opens a GPU by its number. Raises Error where PyCUDA, the driver or the GPU is missing."""
        pycuda = _pycuda()
        if number >= pycuda.Device.count():
            raise Error(f"there is no device cuda:{number}", hint=f"this machine has {pycuda.Device.count()} CUDA devices, from cuda:0")
        device = pycuda.Device(number)
        major, minor = device.compute_capability()
        self.number, self.name, self.sm = number, device.name(), 10 * major + minor
        self._context = device.retain_primary_context()
        self.driver = Driver()
        self._active = _Active(self.driver, self._context.handle)

    def active(self) -> _Active:
        return self._active

    def destroy(self, function: str, handle: int) -> None:
        """Gives a handle back, on whatever thread its owner ends."""
        with self._active:
            self.driver.call(function, handle)

    def allocate(self, size: int) -> int:
        return self.driver.allocate(size)

    def free(self, address: int) -> None:
        with self._active:  # on whatever thread its owner ends
            self.driver.call("cuMemFree_v2", address)

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        self.driver.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)
        if self.driver.is_pinned(array.ctypes.data):
            self.synchronize(stream)

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        self.driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)
        self.synchronize(stream)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self.driver.call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        self.driver.call("cuMemsetD8Async", address, byte, size, stream)

    def module(self, image: bytes) -> _Module:
        return _Module(self, image)

    def launch(self, function: _Function, grid: Extents, block: Extents, shared: int, arguments: Sequence[int], stream: Stream) -> None:
        if shared > function.shared:
            self.driver.allow_shared(function.handle, shared)
            function.shared = shared
        self.driver.launch(function.handle, grid, block, shared, arguments, stream)

    def new_stream(self) -> Stream:
        return self.driver.new_stream()

    def free_stream(self, stream: Stream) -> None:
        self.destroy("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: Stream) -> None:
        self.driver.call("cuStreamSynchronize", stream)

    def new_event(self) -> _Event:
        return _Event(self)

    def record(self, event: _Event, stream: Stream) -> None:
        self.driver.call("cuEventRecord", event.handle, stream)

    def finish(self, event: _Event) -> None:
        self.driver.call("cuEventSynchronize", event.handle)

    def elapsed(self, begin: _Event, end: _Event) -> float:
        return self.driver.elapsed(begin.handle, end.handle)

    def begin_capture(self, stream: Stream) -> None:
        self.driver.begin_capture(stream)

    def end_capture(self, stream: Stream) -> _Graph:
        return _Graph(self, self.driver.end_capture(stream))

    def __repr__(self) -> str:
        return f"<cuda:{self.number} {self.name}, sm_{self.sm}>"
