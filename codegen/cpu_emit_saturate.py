"""Float to integer: truncation that saturates, with 0 for NaN.

A plain LLVM conversion of a value out of range is poison, and LLVM takes its saturating intrinsic apart lane by lane
on x86; so values are brought into range first, by as few vector instructions as the types allow.
"""

from __future__ import annotations

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value, float_literal, literal, register_type, suffix, vector
from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import DType


def by_intrinsic(fn: Function, value: Value, source: DType, target: DType) -> Value:
    """For machines whose conversions saturate."""
    have, want = register_type(source), register_type(target)
    name = f"fpto{'s' if target.kind == 'i' else 'u'}i.sat.{suffix(want, value.lanes)}.{suffix(have, value.lanes)}"
    text = f"call {vector(want, value.lanes)} @llvm.{name}({vector(have, value.lanes)} {value.name})"
    whole = Value(fn.pure(text, value.depth), value.depth, value.lanes)
    if target.bits >= 8:
        return whole
    low, high = (Value(str(limit)) for limit in integer_limits(target))
    if target.kind == "u":
        return ops.call(fn, "umin", want, whole, high)
    return ops.call(fn, "smin", want, ops.call(fn, "smax", want, whole, low), high)


def clamped(fn: Function, value: Value, source: DType, target: DType, lanes: int) -> Value:
    """For integers whose limits are exact in the float type. ``lanes``: of one vector register.

    Only where LLVM leaves ``a > b ? a : b`` its meaning for signalling NaN: on x86, not on AArch64.
    """
    kind = register_type(source)
    low, high = (Value(float_literal(limit)) for limit in integer_limits(target))
    zero = literal(0, source)
    if target.kind == "i":
        number = ops.binary(fn, "fcmp ord", kind, value, value)
        value = ops.select(fn, number, kind, value, zero)
    above = ops.better(fn, "fcmp ogt", kind, lanes, value, low)  # low where the value is NaN: 0, for unsigned types
    inside = ops.better(fn, "fcmp olt", kind, lanes, above, high)
    if target.kind == "u" and target.bits == 32:
        return ops.convert(fn, "fptoui", kind, "i32", inside)
    whole = ops.convert(fn, "fptosi", kind, "i32", inside)
    return whole if target.bits == 32 else ops.convert(fn, "trunc", "i32", register_type(target), whole)


def guarded(fn: Function, value: Value, source: DType, target: DType) -> Value:
    """For integers as wide as the float or wider: converts what is in range, then puts the limits where it was not."""
    kind, want = register_type(source), register_type(target)
    low, high = integer_limits(target)
    bound, zero = Value(float_literal(float(high + 1))), literal(0, source)
    if target.kind == "u":
        value = ops.select(fn, ops.binary(fn, "fcmp ogt", kind, value, zero), kind, value, zero)
    size = value if target.kind == "u" else ops.call(fn, "fabs", kind, value)
    safe = ops.select(fn, ops.binary(fn, "fcmp olt", kind, size, bound), kind, value, zero)
    result = ops.convert(fn, "fptosi" if target.kind == "i" else "fptoui", kind, want, safe)
    result = ops.select(fn, ops.binary(fn, "fcmp oge", kind, value, bound), want, Value(str(high)), result)
    if target.kind == "u":
        return result
    least = Value(float_literal(float(low)))
    return ops.select(fn, ops.binary(fn, "fcmp ole", kind, value, least), want, Value(str(low)), result)
