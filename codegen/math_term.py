"""Loop IR expressions written as formulas: ``Term`` gives an expression Python's operators.

Only what the code generators have as single instructions is here, so that whatever ``math_*.py`` builds is straight-line
code that vectorises. A Python number takes the type of the term beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcompile.ir.dtypes import BOOL, F32, F64, I32, I64, U32, U64, DType
from tcompile.ir.loops import Bitcast, Cast, Const, Expr, Op, Select

Number = int | float


@dataclass(frozen=True, eq=False)
class Term:
    """An expression with operators; comparisons give bool terms, ``&`` and ``|`` work on bools and integers."""

    expr: Expr

    @property
    def dtype(self) -> DType:
        return self.expr.dtype

    def __add__(self, other: Term | Number) -> Term:
        return self._binary("add", other)

    def __sub__(self, other: Term | Number) -> Term:
        return self._binary("sub", other)

    def __rsub__(self, other: Number) -> Term:
        return constant(other, self.dtype)._binary("sub", self)

    def __mul__(self, other: Term | Number) -> Term:
        return self._binary("mul", other)

    def __truediv__(self, other: Term | Number) -> Term:
        return self._binary("div", other)

    def __rtruediv__(self, other: Number) -> Term:
        return constant(other, self.dtype)._binary("div", self)

    def __and__(self, other: Term | Number) -> Term:
        return self._binary("and", other)

    def __or__(self, other: Term | Number) -> Term:
        return self._binary("or", other)

    def __xor__(self, other: Term | Number) -> Term:
        return self._binary("xor", other)

    def __lshift__(self, amount: Term | int) -> Term:
        return self._binary("shl", amount)

    def __rshift__(self, amount: Term | int) -> Term:
        return self._binary("shr", amount)

    def __lt__(self, other: Term | Number) -> Term:
        return self._compare("lt", other)

    def __le__(self, other: Term | Number) -> Term:
        return self._compare("le", other)

    def __gt__(self, other: Term | Number) -> Term:
        return self._compare("gt", other)

    def __ge__(self, other: Term | Number) -> Term:
        return self._compare("ge", other)

    def equals(self, other: Term | Number) -> Term:
        """self == other (``==`` itself stays identity)."""
        return self._compare("eq", other)

    def differs(self, other: Term | Number) -> Term:
        """self != other; true for NaN."""
        return self._compare("ne", other)

    def __neg__(self) -> Term:
        return self._unary("neg")

    def __abs__(self) -> Term:
        return self._unary("abs")

    def __invert__(self) -> Term:
        return self._unary("not")

    def __radd__(self, other: Number) -> Term:
        return self._binary("add", other)

    def __rmul__(self, other: Number) -> Term:
        return self._binary("mul", other)

    def trunc(self) -> Term:
        return self._unary("trunc")

    def round(self) -> Term:
        """To the nearest integer, half to even."""
        return self._unary("round")

    def sqrt(self) -> Term:
        return self._unary("sqrt")

    def at_most(self, other: Term | Number) -> Term:
        """The minimum, for integers (for floats see ``at_most``, which passes NaN on)."""
        return self._binary("min", other)

    def at_least(self, other: Term | Number) -> Term:
        """The maximum, for integers."""
        return self._binary("max", other)

    def cast(self, dtype: DType) -> Term:
        """The value as another type."""
        return self if dtype == self.dtype else Term(Cast(self.expr, dtype))

    def bits(self, dtype: DType | None = None) -> Term:
        """The same bits: a float as the signed integer of its width, or as ``dtype``."""
        return Term(Bitcast(self.expr, dtype or {F32: I32, F64: I64, I32: F32, I64: F64, U32: F32, U64: F64}[self.dtype]))

    def _lift(self, other: Term | Number) -> Term:
        return other if isinstance(other, Term) else constant(other, self.dtype)

    def _binary(self, fn: str, other: Term | Number) -> Term:
        return Term(Op(fn, (self.expr, self._lift(other).expr), self.dtype))

    def _compare(self, fn: str, other: Term | Number) -> Term:
        return Term(Op(fn, (self.expr, self._lift(other).expr), BOOL))

    def _unary(self, fn: str) -> Term:
        return Term(Op(fn, (self.expr,), self.dtype))


def constant(value: Number, dtype: DType) -> Term:
    """A constant of a type; floats round to it."""
    return Term(Const(float(dtype.numpy.type(value)) if dtype.is_float else int(value), dtype))


def fma(a: Term, b: Term | Number, c: Term | Number) -> Term:
    """a * b + c, rounded once."""
    return Term(Op("fma", (a.expr, a._lift(b).expr, a._lift(c).expr), a.dtype))


def select(cond: Term, then: Term | Number, otherwise: Term | Number) -> Term:
    """``then`` where cond, else ``otherwise``, at least one of which is a term."""
    then = then if isinstance(then, Term) else otherwise._lift(then)
    return Term(Select(cond.expr, then.expr, then._lift(otherwise).expr))


def horner(x: Term, coefficients: Sequence[float]) -> Term:
    """coefficients[0] + coefficients[1] * x + ..., by fma from the highest power down."""
    *rest, highest = coefficients
    total = constant(highest, x.dtype)
    for coefficient in reversed(rest):
        total = fma(total, x, coefficient)
    return total


def estrin(x: Term, square: Term, coefficients: Sequence[float]) -> Term:
    """``horner`` with half its latency: terms of a pair each by x, then the pairs by ``square``, which is x * x."""
    pairs = [coefficients[k : k + 2] for k in range(0, len(coefficients), 2)]
    total, *rest = [horner(x, pair) for pair in reversed(pairs)]
    for pair in rest:
        total = fma(total, square, pair)
    return total


def saturating_rational(x: Term, limit: float, numerator: Sequence[float], denominator: Sequence[float]) -> Term:
    """x * N(x*x) / D(x*x), an odd function that reaches 1 at ``limit``: clamped there, and in its value."""
    inside = at_most(at_least(x, -limit), limit)
    square = inside * inside
    return at_most(at_least(inside * horner(square, numerator) / horner(square, denominator), -1.0), 1.0)


def at_least(x: Term, low: float) -> Term:
    """max(x, low) that lets NaN through, in the operand order that is one instruction on x86."""
    bound = constant(low, x.dtype)
    return select(bound > x, bound, x)


def at_most(x: Term, high: float) -> Term:
    """min(x, high) that lets NaN through."""
    bound = constant(high, x.dtype)
    return select(bound < x, bound, x)


def sign_bit(x: Term) -> Term:
    """The sign of a float as an integer with only its highest bit."""
    return x.bits() & -(1 << (x.dtype.bits - 1))


def with_sign(size: Term, sign: Term) -> Term:
    """A float of clear sign bit given the sign of ``sign_bit``."""
    return (size.bits() | sign).bits()


def flip_sign(x: Term, sign: Term) -> Term:
    """x negated where ``sign`` (of ``sign_bit``) is set."""
    return (x.bits() ^ sign).bits()


def mantissa_bits(dtype: DType) -> int:
    """Stored mantissa bits of f32 or f64."""
    return 23 if dtype == F32 else 52


def exponent_bias(dtype: DType) -> int:
    """127 or 1023."""
    return 127 if dtype == F32 else 1023


def smallest_normal(dtype: DType) -> float:
    """2**-126 or 2**-1022."""
    return 2.0 ** (1 - exponent_bias(dtype))


def float_bits(value: float, dtype: DType) -> int:
    """The bits of a float constant as an unsigned integer."""
    return int(dtype.numpy.type(value).view(f"u{dtype.bytes}"))
