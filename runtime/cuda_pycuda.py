"""The device of the CUDA driver: PyCUDA opens it, in the primary context, so that memory of PyTorch and others can be read as it is;
what PyCUDA cannot do on a caller's stream goes through ``cuda_driver.py``. PyCUDA is imported here only, when a device is opened.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from tcompile.errors import Error
from tcompile.runtime.cuda_device import Extents, Stream
from tcompile.runtime.cuda_driver import Driver


class _Function:
    """A kernel, and how much dynamic shared memory it is allowed."""

    def __init__(self, handle: int) -> None:
        self.handle, self.shared = handle, 0


class _Module:
    def __init__(self, driver: Driver, image: bytes) -> None:
        self._driver, self._handle = driver, driver.load(image)
        weakref.finalize(self, driver.call, "cuModuleUnload", self._handle).atexit = False

    def function(self, name: str) -> _Function:
        return _Function(self._driver.function(self._handle, name))


class _Event:
    def __init__(self, driver: Driver) -> None:
        self.handle = driver.new("cuEventCreate", 0)
        weakref.finalize(self, driver.call, "cuEventDestroy_v2", self.handle).atexit = False


class _Graph:
    def __init__(self, driver: Driver, graph: int) -> None:
        self._driver = driver
        try:
            self._handle = driver.new("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            driver.call("cuGraphDestroy", graph)
        weakref.finalize(self, driver.call, "cuGraphExecDestroy", self._handle).atexit = False

    def launch(self, stream: Stream) -> None:
        self._driver.call("cuGraphLaunch", self._handle, stream)


def _pycuda() -> Any:
    """PyCUDA's driver module, initialised. Raises Error saying what is missing."""
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
        self.multiprocessors = device.get_attribute(pycuda.device_attribute.MULTIPROCESSOR_COUNT)
        self._context = device.retain_primary_context()
        self._driver = Driver()

    def activate(self) -> None:
        self._driver.call("cuCtxSetCurrent", self._context.handle)

    def allocate(self, size: int) -> int:
        return self._driver.allocate(size)

    def free(self, address: int) -> None:
        self.activate()
        self._driver.call("cuMemFree_v2", address)

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        self._driver.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)
        if self._driver.is_pinned(array.ctypes.data):
            self.synchronize(stream)

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        self._driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)
        self.synchronize(stream)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self._driver.call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        self._driver.call("cuMemsetD8Async", address, byte, size, stream)

    def module(self, image: bytes) -> _Module:
        return _Module(self._driver, image)

    def launch(self, function: _Function, grid: Extents, block: Extents, shared: int, arguments: Sequence[int], stream: Stream) -> None:
        if shared > function.shared:
            self._driver.allow_shared(function.handle, shared)
            function.shared = shared
        self._driver.launch(function.handle, grid, block, shared, arguments, stream)

    def new_stream(self) -> Stream:
        return self._driver.new_stream()

    def free_stream(self, stream: Stream) -> None:
        self._driver.call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: Stream) -> None:
        self._driver.call("cuStreamSynchronize", stream)

    def new_event(self) -> _Event:
        return _Event(self._driver)

    def record(self, event: _Event, stream: Stream) -> None:
        self._driver.call("cuEventRecord", event.handle, stream)

    def elapsed(self, begin: _Event, end: _Event) -> float:
        return self._driver.elapsed(begin.handle, end.handle)

    def begin_capture(self, stream: Stream) -> None:
        self._driver.begin_capture(stream)

    def end_capture(self, stream: Stream) -> _Graph:
        return _Graph(self._driver, self._driver.end_capture(stream))

    def __repr__(self) -> str:
        return f"<cuda:{self.number} {self.name}, sm_{self.sm}>"
