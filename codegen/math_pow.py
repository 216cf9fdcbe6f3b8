"""pow for f32 and f64: 2**(y * log2 |x|), with the special cases of C99's pow.

    log2(x) = e + log2(m);  log2(m) = s * L(s*s) with s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2))

f32 works in f64. f64 needs log2 to some 70 bits, because y multiplies its error by up to 1024: pairs of f64.
ULP (measured): 0.6 (f32), 1.2 (f64).
"""

from __future__ import annotations

import math

from tcompile.codegen.math_exp import power_of_two
from tcompile.codegen.math_log import split
from tcompile.codegen.math_term import Term, at_least, at_most, constant, flip_sign, fma, horner, select, sign_bit, smallest_normal
from tcompile.ir.dtypes import F32, F64

# minimax, relative to log2(m)
_LOG2_SHORT = (2.8853900817900926, 0.9617966733333694, 0.5770835866756298, 0.411672610768544, 0.3407322047865305)
_LOG2_C1 = (2.8853900817779268, 4.0710547481862066e-17)  # 2 / ln 2
_LOG2_C3 = (0.9617966939259756, 5.0577616648125907e-17)  # 2 / (3 ln 2)
_LOG2_TAIL = (
    0.5770780163556176, 0.4121985830920602, 0.32059890225505727, 0.2623077025536229, 0.22198393881856648, 0.19125640494420895,
    0.1903748689798736,
)  # fmt: skip
# 2**r for |r| <= 1/2, minimax relative
_EXP2_SHORT = (
    1.0000000005550496, 0.6931472057671366, 0.24022646886078522, 0.055503287118111255, 0.00961848924463907, 0.0013399957625640482,
    0.00015345788899370368,
)  # fmt: skip
_EXP2 = (
    1.0, 0.6931471805599453, 0.24022650695910155, 0.05550410866481992, 0.009618129107588271, 0.001333355814679053,
    0.00015403530462597168, 1.5252733489581744e-05, 1.3215433046814538e-06, 1.0178198124017237e-07, 7.074113277466078e-09,
    4.4352766593819917e-10,
)  # fmt: skip
_MAGIC = 1.5 * 2.0**52


def power(x: Term, y: Term) -> Term:
    """x**y."""
    if x.dtype == F32:
        size, exponent = abs(x).cast(F64), y.cast(F64)
        return _with_cases(x, y, _short(size, exponent).cast(F32))
    return _with_cases(x, y, _long(abs(x), y))


def _short(x: Term, y: Term) -> Term:
    f, e, _ = split(x)
    s = f / (f + 2.0)
    t = at_most(at_least(y * fma(s, horner(s * s, _LOG2_SHORT), e), -200.0), 200.0)
    shifted = t + (_MAGIC + 1023)
    r = t - (shifted - (_MAGIC + 1023))
    return horner(r, _EXP2_SHORT) * power_of_two(shifted.bits())


def _long(x: Term, y: Term) -> Term:
    small = x < smallest_normal(F64)
    f, e, _ = split(select(small, x * 2.0**52, x))
    high, low = _log2_pair(f, e + select(small, constant(-52.0, F64), 0.0))
    t = y * high
    tail = fma(y, low, fma(y, high, -t))
    clamped = at_most(at_least(t, -1100.0), 1100.0)
    tail = select(abs(t) < 1100.0, tail, 0.0)
    shifted = clamped + (_MAGIC + 2 * 1023)
    r = (clamped - (shifted - (_MAGIC + 2 * 1023))) + tail
    half = shifted.bits() >> 1
    return horner(r, _EXP2) * power_of_two(half) * power_of_two(shifted.bits() - half)


def _log2_pair(f: Term, e: Term) -> tuple[Term, Term]:
    """e + log2(1 + f) as a pair."""
    d = f + 2.0
    d_low = f - (d - 2.0)
    inverse = 1.0 / d
    s = f * inverse
    s_low = fma(-s, d_low, fma(-s, d, f)) * inverse
    z = s * s
    z_low = fma(s + s, s_low, fma(s, s, -z))
    # L = C1 + C3 * z + z*z * tail
    p = z * _LOG2_C3[0]
    p_low = fma(z_low, _LOG2_C3[0], fma(z, _LOG2_C3[1], fma(z, _LOG2_C3[0], -p)))
    total = p + _LOG2_C1[0]
    total_low = (p - (total - _LOG2_C1[0])) + (p_low + fma(z * z, horner(z, _LOG2_TAIL), _LOG2_C1[1]))
    product = s * total
    product_low = fma(s_low, total, fma(s, total_low, fma(s, total, -product)))
    # |e| >= 1 > |product| unless e is 0: the fast two-sum is exact
    high = e + product
    return high, (product - (high - e)) + product_low


def _with_cases(x: Term, y: Term, value: Term) -> Term:
    """The results that do not come from 2**(y log2 |x|), and the sign of odd powers."""
    size, zero = abs(x), constant(0.0, x.dtype)
    infinity = constant(math.inf, x.dtype)
    whole = y.round().equals(y)
    half = y * 0.5
    odd = whole & half.round().differs(half)
    # |x| or y is 0 or infinite where the formula has no finite logarithm; |x| == 1 and y == 0 give 1
    endless = select((size > 1.0) ^ (y < 0.0), infinity, zero)
    value = select(size.equals(0.0) | size.equals(math.inf), endless, value)
    value = select(x.differs(x) | y.differs(y), x + y, value)
    value = select(size.equals(1.0) & y.equals(y), constant(1.0, x.dtype), value)
    value = flip_sign(value, select(odd, sign_bit(x), constant(0, sign_bit(x).dtype)))
    value = select((x < 0.0) & (x > -math.inf) & ~whole & y.equals(y), constant(math.nan, x.dtype), value)
    return select(x.equals(1.0) | y.equals(0.0), constant(1.0, x.dtype), value)
