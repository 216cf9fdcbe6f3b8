"""Small constructors of Loop IR expressions: constants, operations, comparisons of indices, guards.

Narrow floats are made explicit here: an operation on f16, bf16 or f8 values is done in f32 and rounded
after each operation, so that every stage below sees arithmetic in f32 and f64 only.
"""

from __future__ import annotations

import math

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges
from tcompile.ir.dtypes import BOOL, I64, DType
from tcompile.ir.loops import Cast, Const, Expr, Index, Op, Select

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf"})


def const(value: int | float | bool, dtype: DType) -> Const:
    """A constant; integers wrap, floats round to ``dtype``."""
    return Const(dtype.numpy.type(value).item() if not dtype.is_float else float(dtype.numpy.type(value)), dtype)


def cast(arg: Expr, dtype: DType, *, saturate: bool = True) -> Expr:
    """A conversion, or the expression itself where it has the type already."""
    return arg if arg.dtype == dtype else Cast(arg, dtype, saturate)


def rounded(result: Expr, dtype: DType) -> Expr:
    """A result of arithmetic in its own type: what is too large becomes what the format has for it, infinity or NaN."""
    return cast(result, dtype, saturate=False)


def op(fn: str, *args: Expr) -> Expr:
    """An elementwise function of operands of one dtype (``where``: bool and two of one)."""
    if fn == "where":
        return select(*args)
    dtype = args[0].dtype
    wide = [cast(arg, arg.dtype.compute) for arg in args]
    if fn in COMPARISONS:
        return Op(fn, tuple(wide), BOOL)
    return rounded(Op(fn, tuple(wide), dtype.compute), dtype)


def select(cond: Expr, then: Expr, otherwise: Expr) -> Expr:
    """``then`` where cond; folded where cond is constant."""
    if isinstance(cond, Const):
        return then if cond.value else otherwise
    return then if then is otherwise else Select(cond, then, otherwise)


def both(a: Expr | None, b: Expr | None) -> Expr | None:
    """The conjunction of two guards; None is true."""
    if a is None or b is None:
        return b if a is None else a
    return Op("and", (a, b), BOOL)


def negation(cond: Expr) -> Expr:
    """not cond."""
    return Op("not", (cond,), BOOL)


def compare(fn: str, a: DimLike, b: DimLike) -> Expr:
    """A comparison of two index expressions."""
    return Op(fn, (_index(a), _index(b)), BOOL)


def within(index: DimLike, extent: DimLike, ranges: Ranges) -> Expr | None:
    """0 <= index < extent as a guard; None where the ranges prove it."""
    low = None if dims.nonnegative(index, ranges) else compare("ge", index, 0)
    high = None if dims.nonnegative(extent - 1 - index, ranges) else compare("lt", index, extent)
    return both(low, high)


def index_value(expr: DimLike, dtype: DType = I64) -> Expr:
    """The value of an index expression as an element."""
    return const(expr, dtype) if isinstance(expr, int) else cast(Index(expr), dtype)


def identity(fn: str, dtype: DType) -> Const:
    """The neutral element of add, mul, min, max, and, or."""
    if fn in ("add", "or"):
        return const(0, dtype)
    if fn == "mul":
        return const(1, dtype)
    if fn == "and":
        return Const(True, BOOL) if dtype == BOOL else const(-1 if dtype.kind == "i" else (1 << dtype.bits) - 1, dtype)
    return lowest(dtype) if fn == "max" else highest(dtype)


def lowest(dtype: DType) -> Const:
    """The value below all others: -inf, or the least integer."""
    if dtype.is_float:
        return Const(-math.inf, dtype)
    return Const(False, dtype) if dtype == BOOL else Const(-(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0, dtype)


def highest(dtype: DType) -> Const:
    """The value above all others: inf, or the greatest integer."""
    if dtype.is_float:
        return Const(math.inf, dtype)
    return Const(True, dtype) if dtype == BOOL else Const((1 << (dtype.bits - (dtype.kind == "i"))) - 1, dtype)


def accumulator(dtype: DType) -> DType:
    """The type that sums of ``dtype`` are kept in: f32 for narrow floats, itself otherwise."""
    return dtype.compute


def _index(expr: DimLike) -> Expr:
    return Const(expr, I64) if isinstance(expr, int) else Index(expr)
