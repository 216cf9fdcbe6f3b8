"""Arrays of other libraries without a copy, in element types that NumPy's own ``from_dlpack`` does not take.

Source: DLPack 1.1, ``dlpack.h``: ``DLManagedTensor`` and ``DLManagedTensorVersioned`` in a capsule.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass

import numpy as np

# DLDataTypeCode of the types that NumPy lacks, by their names here.
CODES = {"bf16": 4, "f8e4m3fn": 10, "f8e4m3fnuz": 11, "f8e5m2": 12, "f8e5m2fnuz": 13, "f8e8m0": 14}
_CPU, _CUDA_HOST = 1, 3
_READ_ONLY = 1
_VERSION = (1, 1)


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32), ("code", c_uint8),
        ("bits", c_uint8), ("lanes", c_uint16), ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("byte_offset", c_uint64),
    )  # fmt: skip


Deleter = ctypes.PYFUNCTYPE(None, c_void_p)


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", c_void_p), ("deleter", Deleter))


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", Deleter), ("flags", c_uint64), ("tensor", Tensor),
    )  # fmt: skip


_python = ctypes.pythonapi
_python.PyCapsule_IsValid.argtypes = (ctypes.py_object, c_char_p)
_python.PyCapsule_GetPointer.restype, _python.PyCapsule_GetPointer.argtypes = c_void_p, (ctypes.py_object, c_char_p)
_python.PyCapsule_SetName.argtypes = (ctypes.py_object, c_char_p)
# what a capsule holds by its name, and its name once taken, which must live as long as it
_KINDS = ((b"dltensor_versioned", b"used_dltensor_versioned", Versioned), (b"dltensor", b"used_dltensor", Managed))


@dataclass(eq=False)
class Taken:
    """A tensor whose memory stays another library's; this keeps it, and gives it back when it is gone."""

    tensor: Tensor
    read_only: bool
    managed: Managed | Versioned
    address: int


def take(value: object, stream: int | None = None) -> Taken:
    """The tensor that ``value`` exports. ``stream``: where it will be read, on a device. Raises BufferError for what is none."""
    given = {} if stream is None else {"stream": stream}
    try:
        capsule = value.__dlpack__(max_version=_VERSION, **given)
    except TypeError:  # a producer from before DLPack 1.0
        capsule = value.__dlpack__(**given)
    for fresh, used, kind in _KINDS:
        if _python.PyCapsule_IsValid(capsule, fresh):
            address = _python.PyCapsule_GetPointer(capsule, fresh)
            managed = kind.from_address(address)
            if getattr(managed, "major", 1) != 1:
                raise BufferError(f"it is of DLPack version {managed.major}")
            _python.PyCapsule_SetName(capsule, used)  # from here on, the tensor is ours to delete
            taken = Taken(managed.tensor, bool(getattr(managed, "flags", 0) & _READ_ONLY), managed, address)
            if managed.deleter:
                weakref.finalize(taken, managed.deleter, address).atexit = False
            return taken
    raise BufferError("its __dlpack__ gives no DLPack capsule")


def from_dlpack(value: object, name: str, dtype: np.dtype) -> np.ndarray:
    """``value``'s memory as an array of the element type called ``name``. Raises BufferError for what does not fit it."""
    device, _ = value.__dlpack_device__()
    if device not in (_CPU, _CUDA_HOST):
        raise BufferError(f"it is on device type {int(device)}")
    taken = take(value)
    _check(taken.tensor, name, dtype)
    return _array(taken, dtype)


def _check(tensor: Tensor, name: str, dtype: np.dtype) -> None:
    if (tensor.code, tensor.bits, tensor.lanes) != (CODES[name], 8 * dtype.itemsize, 1):
        raise BufferError(f"its DLPack type has code {tensor.code} and {tensor.bits} bits, expected {name}")


def _array(taken: Taken, dtype: np.dtype) -> np.ndarray:
    tensor = taken.tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = _strides(tensor, shape, dtype.itemsize)
    reach = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)) + dtype.itemsize if 0 not in shape else 0
    block = (c_uint8 * reach).from_address((tensor.data or 0) + tensor.byte_offset) if reach else (c_uint8 * 0)()
    block.owner = taken
    array = np.ndarray(shape, dtype, block, 0, strides if reach else None)
    array.flags.writeable = not taken.read_only
    return array


def _strides(tensor: Tensor, shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """In bytes. None in DLPack means row-major."""
    if tensor.strides:
        return tuple(stride * item for stride in tensor.strides[: tensor.ndim])
    found, step = [], item
    for extent in reversed(shape):
        found.append(step)
        step *= extent
    return tuple(reversed(found))
