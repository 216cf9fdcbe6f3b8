"""Element types: one table that every stage reads.

A sub-byte type is stored one element per byte, as in ``ml_dtypes``. ``float32`` and wider compute in
their own width; narrower floats compute in float32 and round after each operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tcompile.errors import UnsupportedError


@dataclass(frozen=True)
class DType:
    """One element type. ``kind``: f(loat), i(nt), u(nsigned), b(ool). ``bits`` is its meaning, ``bytes`` its storage."""

    name: str
    kind: str
    bits: int
    numpy: np.dtype
    onnx: int  # TensorProto.DataType

    @property
    def bytes(self) -> int:
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def compute(self) -> DType:
        """The type arithmetic is done in before rounding back to this one."""
        return F32 if self.is_float and self.bits < 32 else self

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


def _dtype(name: str, kind: str, bits: int, numpy: type, onnx: int) -> DType:
    return DType(name, kind, bits, np.dtype(numpy), onnx)


F64 = _dtype("f64", "f", 64, np.float64, 11)
F32 = _dtype("f32", "f", 32, np.float32, 1)
F16 = _dtype("f16", "f", 16, np.float16, 10)
BF16 = _dtype("bf16", "f", 16, ml_dtypes.bfloat16, 16)
F8E4M3FN = _dtype("f8e4m3fn", "f", 8, ml_dtypes.float8_e4m3fn, 17)
F8E4M3FNUZ = _dtype("f8e4m3fnuz", "f", 8, ml_dtypes.float8_e4m3fnuz, 18)
F8E5M2 = _dtype("f8e5m2", "f", 8, ml_dtypes.float8_e5m2, 19)
F8E5M2FNUZ = _dtype("f8e5m2fnuz", "f", 8, ml_dtypes.float8_e5m2fnuz, 20)
F8E8M0 = _dtype("f8e8m0", "f", 8, ml_dtypes.float8_e8m0fnu, 24)
F4E2M1 = _dtype("f4e2m1", "f", 4, ml_dtypes.float4_e2m1fn, 23)
I64 = _dtype("i64", "i", 64, np.int64, 7)
I32 = _dtype("i32", "i", 32, np.int32, 6)
I16 = _dtype("i16", "i", 16, np.int16, 5)
I8 = _dtype("i8", "i", 8, np.int8, 3)
I4 = _dtype("i4", "i", 4, ml_dtypes.int4, 22)
I2 = _dtype("i2", "i", 2, ml_dtypes.int2, 26)
U64 = _dtype("u64", "u", 64, np.uint64, 13)
U32 = _dtype("u32", "u", 32, np.uint32, 12)
U16 = _dtype("u16", "u", 16, np.uint16, 4)
U8 = _dtype("u8", "u", 8, np.uint8, 2)
U4 = _dtype("u4", "u", 4, ml_dtypes.uint4, 21)
U2 = _dtype("u2", "u", 2, ml_dtypes.uint2, 25)
BOOL = _dtype("bool", "b", 1, np.bool_, 9)

ALL = (
    F64, F32, F16, BF16, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1,
    I64, I32, I16, I8, I4, I2, U64, U32, U16, U8, U4, U2, BOOL,
)  # fmt: skip
BY_NAME = {dtype.name: dtype for dtype in ALL}
_BY_NUMPY = {dtype.numpy: dtype for dtype in ALL}
_BY_ONNX = {dtype.onnx: dtype for dtype in ALL}


def from_numpy(dtype: np.dtype | type) -> DType:
    """The element type of an array. Raises UnsupportedError for one that is not in the table."""
    found = _BY_NUMPY.get(np.dtype(dtype).newbyteorder("="))
    if found is None:
        raise UnsupportedError(f"arrays of dtype {np.dtype(dtype)} are not supported", hint=f"use one of {', '.join(BY_NAME)}")
    return found


def from_onnx(number: int) -> DType:
    """The element type of a TensorProto.DataType. Raises UnsupportedError by name for strings and complex numbers."""
    found = _BY_ONNX.get(number)
    if found is None:
        names = {0: "UNDEFINED", 8: "STRING", 14: "COMPLEX64", 15: "COMPLEX128"}
        raise UnsupportedError(f"the ONNX element type {names.get(number, number)} is not supported")
    return found
