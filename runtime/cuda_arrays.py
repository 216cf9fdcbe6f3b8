"""Arrays on a device: what a run gives there, and what it takes there from other libraries without a copy.

Sources: DLPack 1.1; CUDA Array Interface, version 3 (Numba's documentation).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime import dlpack
from tcompile.runtime.cuda_device import Device, Stream
from tcompile.runtime.dtypes import Element

CUDA = 2  # DLDeviceType
_LEGACY = 1  # the default stream's number in DLPack and in the CUDA Array Interface, where 0 is not allowed
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode by NumPy's kind; those of other types stand in ``dlpack.CODES``


class DeviceArray:
    """Memory on a device with a type and a shape; the layout's attributes are named as NumPy's.

    ``owner`` keeps the memory. ``numpy()`` copies it to the host; ``__dlpack__`` and ``__cuda_array_interface__`` give it to
    other libraries as it is. ``stream`` is where it is written: others wait for that stream before they read.
    """

    def __init__(
        self, device: Device, address: int, shape: tuple[int, ...], element: Element, owner: Any,
        *, strides: tuple[int, ...] | None = None, stream: Stream = 0, read_only: bool = False,
    ) -> None:  # fmt: skip
        self.device, self.address, self.shape, self.element, self.owner = device, address, tuple(shape), element, owner
        self.dtype, self.itemsize = element.numpy, element.numpy.itemsize
        self.strides = row_major(self.shape, self.itemsize) if strides is None else strides
        self.stream = stream
        contiguous = 0 in self.shape or all(
            extent == 1 or got == wanted
            for extent, got, wanted in zip(self.shape, self.strides, row_major(self.shape, self.itemsize), strict=True)
        )
        aligned = address % self.itemsize == 0
        self.flags = SimpleNamespace(
            c_contiguous=contiguous, aligned=aligned, writeable=not read_only, carray=contiguous and aligned and not read_only
        )

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, gaps not counted."""
        return self.size * self.itemsize

    def numpy(self) -> np.ndarray:
        """A copy on the host, after all work of the array's stream. Raises InputError where there are gaps between the elements."""
        if not self.flags.c_contiguous:
            raise InputError("a device array with gaps cannot be copied to the host", hint="copy its whole buffer, and slice that")
        result = np.empty(self.shape, self.dtype)
        if result.size:
            with self.device.active():
                self.device.download(result, self.address, self.stream)
        return result

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same memory under another shape of the same size; of an array without gaps only. One extent may be -1."""
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if -1 in wanted:
            rest = prod(extent for extent in wanted if extent != -1)
            wanted = tuple(self.size // max(rest, 1) if extent == -1 else extent for extent in wanted)
        if not self.flags.c_contiguous or prod(wanted) != self.size:
            raise InputError(f"a device array of shape {self.shape} cannot be viewed as {wanted}")
        return self._view(self.address, wanted, None)

    def __getitem__(self, key: Any) -> DeviceArray:
        """A view by slices with steps of 1, as ``cache[:, :, :t]``."""
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) > self.ndim or not all(isinstance(part, slice) and part.step in (None, 1) for part in parts):
            raise InputError("device arrays take slices with steps of 1 only", hint="other libraries view them through __dlpack__")
        bounds = [part.indices(extent) for part, extent in zip(parts, self.shape, strict=False)]
        start = sum(low * step for (low, *_), step in zip(bounds, self.strides, strict=False))
        shape = (*(max(high - low, 0) for low, high, _ in bounds), *self.shape[len(parts) :])
        return self._view(self.address + start, shape, self.strides)

    def _view(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> DeviceArray:
        return DeviceArray(
            self.device, address, shape, self.element, self, strides=strides, stream=self.stream, read_only=not self.flags.writeable
        )

    def lend(self) -> None:
        """Tells that work on another stream than the array's own reads it, which may go on when the array is gone."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        raise AttributeError("a device array's memory is not on the host; numpy() copies it")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.element.name in dlpack.CODES or self.dtype.kind not in _KINDS:
            raise AttributeError(f"the CUDA array interface has no type for {self.element}; use DLPack")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, not self.flags.writeable),
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": self.stream or _LEGACY,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device.number

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule (DLPack before version 1). Waits for the array's own stream unless the consumer reads on it."""
        if stream != -1 and (stream or 0) != self.stream:
            with self.device.active():
                self.device.synchronize(self.stream)
        return _capsule(self)

    def __repr__(self) -> str:
        return f"<DeviceArray {self.element}{list(self.shape)} on {self.device.name}>"


