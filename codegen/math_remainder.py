"""fmod and mod of floats, exact for all arguments.

Long division in base 2**52: the divisor b times 2**(52 k), k downwards, leaves a remainder of at most that size; each
quotient digit has at most 52 bits, so the remainder comes exactly from one fma. f32 works in f64 with 6 digits, f64
takes 41. A digit rounded up leaves a negative remainder, which later digits and one final addition mend.
"""

from __future__ import annotations

import math

from tcompile.codegen.math_term import Term, constant, fma, select, sign_bit, with_sign
from tcompile.ir.dtypes import F32, F64


def fmod(x: Term, y: Term) -> Term:
    """x - trunc(x / y) * y, with the sign of x; NaN for an infinite x or y == 0, x for an infinite y."""
    a, b = abs(x).cast(F64), abs(y).cast(F64)
    rest = _long_division(a, b, digits=6 if x.dtype == F32 else 41)
    value = with_sign(select(rest < 0.0, rest + b, rest).cast(x.dtype), sign_bit(x))
    value = select(abs(x) < abs(y), x, value)
    valid = (abs(x) < math.inf) & y.differs(0.0) & y.equals(y)
    return select(valid, value, constant(math.nan, x.dtype))


def mod(x: Term, y: Term) -> Term:
    """x - floor(x / y) * y, with the sign of y."""
    rest = fmod(x, y)
    moved = select(((rest < 0.0) ^ (y < 0.0)) & rest.differs(0.0), rest + y, rest)
    return select(rest.equals(0.0), with_sign(abs(rest), sign_bit(y)), moved)


def _long_division(a: Term, b: Term, digits: int) -> Term:
    scaled = [b]
    for _ in range(digits - 1):
        scaled.append(scaled[-1] * 2.0**52)
    for divisor in reversed(scaled):
        quotient = (a / divisor).trunc()
        reduced = fma(-quotient, divisor, a)
        a = reduced if digits <= 6 else select(abs(a) < divisor, a, reduced)  # an overflown divisor: 0 * infinity
    return a
