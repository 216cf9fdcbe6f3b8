"""The elementwise functions that are one or a few C operations: ``OPS[fn](dtype, uses, *texts)``.

dtype is the operands' (never a narrow float); texts bind as tight as a cast, and so does what is returned. The operations
are the CPU emitter's (``codegen/cpu_emit_ops.py``), in the same order, so that float32 results have the same bits.
Everything else of the table comes from ``math_expand``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tcompile.codegen.cuda_emit_casts import wrapped
from tcompile.codegen.cuda_emit_types import c_type, literal
from tcompile.ir.dtypes import BOOL, F32, DType

Uses = Callable[[str], None]
Emit = Callable[..., str]
_NUMBER = re.compile(r"\(?-?\d[\w.+-]*\)?")
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _modular(text: str, dtype: DType) -> str:
    """An operand of arithmetic that wraps."""
    return text if dtype.kind == "u" and dtype.bits >= 32 else f"(unsigned{' long long' if dtype.bits == 64 else ''}){text}"


def _arithmetic(sign: str) -> Emit:
    def emit(dtype: DType, uses: Uses, a: str, b: str) -> str:
        if dtype.is_float:
            return f"({a} {sign} {b})"
        return wrapped(f"({_modular(a, dtype)} {sign} {_modular(b, dtype)})", dtype)

    return emit


def _bitwise(sign: str) -> Emit:
    def emit(dtype: DType, uses: Uses, a: str, b: str) -> str:
        if dtype == BOOL:
            # both sides are values, so && and || may skip one
            return f"({a} {'!=' if sign == '^' else sign * 2} {b})"
        return f"({c_type(dtype)})({a} {sign} {b})"

    return emit


def _compare(name: str) -> Emit:
    return lambda dtype, uses, a, b: f"({a} {_COMPARISONS[name]} {b})"


def _helper(name: str, *needs: str) -> Emit:
    def emit(dtype: DType, uses: Uses, a: str, b: str) -> str:
        for need in (name, *needs):
            uses(need)
        kind = c_type(dtype)
        return wrapped(f"{name}<{kind}>({a}, {b})", dtype) if dtype.bits < 8 else f"{name}<{kind}>({a}, {b})"

    return emit


def _div(dtype: DType, uses: Uses, a: str, b: str) -> str:
    if dtype.is_float:
        return f"({a} / {b})"
    if _NUMBER.fullmatch(b) and b.strip("()").rstrip("ul") not in ("0", "-1"):
        return wrapped(f"({a} / {b})", dtype)
    return _helper("tc_div")(dtype, uses, a, b)


def _extreme(name: str) -> Emit:
    sign = ">" if name == "max" else "<"

    def emit(dtype: DType, uses: Uses, a: str, b: str) -> str:
        if not dtype.is_float:
            return f"({a} {sign} {b} ? {a} : {b})"
        if _NUMBER.fullmatch(b):
            a, b = b, a
        if _NUMBER.fullmatch(a):  # a NaN can only be the other one, and fails the comparison
            return f"({a} {sign} {b} ? {a} : {b})"
        return f"({a} {sign} {b} || {a} != {a} ? {a} : {b})"

    return emit


def _neg(dtype: DType, uses: Uses, a: str) -> str:
    if dtype.is_float:
        return f"(-{a})"
    return wrapped(f"(0 - {_modular(a, dtype)})", dtype)


def _abs(dtype: DType, uses: Uses, a: str) -> str:
    if dtype.is_float:
        return f"{'fabsf' if dtype == F32 else 'fabs'}({a})"
    return a if dtype.kind == "u" else f"({a} < 0 ? {_neg(dtype, uses, a)} : {a})"


def _sign(dtype: DType, uses: Uses, a: str) -> str:
    one, minus = literal(1, dtype), literal(-1, dtype)
    if dtype.kind == "u":
        return f"({c_type(dtype)})({a} != 0)"
    return f"({a} > 0 ? {one} : {a} < 0 ? {minus} : {a})"  # 0 or NaN stays


def _function(name: str) -> Emit:
    return lambda dtype, uses, *args: f"{name}{'f' if dtype == F32 else ''}({', '.join(args)})"


def _rounding(name: str) -> Emit:
    return lambda dtype, uses, a: _function(name)(dtype, uses, a) if dtype.is_float else a


def _recip(dtype: DType, uses: Uses, a: str) -> str:
    return f"({literal(1, dtype)} / {a})"


def _not(dtype: DType, uses: Uses, a: str) -> str:
    return f"(!{a})" if dtype == BOOL else wrapped(f"(~{a})", dtype)


def _shift(name: str) -> Emit:
    def emit(dtype: DType, uses: Uses, a: str, b: str) -> str:
        if not re.fullmatch(r"\(?-?\d+[ul]*\)?", b):
            uses(f"tc_{name}")
            return wrapped(f"tc_{name}<{c_type(dtype)}>({a}, {b}, {dtype.bits})", dtype)
        amount = int(b.strip("()").rstrip("ul"))
        if not 0 <= amount < dtype.bits:
            return literal(0, dtype)
        return wrapped(f"({_modular(a, dtype)} << {amount})" if name == "shl" else f"({a} >> {amount})", dtype)

    return emit


def _dot(name: str) -> Emit:
    def emit(dtype: DType, uses: Uses, a: str, b: str, c: str) -> str:
        uses(f"tc_{name}")
        return f"tc_{name}({a}, {b}, {c})"

    return emit


def _halves(name: str) -> Emit:
    def emit(dtype: DType, uses: Uses, a: str, b: str) -> str:
        uses(f"tc_{name}")
        return f"tc_{name}({a}, {b})"

    return emit


def _isinf(dtype: DType, uses: Uses, a: str) -> str:
    return f"({_abs(dtype, uses, a)} == {literal(float('inf'), dtype)})"


OPS: dict[str, Emit] = {
    "add": _arithmetic("+"),
    "sub": _arithmetic("-"),
    "mul": _arithmetic("*"),
    "div": _div,
    "mod": _helper("tc_imod", "tc_rem"),
    "fmod": _helper("tc_rem"),  # of integers
    "min": _extreme("min"),
    "max": _extreme("max"),
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "ceil": _rounding("ceil"),
    "floor": _rounding("floor"),
    "round": _rounding("rint"),
    "trunc": _rounding("trunc"),
    "sqrt": _function("sqrt"),
    "rsqrt": lambda dtype, uses, a: _recip(dtype, uses, _function("sqrt")(dtype, uses, a)),
    "recip": _recip,
    "fma": _function("fma"),
    "dot2": _dot("dot2"),
    "dot4": _dot("dot4"),
    "add2": _halves("add2"),
    "pairs4": _halves("pairs4"),
    "and": _bitwise("&"),
    "or": _bitwise("|"),
    "xor": _bitwise("^"),
    "not": _not,
    "shl": _shift("shl"),
    "shr": _shift("shr"),
    **{name: _compare(name) for name in _COMPARISONS},
    "isnan": lambda dtype, uses, a: f"({a} != {a})",
    "isinf": _isinf,
}
# functions whose text names an operand twice: the operand gets a variable first
REPEATS = frozenset(("min", "max", "abs", "sign", "isnan"))


def has(fn: str, dtype: DType) -> bool:
    """Whether a function is here for operands of a dtype."""
    return fn in OPS and not (fn == "fmod" and dtype.is_float)
