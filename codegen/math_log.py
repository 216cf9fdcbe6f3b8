"""log and log1p for f32 and f64: the exponent from the bits, a polynomial for the mantissa in [sqrt(1/2), sqrt(2)).

    x = 2**e * (1 + f);  log(x) = e * ln 2 + log(1 + f), with ln 2 split so that e * ln2_high is exact
    f32: log(1 + f) = f - f*f/2 + f**3 * P(f)
    f64: log(1 + f) = f - f*f/2 + s * (f*f/2 + s*s * R(s*s)) with s = f / (2 + f), as in fdlibm's e_log.c

ULP (measured): log 0.9 (f32), 0.9 (f64); log1p 1.5, 0.9.
"""

from __future__ import annotations

import math

from tcompile.codegen.math_term import Term, constant, exponent_bias, float_bits, fma, horner, mantissa_bits, select, smallest_normal
from tcompile.ir.dtypes import F32, F64, U32, U64

_LN2 = {F32: (0.693145751953125, 1.4286068203094173e-06), F64: (0.6931471805598903, 5.497923018708371e-14)}
# minimax of the error relative to log(1 + f), coefficients rounded one by one
_P = (
    0.33333316445350647, -0.25000810623168945, 0.20002306997776031, -0.1662457138299942, 0.1418081521987915,
    -0.1312820464372635, 0.12883657217025757, -0.07863306254148483,
)  # fmt: skip
_R = (
    0.6666666666666731, 0.39999999999433317, 0.2857142873905026, 0.2222219885859633, 0.18183551826589678,
    0.15314319170771523, 0.14793722362788322,
)  # fmt: skip


def log(x: Term) -> Term:
    """The natural logarithm: -inf of 0, NaN below."""
    small = x < smallest_normal(x.dtype)
    width = mantissa_bits(x.dtype)
    f, e, _ = split(select(small, x * 2.0**width, x))
    return _ends(x, log_of_parts(f, e + select(small, constant(-width, x.dtype), 0.0)))


def log1p(x: Term) -> Term:
    """log(1 + x) without cancellation near 0."""
    u = x + 1.0
    # 1 + x == u + c exactly: c is what rounding lost
    c = select(x < 1.0, x - (u - 1.0), 1.0 - (u - x))
    tiny = 2.0 ** -(mantissa_bits(x.dtype) + 2)
    return select(abs(x) < tiny, x, _ends(u, log_of_sum(u, c)))


def log_of_sum(u: Term, c: Term, doublings: Term | float = 0.0) -> Term:
    """log((u + c) * 2**doublings) for normal u > 0 and a c below the last bit of u."""
    f, e, inverse = split(u)
    return log_of_parts(fma(c, inverse, f), e + doublings)


def split(x: Term) -> tuple[Term, Term, Term]:
    """(f, e, 2**-e) with x == (1 + f) * 2**e and 1 + f in [sqrt(1/2), sqrt(2)), for normal x > 0; 2**-e stops at 2**-120."""
    width, dtype = mantissa_bits(x.dtype), x.dtype
    unsigned = U32 if dtype == F32 else U64
    bias = exponent_bias(dtype)
    root = float_bits(math.sqrt(0.5), dtype)
    offset = x.bits(unsigned) + ((bias << width) - root)
    biased = offset >> width
    m = ((offset & ((1 << width) - 1)) + root).bits()
    # a small integer as the low mantissa bits of 2**width is that float plus the integer
    magic = 2.0**width
    e = (biased | float_bits(magic, dtype)).bits() - (magic + bias)
    inverse = (constant(2 * bias, unsigned) - biased.at_most(2 * bias - 7)) << width
    return m - 1.0, e, inverse.bits()


def log_of_parts(f: Term, e: Term) -> Term:
    """log((1 + f) * 2**e)."""
    high, low = _LN2[f.dtype]
    if f.dtype == F32:
        square = f * f
        tail = fma(e, low, square * f * horner(f, _P))
        return fma(e, high, f + fma(square, -0.5, tail))
    half = f * f * 0.5
    s = f / (f + 2.0)
    z = s * s
    tail = fma(e, low, s * fma(z, horner(z, _R), half))
    return fma(e, high, f - (half - tail))


def _ends(x: Term, value: Term) -> Term:
    """``value``, but -inf at x == 0, NaN for x < 0, x for infinity and NaN."""
    low = select(x.equals(0.0), constant(-math.inf, x.dtype), math.nan)
    return select(x < math.inf, select(x > 0.0, value, low), x)