def row_major(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """Strides in bytes of an array without gaps."""
    found, step = [], item
    for extent in reversed(shape):
        found.append(step)
        step *= extent
    return tuple(reversed(found))


def on_device(value: Any) -> bool:
    """Whether a value's memory is a CUDA device's."""
    if isinstance(value, DeviceArray):
        return True
    if isinstance(value, np.ndarray | np.generic):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == CUDA
    return hasattr(value, "__cuda_array_interface__")


def as_device_array(value: Any, element: Element, device: Device, stream: Stream, what: str) -> DeviceArray:
    """A value on the device as a DeviceArray of its memory; ``stream`` waits for whoever writes it.

    Raises InputError for another device or element type, naming ``what`` it is.
    """
    if isinstance(value, DeviceArray):
        found = value
        if found.stream != stream and found.device.number == device.number:
            device.synchronize(found.stream)
    else:
        read = _from_dlpack if hasattr(value, "__dlpack__") else _from_interface
        try:
            found = read(value, element, device, stream)
        except (BufferError, TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise InputError(f"{what} cannot be read on the device: {error}") from error
    if found.device.number != device.number:
        raise InputError(f"{what} is on device {found.device.number}, the model on device {device.number}")
    if found.element.onnx != element.onnx:
        raise InputError(f"{what} has element type {found.element}, expected {element}", hint="nothing is cast")
    if not found.flags.aligned:
        raise InputError(f"{what} is not aligned to its elements of {found.itemsize} bytes")
    return found


def _from_interface(value: Any, element: Element, device: Device, stream: Stream) -> DeviceArray:
    content = value.__cuda_array_interface__
    address, read_only = content["data"]
    if np.dtype(content["typestr"]) != element.numpy:
        raise BufferError(f"its elements are {content['typestr']}, expected {element}")
    foreign = content.get("stream")
    if foreign is not None and foreign != (stream or _LEGACY):
        device.synchronize(0 if foreign == _LEGACY else foreign)
    strides = content.get("strides")
    shape = tuple(content["shape"])
    strides = None if strides is None else tuple(strides)
    return DeviceArray(device, address or 0, shape, element, value, strides=strides, stream=stream, read_only=read_only)


def _from_dlpack(value: Any, element: Element, device: Device, stream: Stream) -> DeviceArray:
    if value.__dlpack_device__()[1] != device.number:
        raise BufferError(f"it is on device {value.__dlpack_device__()[1]}, the model on device {device.number}")
    code, bits = _type_code(element), 8 * element.numpy.itemsize
    taken = dlpack.take(value, stream or _LEGACY)
    tensor = taken.tensor
    if (tensor.code, tensor.bits, tensor.lanes) != (code, bits, 1):
        raise BufferError(f"its DLPack type has code {tensor.code} and {tensor.bits} bits, expected {element}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(step * element.numpy.itemsize for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(device, address, shape, element, taken, strides=strides, stream=stream, read_only=taken.read_only)


def _type_code(element: Element) -> int:
    if element.name in dlpack.CODES:
        return dlpack.CODES[element.name]
    return _KINDS[element.numpy.kind]


# Producing capsules -------------------------------------------------------------------------------------------

_held: dict[int, tuple[Any, ...]] = {}  # of capsules that live: the structure, what it points to, the array


def _capsule(array: DeviceArray) -> Any:
    rank = array.ndim
    shape = (ctypes.c_int64 * max(rank, 1))(*array.shape)
    strides = (ctypes.c_int64 * max(rank, 1))(*(step // array.itemsize for step in array.strides))
    managed = dlpack.Managed()
    tensor = managed.tensor
    tensor.data, tensor.device_type, tensor.device_id, tensor.ndim = array.address, CUDA, array.device.number, rank
    tensor.code, tensor.bits, tensor.lanes = _type_code(array.element), 8 * array.itemsize, 1
    tensor.shape, tensor.strides = ctypes.cast(shape, type(tensor.shape)), ctypes.cast(strides, type(tensor.strides))
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _held[address] = (managed, shape, strides, array)
    return _new_capsule(address, b"dltensor", _drop)


@dlpack.Deleter
def _delete(address: int) -> None:
    _held.pop(address, None)


_python = ctypes.pythonapi
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule: Callable[..., Any] = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _python)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))


@_Destructor
def _drop(capsule: int) -> None:
    """A capsule that nobody took is gone: so is its tensor."""
    if _is_valid(capsule, b"dltensor"):
        _held.pop(_pointer(capsule, b"dltensor"), None)
