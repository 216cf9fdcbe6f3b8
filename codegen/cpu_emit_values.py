"""SSA values of the LLVM emitter, the LLVM types of element types, and literals.

Register forms: bool is i1; sub-byte integers are i8, normalised to their range; floats narrower than f32 are kept
as an f32 of the same value, or as their stored bits, whichever was made first (``Value.name`` None: only bits).
"""

from __future__ import annotations

import struct

import numpy as np

from tcompile.ir.dtypes import DType


class Value:
    """An SSA name or literal. ``lanes`` 0 is a scalar; ``depth`` is the scope (see ``Function``) it is available in."""

    __slots__ = ("bits", "depth", "lanes", "name", "nan_free", "narrow")

    def __init__(self, name: str | None, depth: int = 0, lanes: int = 0, bits: str | None = None) -> None:
        self.name = name
        self.depth = depth
        self.lanes = lanes
        self.bits = bits  # stored form of a narrow float
        self.narrow: Value | None = None  # the same value in its other form, once made
        self.nan_free = False  # known to be no NaN: a constant

    @property
    def literal(self) -> bool:
        """Whether this is a constant of the text."""
        return self.name is not None and not self.name.startswith("%")


def is_narrow(dtype: DType) -> bool:
    """Whether values of a dtype are floats computed in f32."""
    return dtype.is_float and dtype.bits < 32


def register_type(dtype: DType) -> str:
    """The LLVM scalar type of values in registers."""
    if dtype.kind == "b":
        return "i1"
    if dtype.is_float:
        return "double" if dtype.bits == 64 else "float"
    return f"i{max(dtype.bits, 8)}"


def memory_type(dtype: DType) -> str:
    """The LLVM scalar type of elements in memory."""
    if dtype.is_float and dtype.bits >= 32:
        return "double" if dtype.bits == 64 else "float"
    return f"i{8 * dtype.bytes}"


def vector(scalar: str, lanes: int) -> str:
    """The LLVM type of ``lanes`` elements; the scalar itself for 0 lanes."""
    return f"<{lanes} x {scalar}>" if lanes else scalar


_SUFFIX = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}


def suffix(scalar: str, lanes: int) -> str:
    """The mangling of a type in names of LLVM intrinsics."""
    name = _SUFFIX.get(scalar, scalar)
    return f"v{lanes}{name}" if lanes else name


def float_literal(value: float) -> str:
    """A float or double literal: the bits of the double."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def literal(value: int | float | bool, dtype: DType) -> Value:
    """A constant of a dtype; integers wrap to its width."""
    if dtype.kind == "b":
        return Value("true" if value else "false")
    if dtype.is_integer:
        return Value(str(_wrap(int(value), dtype)))
    with np.errstate(all="ignore"):
        rounded = np.asarray(value).astype(dtype.numpy)
    result = Value(float_literal(float(rounded)))
    result.nan_free = not np.isnan(float(rounded))
    if is_narrow(dtype):
        result.bits = str(int(rounded.view(f"u{dtype.bytes}")))
    return result


def _wrap(value: int, dtype: DType) -> int:
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.kind == "i" and value >> (dtype.bits - 1) else value
