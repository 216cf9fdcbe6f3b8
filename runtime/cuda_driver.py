"""The CUDA driver's functions by ctypes, on streams as numbers: PyCUDA takes its own stream objects only, and has no graph capture.

Source: CUDA Driver API reference, versions 11.4 to 13.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

from tcompile.errors import ArtifactError, Error, ExecutionError, OutOfMemory

_OUT_OF_MEMORY = 2
_REFUSED = (200, 209, 218, 221, 222, 223)  # code: no image, for no such GPU, bad PTX, no compiler of PTX, PTX too new, compiler off
_SHARED_LIMIT = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PLAIN_SHARED = 48 << 10  # bytes of shared memory that a block may have without asking
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER and its size
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: memory that is collected meanwhile may be freed
_NON_BLOCKING = 1
_MEMORY_TYPE = 2  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE

_FUNCTIONS: dict[str, tuple[object, ...]] = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, ctypes.c_ubyte, c_size_t, c_void_p),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuModuleLoadDataEx": (POINTER(c_void_p), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}


def library_name() -> str:
    """What the driver's library is called on this system."""
    return "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Driver:
    """The driver's library. Methods raise Error, or one of its kinds, with the driver's own name of what went wrong."""

    def __init__(self, path: str | None = None) -> None:
        """Opens the library. Raises Error where there is none, or an old one."""
        name = path or library_name()
        try:
            self._library = ctypes.CDLL(name)
            for function, arguments in _FUNCTIONS.items():
                found = getattr(self._library, function)
                found.restype, found.argtypes = c_int, arguments
        except (OSError, AttributeError) as error:
            message = f"the NVIDIA driver's library {name} cannot be used: {error}"
            raise Error(message, hint="install the NVIDIA driver, 470 or newer, or run on the CPU") from error

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function by its name. Raises Error for a status that is not success."""
        status = getattr(self._library, name)(*arguments)
        if status:
            self._fail(name, status)

    def _fail(self, name: str, status: int) -> None:
        text, code = c_char_p(), c_char_p()
        self._library.cuGetErrorName(status, byref(code))
        self._library.cuGetErrorString(status, byref(text))
        what = f"{(code.value or b'?').decode()} ({(text.value or b'unknown').decode()})"
        if status == _OUT_OF_MEMORY:
            raise OutOfMemory(f"the device has no memory left: {name}: {what}")
        if status in _REFUSED:
            raise ArtifactError(f"the device refuses the code: {what}", hint="compile the model for this device, or update the driver")
        raise ExecutionError(f"the device failed: {name}: {what}")

    # Memory -------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """The address of new memory. Raises OutOfMemory telling what is free."""
        address = c_uint64()
        status = self._library.cuMemAlloc_v2(byref(address), size)
        if status == _OUT_OF_MEMORY:
            free, total = c_size_t(), c_size_t()
            self._library.cuMemGetInfo_v2(byref(free), byref(total))
            message = f"the device has no memory left: {size} bytes are wanted, {free.value} of {total.value} are free"
            raise OutOfMemory(message, hint="close other models, or use smaller inputs")
        if status:
            self._fail("cuMemAlloc", status)
        return address.value

    def is_pinned(self, address: int) -> bool:
        """Whether host memory is known to the driver: copies from it return before they are done."""
        kind = c_uint()
        return self._library.cuPointerGetAttribute(byref(kind), _MEMORY_TYPE, address) == 0

    # Code ---------------------------------------------------------------------------------------------

    def load(self, image: bytes) -> int:
        """A module of a cubin or PTX. Raises ArtifactError with the driver's log."""
        module, log = c_void_p(), ctypes.create_string_buffer(1 << 14)
        options = (c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), len(log))
        try:
            self.call("cuModuleLoadDataEx", byref(module), image, 2, options, values)
        except ArtifactError as error:
            said = log.value.decode(errors="replace").strip()
            raise ArtifactError(f"{error}\n{said}" if said else str(error)) from error
        return module.value

    def function(self, module: int, name: str) -> int:
        """A kernel of a module."""
        found = c_void_p()
        self.call("cuModuleGetFunction", byref(found), module, name.encode())
        return found.value

    def allow_shared(self, function: int, size: int) -> None:
        """Lets blocks of a kernel have this much dynamic shared memory."""
        if size > _PLAIN_SHARED:
            self.call("cuFuncSetAttribute", function, _SHARED_LIMIT, size)

    def launch(
        self, function: int, grid: Sequence[int], block: Sequence[int], shared: int, arguments: Sequence[int], stream: int
    ) -> None:  # fmt: skip
        """Starts a kernel with 64-bit arguments."""
        words = (c_uint64 * max(len(arguments), 1))(*(argument & 0xFFFFFFFFFFFFFFFF for argument in arguments))
        base = ctypes.addressof(words)
        pointers = (c_void_p * max(len(arguments), 1))(*range(base, base + 8 * len(arguments), 8))
        self.call("cuLaunchKernel", function, *grid, *block, shared, stream, ctypes.addressof(pointers), None)

    # Contexts, handles ------------------------------------------------------------------------------------------

    def push(self, context: int) -> None:
        """Makes a context the calling thread's."""
        self.call("cuCtxPushCurrent_v2", context)

    def pop(self) -> None:
        """Gives the calling thread back the context that it had before."""
        self.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def new(self, name: str, *arguments: object) -> int:
        """The handle that a function gives through its first argument."""
        found = c_void_p()
        self.call(name, byref(found), *arguments)
        return found.value

    def new_stream(self) -> int:
        """A stream that does not wait for the default one."""
        return self.new("cuStreamCreate", _NON_BLOCKING)

    def begin_capture(self, stream: int) -> None:
        """Work of this thread on the stream is written down."""
        self.call("cuStreamBeginCapture_v2", stream, _RELAXED)

    def end_capture(self, stream: int) -> int:
        """The graph of what was written down."""
        found = c_void_p()
        self.call("cuStreamEndCapture", stream, byref(found))
        return found.value

    def elapsed(self, begin: int, end: int) -> float:
        """Seconds between two events; waits for the later."""
        milliseconds = c_float()
        self.call("cuEventSynchronize", end)
        self.call("cuEventElapsedTime", byref(milliseconds), begin, end)
        return milliseconds.value / 1e3
