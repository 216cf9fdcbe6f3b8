"""Quantisation on x86: f32 to 8- and 16-bit integers where the value is clamped to their range already.

    convert(min(max(round(x), low), high))     vmaxps, vminps, vcvtps2dq, and a truncation of lanes

The conversion rounds to nearest even itself, as every worker's control word says; rounding before a clamp to whole
numbers is rounding after it. What is NaN becomes the least i32, whose low 16 bits are zeros: 0, as ``convert`` means it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_casts import Casts
from tcompile.codegen.cpu_emit_values import Value, register_type
from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import F32
from tcompile.ir.loops import Cast, Const, Expr, Op

_NAMES = {
    (4, True): "sse2.cvtps2dq",
    (8, True): "avx.cvt.ps2dq.256",
    (16, True): "avx512.mask.cvtps2dq.512",
    (4, False): "sse2.cvttps2dq",
    (8, False): "avx.cvtt.ps2dq.256",
    (16, False): "avx512.mask.cvttps2dq.512",
}


@dataclass(frozen=True)
class Clamped:
    """The clamped value to convert, and whether the conversion must round it (to nearest even) rather than truncate."""

    value: Expr
    rounds: bool


def clamped_inside(cast: Cast) -> Clamped | None:
    """What to convert for a cast of an f32 that is known to be within the limits of the integers, or NaN."""
    if cast.arg.dtype != F32 or not cast.dtype.is_integer or not 8 <= cast.dtype.bits <= 16:
        return None
    inner, bounds = cast.arg, {}
    while isinstance(inner, Op) and inner.fn in ("min", "max") and isinstance(inner.args[1], Const) and inner.fn not in bounds:
        bounds[inner.fn] = inner.args[1].value
        inner = inner.args[0]
    low, high = integer_limits(cast.dtype)
    if len(bounds) < 2 or not low <= bounds["max"] <= bounds["min"] <= high:
        return None
    whole = all(float(bound).is_integer() for bound in bounds.values())
    if not (whole and isinstance(inner, Op) and inner.fn == "round"):
        return Clamped(cast.arg, rounds=False)
    above = Op("max", (inner.args[0], Const(float(bounds["max"]), F32)), F32)
    return Clamped(Op("min", (above, Const(float(bounds["min"]), F32)), F32), rounds=True)


def emit(casts: Casts, value: Value, target, *, rounds: bool) -> Value:
    """The conversion of f32 lanes in the range of ``target``, or NaN, which gives 0."""
    if (value.lanes, rounds) in _NAMES or value.lanes > casts.lanes_of(F32):
        whole = ops.pieces_as(casts.fn, "i32", casts.lanes_of(F32), lambda part: _words(casts, part, rounds=rounds), value, "float")
        return ops.convert(casts.fn, "trunc", "i32", register_type(target), whole)
    if rounds:
        value = ops.call(casts.fn, "roundeven", "float", value)
    return casts.convert(value, F32, target)


def _words(casts: Casts, value: Value, *, rounds: bool) -> Value:
    lanes = value.lanes
    name = _NAMES[lanes, rounds]
    masked = f", <{lanes} x i32> zeroinitializer, i16 -1, i32 4" if "mask" in name else ""  # 4: the rounding of the control word
    text = f"call <{lanes} x i32> @llvm.x86.{name}(<{lanes} x float> {value.name}{masked})"
    return Value(casts.fn.pure(text, value.depth), value.depth, lanes)
