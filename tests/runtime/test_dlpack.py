"""Tensors of other libraries in and out through DLPack."""

from __future__ import annotations

import ctypes
import functools
import gc

import ml_dtypes
import numpy as np
import pytest

from tcompile import runtime
from tcompile.codegen.artifact import write_artifact
from tcompile.codegen.build import build_image
from tcompile.codegen.lower import lower
from tcompile.errors import InputError
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.target import native_target
from tcompile.runtime.dlpack import Deleter, Managed, Tensor, Versioned

BF16 = ml_dtypes.bfloat16
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


@functools.cache
def copier(name):
    """y = x, of one element type."""
    b = Builder("copier")
    b.symbols["n"] = Range(0, None)
    target = native_target()
    program = lower(b.graph([b.input("x", getattr(dtypes, name), (dims.symbol("n"), 3))], ["y"]), target)
    return runtime.load(write_artifact(program, build_image(program, target, 0), target))


class Foreign:
    """An array of another library, by NumPy's own export."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Producer:
    """A tensor library of its own: it hands out an array of 16-bit brain floats, and counts what it gets back."""

    def __init__(self, array, *, versioned=True, code=4, device=1, read_only=False, major=1, strides=True, offset=0):
        self.array, self.versioned, self.device, self.deleted = array, versioned, device, 0
        self.fields = {"code": code, "read_only": read_only, "major": major, "strides": strides, "offset": offset}
        self.kept = []

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, *, max_version=None, **options):
        if max_version is None and self.versioned:
            raise BufferError("too old a consumer")
        if not self.versioned and max_version is not None:
            raise TypeError("unexpected keyword argument 'max_version'")
        array, rank = self.array, self.array.ndim
        shape = (ctypes.c_int64 * rank)(*array.shape)
        strides = (ctypes.c_int64 * rank)(*(stride // 2 for stride in array.strides)) if self.fields["strides"] else None
        offset = self.fields["offset"]
        tensor = Tensor(array.ctypes.data - offset, self.device, 0, rank, self.fields["code"], 16, 1, shape, strides, offset)
        deleter = Deleter(self.delete)
        if self.versioned:
            managed = Versioned(self.fields["major"], 1, None, deleter, int(self.fields["read_only"]), tensor)
        else:
            managed = Managed(tensor, None, deleter)
        self.kept += [shape, strides, deleter, managed]
        return _new(ctypes.addressof(managed), b"dltensor_versioned" if self.versioned else b"dltensor", None)

    def delete(self, _):
        self.deleted += 1


@pytest.mark.parametrize("name", ["F32", "F64", "F16", "BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"])
def test_types_that_numpy_knows(name):
    dtype = getattr(dtypes, name).numpy
    array = np.arange(12).reshape(4, 3).astype(dtype)
    result = copier(name).run([Foreign(array)])["y"]
    np.testing.assert_array_equal(result, array)
    np.testing.assert_array_equal(np.from_dlpack(result), array)
    assert np.shares_memory(np.from_dlpack(result), result)


@pytest.mark.parametrize("form", [lambda a: a[::2], lambda a: a.T[:, :3], lambda a: a[:0, :3], lambda a: a[:, :3]])
def test_strides_and_no_elements(form):
    array = form(np.arange(36, dtype=np.float32).reshape(6, 6))[:, :3]
    np.testing.assert_array_equal(copier("F32").run([Foreign(array)])["y"], array)


def test_read_only_tensors():
    array = np.ones((2, 3), np.float32)
    array.flags.writeable = False
    np.testing.assert_array_equal(copier("F32").run([Foreign(array)])["y"], array)


def test_a_read_only_tensor_is_not_overwritten():
    array = np.ones((2, 3), np.float32)
    array.flags.writeable = False
    result = copier("F32").run([Foreign(array)], donate=["x"])["y"]
    assert not np.shares_memory(result, array)


def test_a_donated_tensor_of_another_library_is_used():
    array = np.ones((2, 3), np.float32)
    assert np.shares_memory(copier("F32").run([Foreign(array)], donate=["x"])["y"], array)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("strides", [True, False])
@pytest.mark.parametrize("offset", [0, 64])
def test_brain_floats_come_without_a_copy(versioned, strides, offset):
    array = np.arange(12).reshape(4, 3).astype(BF16)
    producer = Producer(array, versioned=versioned, strides=strides, offset=offset)
    exe = copier("BF16")
    result = exe.run([producer], donate=["x"])["y"]
    assert np.shares_memory(result, array)
    np.testing.assert_array_equal(result, array)
    assert producer.deleted == 0
    del result
    gc.collect()
    assert producer.deleted == 1


def test_brain_floats_of_any_layout():
    array = np.arange(24).reshape(4, 6).astype(BF16)[::2, 1::2]
    producer = Producer(array)
    np.testing.assert_array_equal(copier("BF16").run([producer])["y"], array)
    gc.collect()
    assert producer.deleted == 1
    empty = np.zeros((0, 3), BF16)
    assert copier("BF16").run([Producer(empty)])["y"].shape == (0, 3)


def test_read_only_brain_floats_stay():
    array = np.ones((2, 3), BF16)
    assert not np.shares_memory(copier("BF16").run([Producer(array, read_only=True)], donate=["x"])["y"], array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": 2}, "it is on device type 2\n  hint: move it to the CPU"),
        ({"code": 2}, "its DLPack type has code 2 and 16 bits, expected bf16"),
        ({"major": 2}, "it is of DLPack version 2"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(InputError, match=f"input 'x' cannot be read through DLPack: {message}"):
        copier("BF16").run([Producer(np.ones((2, 3), BF16), **changes)])


def test_what_is_no_capsule_is_refused():
    producer = Producer(np.ones((2, 3), BF16))
    producer.__class__ = type("Liar", (Producer,), {"__dlpack__": lambda self, **_: 7})
    with pytest.raises(InputError, match="its __dlpack__ gives no DLPack capsule"):
        copier("BF16").run([producer])
