"""The meaning of conversions between element types, in NumPy: what ``convert`` and Loop IR ``Cast`` do.

float -> int truncates towards zero and saturates, NaN gives 0; int -> int keeps the low bits; anything -> bool
is ``!= 0``; f64 -> a narrower float rounds once (to nearest even); an integer reaches a narrow float through f32.
f8 overflow: with ``saturate`` the largest finite value (also for infinity), else what the format has (infinity
or NaN), as ONNX Cast-19 says.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dtypes import DType


def convert(array: np.ndarray, dtype: DType, *, saturate: bool = True) -> np.ndarray:
    """The array as another element type; never raises, never warns."""
    source = dtypes.from_numpy(array.dtype)
    if source == dtype:
        return array
    with np.errstate(all="ignore"):
        if dtype.kind == "b":
            return _widen(array, source) != 0
        if dtype.is_integer:
            return _float_to_int(_widen(array, source), dtype) if source.is_float else wrap(_widen(array, source), dtype)
        if dtype.bits >= 32:
            return _widen(array, source).astype(dtype.numpy)
        return _to_narrow_float(array, source, dtype, saturate=saturate)


def wrap(array: np.ndarray, dtype: DType) -> np.ndarray:
    """Integers (or bools) of any NumPy type kept to the low bits of an integer type, sub-byte ones included."""
    if dtype.bits >= 8:
        return np.asarray(array).astype(dtype.numpy)
    low = np.asarray(array).astype(np.uint8) & np.uint8((1 << dtype.bits) - 1)
    if dtype.kind == "i":
        sign = np.uint8(1 << (dtype.bits - 1))
        return ((low ^ sign).astype(np.int8) - sign.astype(np.int8)).astype(dtype.numpy)
    return low.astype(dtype.numpy)


def bitcast(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The same bits as a type of the same width. A sub-byte type's stored byte is normalised on the way."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if dtype.bits >= 8 or dtype.kind == "b":
        return array.view(dtype.numpy)
    if dtype.is_integer:
        return wrap(array.view(np.uint8), dtype)
    return (array.view(np.uint8) & np.uint8((1 << dtype.bits) - 1)).view(dtype.numpy)


def integer_limits(dtype: DType) -> tuple[int, int]:
    """The smallest and the largest value of an integer type."""
    if dtype.kind == "u":
        return 0, (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1


def float_max(dtype: DType) -> float:
    """The largest finite value of a float type."""
    return float(ml_dtypes.finfo(dtype.numpy).max)


def _widen(array: np.ndarray, source: DType) -> np.ndarray:
    """A NumPy-native array of the same values, for the types that are ml_dtypes'."""
    if source.is_float and source.bits < 32:
        return array.astype(np.float32)
    if source.bits < 8 and source.is_integer:
        return array.astype(np.int8 if source.kind == "i" else np.uint8)
    return array


def _float_to_int(array: np.ndarray, dtype: DType) -> np.ndarray:
    low, high = integer_limits(dtype)
    # 2**bits - 1 is no float of every width, but the power of two above it is: compare with that
    whole = np.trunc(array)
    inside = (whole >= float(low)) & (whole < float(high + 1))
    wide = np.int64 if dtype.kind == "i" else np.uint64
    values = np.where(inside, whole, 0).astype(wide)
    values = np.where(whole >= float(high + 1), wide(high), values)
    values = np.where(whole < float(low), wide(low & 0xFFFFFFFFFFFFFFFF) if dtype.kind == "u" else wide(low), values)
    return wrap(values, dtype)


def _to_narrow_float(array: np.ndarray, source: DType, dtype: DType, *, saturate: bool) -> np.ndarray:
    if source == dtypes.F64 and dtype != dtypes.F16:
        array = _round_to_odd(array)
    elif source != dtypes.F64:
        array = _widen(array, source).astype(np.float32)
    if dtype == dtypes.F4E2M1 or (saturate and dtype.bits == 8 and dtype != dtypes.F8E8M0):
        limit = array.dtype.type(float_max(dtype))
        array = np.clip(array, -limit, limit)
    return array.astype(dtype.numpy)


def _round_to_odd(array: np.ndarray) -> np.ndarray:
    """f64 -> f32 such that rounding the result again to a narrower float equals rounding once.

    Of the two neighbours in f32, an inexact value takes the one whose last mantissa bit is odd.
    """
    near = array.astype(np.float32)
    wide = near.astype(np.float64)
    even = (near.view(np.uint32) & 1) == 0
    towards = np.where(array > wide, np.float32(np.inf), np.float32(-np.inf))
    nudge = even & (wide != array) & np.isfinite(array) & np.isfinite(near)
    return np.where(nudge, np.nextafter(near, towards), near)
