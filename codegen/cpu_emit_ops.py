"""The elementwise functions that are one or a few instructions, by name: ``OPS[fn](casts, dtype, *values)``.

dtype is the operands' (never a narrow float). Everything else of the table comes from ``math_expand``.
"""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_casts import Casts
from tcompile.codegen.cpu_emit_dots import add2, dot2, dot4, pairs4
from tcompile.codegen.cpu_emit_values import Value, literal, register_type
from tcompile.ir.dtypes import BOOL, DType

Emit = Callable[..., Value]
ZERO, ONE = Value("0"), Value("1")


def _simple(float_op: str, int_op: str) -> Emit:
    def emit(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
        result = ops.binary(casts.fn, float_op if dtype.is_float else int_op, register_type(dtype), a, b)
        return casts.wrapped(result, dtype)

    return emit


def _compare(name: str) -> Emit:
    def emit(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
        if dtype.is_float:
            opcode = "fcmp une" if name == "ne" else f"fcmp o{name}"
        elif name in ("eq", "ne"):
            opcode = f"icmp {name}"
        else:
            opcode = f"icmp {'s' if dtype.kind == 'i' else 'u'}{name}"
        return ops.binary(casts.fn, opcode, register_type(dtype), a, b)

    return emit


def _bitwise(opcode: str) -> Emit:
    def emit(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
        return ops.binary(casts.fn, opcode, register_type(dtype), a, b)

    return emit


def _safe_divisor(casts: Casts, dtype: DType, a: Value, b: Value) -> tuple[Value, Value | None]:
    """A divisor that cannot trap, and where b was 0. x / -1 of the least integer is made x / 1, which is as good."""
    fn, kind = casts.fn, register_type(dtype)
    if b.literal and not b.lanes and b.name not in ("0", "-1"):
        return b, None
    zero = ops.binary(fn, "icmp eq", kind, b, ZERO)
    bad = zero
    if dtype.kind == "i":
        least = ops.binary(fn, "icmp eq", kind, a, Value(str(-(1 << (max(dtype.bits, 8) - 1)))))
        negative = ops.binary(fn, "icmp eq", kind, b, Value("-1"))
        bad = ops.binary(fn, "or", "i1", zero, ops.binary(fn, "and", "i1", least, negative))
    return ops.select(fn, bad, kind, ONE, b), zero


def _or_zero(casts: Casts, dtype: DType, zero: Value | None, result: Value) -> Value:
    result = result if zero is None else ops.select(casts.fn, zero, register_type(dtype), ZERO, result)
    return casts.wrapped(result, dtype)


def _div(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
    kind = register_type(dtype)
    if dtype.is_float:
        return ops.binary(casts.fn, "fdiv", kind, a, b)
    divisor, zero = _safe_divisor(casts, dtype, a, b)
    return _or_zero(casts, dtype, zero, ops.binary(casts.fn, "sdiv" if dtype.kind == "i" else "udiv", kind, a, divisor))


def _remainder(casts: Casts, dtype: DType, a: Value, b: Value) -> tuple[Value, Value, Value | None]:
    divisor, zero = _safe_divisor(casts, dtype, a, b)
    return ops.binary(casts.fn, "srem" if dtype.kind == "i" else "urem", register_type(dtype), a, divisor), divisor, zero


def _fmod(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
    rest, _, zero = _remainder(casts, dtype, a, b)
    return _or_zero(casts, dtype, zero, rest)


def _mod(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
    fn, kind = casts.fn, register_type(dtype)
    rest, divisor, zero = _remainder(casts, dtype, a, b)
    if dtype.kind == "i":  # a remainder of the other sign moves by one divisor
        inexact = ops.binary(fn, "icmp ne", kind, rest, ZERO)
        differ = ops.binary(fn, "icmp slt", kind, ops.binary(fn, "xor", kind, rest, divisor), ZERO)
        moved = ops.binary(fn, "add", kind, rest, divisor)
        rest = ops.select(fn, ops.binary(fn, "and", "i1", inexact, differ), kind, moved, rest)
    return _or_zero(casts, dtype, zero, rest)


def _extreme(name: str) -> Emit:
    predicate = "fcmp ogt" if name == "max" else "fcmp olt"

    def emit(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
        fn, kind = casts.fn, register_type(dtype)
        if not dtype.is_float:
            return ops.call(fn, f"{'s' if dtype.kind == 'i' else 'u'}{name}", kind, a, b)
        if casts.nan_minmax:
            return ops.call(fn, f"{name}imum", kind, a, b)
        if b.nan_free:
            a, b = b, a

        best = ops.better(fn, predicate, kind, casts.lanes_of(dtype), a, b)
        if a.nan_free:
            return best
        return ops.select(fn, ops.binary(fn, "fcmp uno", kind, a, a), kind, a, best)

    return emit


def _neg(casts: Casts, dtype: DType, a: Value) -> Value:
    if dtype.is_float:
        return ops.unary(casts.fn, "fneg", register_type(dtype), a)
    return casts.wrapped(ops.binary(casts.fn, "sub", register_type(dtype), ZERO, a), dtype)


def _abs(casts: Casts, dtype: DType, a: Value) -> Value:
    if dtype.is_float:
        return ops.call(casts.fn, "fabs", register_type(dtype), a)
    return a if dtype.kind == "u" else casts.wrapped(ops.call(casts.fn, "abs", register_type(dtype), a, tail=", i1 false"), dtype)


def _sign(casts: Casts, dtype: DType, a: Value) -> Value:
    fn, kind = casts.fn, register_type(dtype)
    zero = literal(0, dtype)
    above = ops.binary(fn, "fcmp ogt" if dtype.is_float else "icmp ne" if dtype.kind == "u" else "icmp sgt", kind, a, zero)
    if dtype.kind == "u":
        return ops.select(fn, above, kind, ONE, ZERO)
    below = ops.binary(fn, "fcmp olt" if dtype.is_float else "icmp slt", kind, a, zero)
    rest = ops.select(fn, below, kind, literal(-1, dtype), a)  # 0, or NaN
    return ops.select(fn, above, kind, literal(1, dtype), rest)


def _rounding(intrinsic: str) -> Emit:
    return lambda casts, dtype, a: ops.call(casts.fn, intrinsic, register_type(dtype), a) if dtype.is_float else a


def _recip(casts: Casts, dtype: DType, a: Value) -> Value:
    return ops.binary(casts.fn, "fdiv", register_type(dtype), literal(1, dtype), a)


def _rsqrt(casts: Casts, dtype: DType, a: Value) -> Value:
    return _recip(casts, dtype, ops.call(casts.fn, "sqrt", register_type(dtype), a))


def _fma(casts: Casts, dtype: DType, a: Value, b: Value, c: Value) -> Value:
    return ops.call(casts.fn, "fma", register_type(dtype), a, b, c)


def _not(casts: Casts, dtype: DType, a: Value) -> Value:
    ones = Value("true" if dtype == BOOL else "-1")
    return casts.wrapped(ops.binary(casts.fn, "xor", register_type(dtype), a, ones), dtype)


def _shift(name: str) -> Emit:
    def emit(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
        fn, kind = casts.fn, register_type(dtype)
        opcode = "shl" if name == "shl" else "ashr" if dtype.kind == "i" else "lshr"
        if b.literal and not b.lanes:
            amount = int(b.name)
            inside = 0 <= amount < dtype.bits
            return casts.wrapped(ops.binary(fn, opcode, kind, a, b), dtype) if inside else ops.binary(fn, "and", kind, a, ZERO)
        inside = ops.binary(fn, "icmp ult", kind, b, Value(str(dtype.bits)))
        amount = ops.select(fn, inside, kind, b, ZERO)
        result = ops.select(fn, inside, kind, ops.binary(fn, opcode, kind, a, amount), ZERO)
        return casts.wrapped(result, dtype)

    return emit


def _isnan(casts: Casts, dtype: DType, a: Value) -> Value:
    return ops.binary(casts.fn, "fcmp uno", register_type(dtype), a, a)


def _isinf(casts: Casts, dtype: DType, a: Value) -> Value:
    size = ops.call(casts.fn, "fabs", register_type(dtype), a)
    return ops.binary(casts.fn, "fcmp oeq", register_type(dtype), size, Value("0x7FF0000000000000"))


OPS: dict[str, Emit] = {
    "add": _simple("fadd", "add"),
    "sub": _simple("fsub", "sub"),
    "mul": _simple("fmul", "mul"),
    "div": _div,
    "mod": _mod,
    "fmod": _fmod,  # of integers
    "min": _extreme("min"),
    "max": _extreme("max"),
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "ceil": _rounding("ceil"),
    "floor": _rounding("floor"),
    "round": _rounding("roundeven"),
    "trunc": _rounding("trunc"),
    "sqrt": _rounding("sqrt"),
    "rsqrt": _rsqrt,
    "recip": _recip,
    "fma": _fma,
    "and": _bitwise("and"),
    "or": _bitwise("or"),
    "xor": _bitwise("xor"),
    "not": _not,
    "shl": _shift("shl"),
    "shr": _shift("shr"),
    "eq": _compare("eq"),
    "ne": _compare("ne"),
    "lt": _compare("lt"),
    "le": _compare("le"),
    "gt": _compare("gt"),
    "ge": _compare("ge"),
    "isnan": _isnan,
    "isinf": _isinf,
    "dot2": dot2,
    "dot4": dot4,
    "add2": add2,
    "pairs4": pairs4,
}


def has(fn: str, dtype: DType) -> bool:
    """Whether a function is here for operands of a dtype."""
    return fn in OPS and not (fn == "fmod" and dtype.is_float)
