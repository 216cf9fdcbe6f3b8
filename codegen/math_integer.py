"""pow of integers, by repeated squaring; results wrap."""

from __future__ import annotations

from tcompile.codegen.math_term import Term, constant, select


def power(x: Term, y: Term) -> Term:
    """x**y; for a negative y, 1 / x**-y truncated: 0 unless x is 1 or -1."""
    one, zero = constant(1, x.dtype), constant(0, x.dtype)
    result, square = one, x
    for bit in range(x.dtype.bits - (x.dtype.kind == "i")):
        result = select((y & (1 << bit)).differs(0), result * square, result)
        square = square * square
    if x.dtype.kind == "u":
        return result
    odd = (y & 1).differs(0)
    unit = select(x.equals(1), one, select(x.equals(-1), select(odd, constant(-1, x.dtype), one), zero))
    return select(y < 0, unit, result)
