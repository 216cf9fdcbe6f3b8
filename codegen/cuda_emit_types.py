"""C types, literals and names of the CUDA emitter.

A value of a narrow float (f16, bf16, the f8 kinds, f4) is held as its stored bits, an unsigned integer under a typedef of
the type's name; sub-byte integers are held in a byte, normalised to their range, as on the CPU.
"""

from __future__ import annotations

import math
import re

import numpy as np

from tcompile.ir.dtypes import BOOL, F32, F64, DType

_INTEGERS = {8: "char", 16: "short", 32: "int", 64: "long long"}
_WORDS = """
    alignas alignof and asm auto bool break case catch char class const constexpr continue default delete do double else enum
    extern false float for friend goto if inline int long min max namespace new not operator or private protected public register
    return short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void
    volatile while xor status ok abs round floor ceil sqrt fma trunc exp log sin cos tan pow threadIdx blockIdx blockDim gridDim warpSize
    f16 bf16 f8e4m3fn f8e4m3fnuz f8e5m2 f8e5m2fnuz f8e8m0 f4e2m1 uint2 uint4 ulonglong2
"""
RESERVED = frozenset(_WORDS.split())


def is_narrow(dtype: DType) -> bool:
    """Whether values of a dtype are floats computed in f32."""
    return dtype.is_float and dtype.bits < 32


def is_sub_byte(dtype: DType) -> bool:
    """Whether a dtype is an integer narrower than its storage."""
    return dtype.is_integer and dtype.bits < 8


def c_type(dtype: DType) -> str:
    """The C type of values of a dtype, in registers and in memory."""
    if dtype == BOOL:
        return "bool"
    if dtype.is_float:
        return {64: "double", 32: "float"}.get(dtype.bits, dtype.name)
    plain = _INTEGERS[max(dtype.bits, 8)]
    if dtype.kind == "u":
        return f"unsigned {plain}"
    return "signed char" if plain == "char" else plain


def bits_type(dtype: DType) -> str:
    """The unsigned integer type of a dtype's storage."""
    return f"unsigned {_INTEGERS[8 * dtype.bytes]}"


def c_name(name: str) -> str:
    """A C identifier for a name of the Loop IR: words keep their text."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not word or word[0].isdigit() or word in RESERVED or word.startswith(("tc_", "__")):
        word = f"n_{word}"
    return word


def literal(value: int | float | bool, dtype: DType) -> str:
    """A constant of a dtype; integers wrap to its width, floats round to it."""
    if dtype == BOOL:
        return "true" if value else "false"
    if dtype.is_integer:
        return _integer(int(value), dtype)
    with np.errstate(all="ignore"):
        rounded = np.asarray(value).astype(dtype.numpy)
    if is_narrow(dtype):
        return f"{dtype.name}({int(rounded.view(f'u{dtype.bytes}')):#x})"
    return _float(float(rounded), dtype)


def wrapped(value: int, dtype: DType) -> int:
    """An integer brought to the range of its type."""
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.kind == "i" and value >> (dtype.bits - 1) else value


def _integer(value: int, dtype: DType) -> str:
    value = wrapped(value, dtype)
    if dtype.bits == 64:
        if dtype.kind == "u":
            return f"{value}ull"
        return "(-9223372036854775807ll - 1)" if value == -(2**63) else _signed(value, "ll")
    if dtype.bits == 32:
        if dtype.kind == "u":
            return f"{value}u"
        return "(-2147483647 - 1)" if value == -(2**31) else _signed(value, "")
    return _signed(value, "")


def _signed(value: int, suffix: str) -> str:
    return f"({value}{suffix})" if value < 0 else f"{value}{suffix}"


def _float(value: float, dtype: DType) -> str:
    if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
        if dtype == F32:
            return f"__uint_as_float({int(np.float32(value).view(np.uint32)):#x}u)"
        return f"__longlong_as_double({int(np.float64(value).view(np.int64)):#x}ll)" if value > 0 else _negative_f64(value)
    text = str(np.float32(value)) if dtype == F32 else repr(value)
    text = text if any(mark in text for mark in ".e") else f"{text}.0"
    text = f"{text}f" if dtype == F32 else text
    return f"({text})" if value < 0 else text


def _negative_f64(value: float) -> str:
    """-inf, -0.0 and NaN."""
    if math.isnan(value):
        return "__longlong_as_double(0x7ff8000000000000ll)"
    return "__longlong_as_double(0x7ff0000000000000ll ^ (-9223372036854775807ll - 1))" if value else "(-0.0)"


FLOATS = (F32, F64)
