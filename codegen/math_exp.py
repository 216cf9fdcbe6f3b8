"""exp, expm1, sigmoid and silu for f32 and f64: round to a multiple of ln 2, a polynomial, and the exponent put back as bits.

    x = n * ln 2 + r with |r| <= ln(2)/2;  exp(x) = 2**n * (1 + r + r*r*Q(r))

n comes from adding a large constant, whose low mantissa bits then *are* n plus a bias: no conversion to integers.
ULP (measured): exp 1.1 (f32), 1.0 (f64); expm1 1.6, 1.9; sigmoid 5.1 (3.9 above -30; 0 below
2**-126), 2.4; silu 6.7 (4.1 above -30; 0 below 2**-121), 2.2 (0 below 2**-1014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tcompile.codegen.math_term import Term, at_least, at_most, estrin, exponent_bias, fma, horner, mantissa_bits, select
from tcompile.ir.dtypes import F32, F64


@dataclass(frozen=True)
class ExpTable:
    """Constants of one type. ln 2 is split so that n * ln2_high is exact; ``lowest`` gives 0 and ``highest`` infinity."""

    ln2_high: float
    ln2_low: float
    lowest: float
    highest: float
    expm1_lowest: float  # where expm1 has become -1
    sigmoid_highest: float  # where sigmoid has become 1
    tiny: float  # expm1(x) rounds to x below
    exp: tuple[float, ...]  # Q of exp: minimax of the error relative to exp(x), coefficients rounded one by one
    expm1: tuple[float, ...]  # Q of expm1: minimax of the error relative to expm1(x)


LOG2_E = 1.4426950408889634074
_ZERO_BELOW = -88.0  # n is -127 there: 2**n becomes the bits of 0
_SHORT_EXP = (0.499992311000824, 0.16667115688323975, 0.041890256106853485, 0.008312467485666275)  # Q with one term less, for f32
_TABLES = {
    F32: ExpTable(
        ln2_high=0.693145751953125,
        ln2_low=1.4286068203094173e-06,
        lowest=-104.0,
        highest=89.0,
        expm1_lowest=-18.0,
        sigmoid_highest=30.0,
        tiny=2.0**-25,
        exp=(0.4999999403953552, 0.16666516661643982, 0.04166814312338829, 0.008369074203073978, 0.0013826849171891809),
        expm1=(0.5, 0.16666538, 0.041666485, 0.008367002, 0.0013936365),
    ),
    F64: ExpTable(
        ln2_high=0.6931471805598903,
        ln2_low=5.497923018708371e-14,
        lowest=-746.0,
        highest=710.0,
        expm1_lowest=-38.0,
        sigmoid_highest=40.0,
        tiny=2.0**-54,
        exp=(
            0.5, 0.16666666666666688, 0.04166666666666683, 0.008333333333313701, 0.0013888888888768378, 0.00019841269904215313,
            2.4801587591195378e-05, 2.755722746260569e-06, 2.7557039802315204e-07, 2.5114470769222294e-08, 2.098311999913332e-09,
        ),
        expm1=(
            0.5, 0.16666666666666677, 0.04166666666666667, 0.00833333333332144, 0.001388888888887813, 0.00019841269889661796,
            2.4801587344023347e-05, 2.7557237238253946e-06, 2.755725337688852e-07, 2.5112538259085627e-08, 2.092193740031505e-09,
        ),
    ),
}  # fmt: skip


def exp(x: Term) -> Term:
    """e**x, denormal results included."""
    table = _TABLES[x.dtype]
    # 2**n is applied in two halves: n may lie outside the exponents of normal numbers
    r, biased = reduce(at_most(at_least(x, table.lowest), table.highest), 2 * exponent_bias(x.dtype))
    half = biased >> 1
    return _scale_exp(r, power_of_two(half)) * power_of_two(biased - half)


def exp_of_negative(x: Term) -> Term:
    """e**x for an f32 x <= 0, for sums whose largest term is 1: what is below the normal numbers becomes 0.

    The error of a result of about 2**-n grows to n * 2e-9 of it, 1e-9 of the sum.
    """
    r, biased = reduce_in_one_step(at_least(x, _ZERO_BELOW), exponent_bias(x.dtype))
    return _scale_exp(r, power_of_two(biased))


def sigmoid(x: Term) -> Term:
    """1 / (1 + exp(-x)), as e / (1 + e) of e = exp(x), which keeps the tiny values far left."""
    return _short_sigmoid(x) if x.dtype == F32 else _full_sigmoid(x)


def _short_sigmoid(x: Term) -> Term:
    """``sigmoid`` by a shorter exponential: networks call for more of these than of anything but products.

    What is below the normal numbers becomes 0: machines take hundreds of cycles to divide into denormals, and networks have many
    such gates.
    """
    r, biased = reduce_in_one_step(at_most(at_least(x, _ZERO_BELOW), _TABLES[F32].sigmoid_highest), exponent_bias(F32))
    scale, square = power_of_two(biased), r * r
    e = fma(fma(square, estrin(r, square, _SHORT_EXP), r), scale, scale)
    return e / (e + 1.0)


def silu(x: Term) -> Term:
    """x / (1 + exp(-x)): 0 from where the exponential is infinite, but NaN at -infinity."""
    if x.dtype != F32:
        return x / (exp(-x) + 1.0)
    r, biased = reduce_in_one_step(-at_most(at_least(x, -_TABLES[F32].highest), -_ZERO_BELOW), exponent_bias(F32))
    square = r * r
    power = fma(square, estrin(r, square, _SHORT_EXP), r + 1.0)  # above 0: infinite at most when scaled, never NaN
    return x / fma(power, power_of_two(biased), 1.0)


def _full_sigmoid(x: Term) -> Term:
    """Both sides are scaled by a power of two that makes e a normal number, so that only the division meets denormals."""
    table = _TABLES[x.dtype]
    shift = mantissa_bits(x.dtype) + 5
    e = exp_scaled(x, table.lowest, table.sigmoid_highest, -shift)
    return e / (e + 2.0**shift)


def expm1(x: Term) -> Term:
    """e**x - 1 without cancellation near 0."""
    table = _TABLES[x.dtype]
    return select(abs(x) < table.tiny, x, expm1_scaled(x, table.highest, 0) * 2.0)


def expm1_plain(x: Term) -> Term:
    """e**x - 1 for x >= 0 far from overflow."""
    r, biased = reduce(x, exponent_bias(x.dtype))
    scale = power_of_two(biased)
    return fma(scale, fma(r * r, horner(r, _TABLES[x.dtype].expm1), r), scale - 1.0)


def expm1_scaled(x: Term, highest: float, shift: int) -> Term:
    """(e**min(x, highest) - 1) * 2**-(1 + shift): scaled so that neither 2**n nor the result overflows early."""
    table = _TABLES[x.dtype]
    r, biased = reduce(at_most(at_least(x, table.expm1_lowest), highest), exponent_bias(x.dtype) - 1 - shift)
    scale = power_of_two(biased)
    p = fma(r * r, horner(r, table.expm1), r)
    return fma(scale, p, scale - 0.5 * 2.0**-shift)


def exp_scaled(x: Term, lowest: float, highest: float, shift: int) -> Term:
    """e**x * 2**-shift for x clamped to a range in which the result is a normal number."""
    r, biased = reduce(at_most(at_least(x, lowest), highest), exponent_bias(x.dtype) - shift)
    return _scale_exp(r, power_of_two(biased))


def reduce_in_one_step(x: Term, bias: int) -> tuple[Term, Term]:
    """``reduce`` with an error of n * 2e-9 of f32: the bits of ln 2 that follow the first 24 are zeros."""
    magic = 1.5 * 2.0 ** mantissa_bits(x.dtype) + bias
    shifted = fma(x, LOG2_E, magic)
    return fma(shifted - magic, -math.log(2), x), shifted.bits()


def _scale_exp(r: Term, scale: Term) -> Term:
    """exp(r) * scale for the reduced r."""
    square = r * r
    return fma(fma(square, estrin(r, square, _TABLES[r.dtype].exp), r), scale, scale)


def reduce(x: Term, bias: int) -> tuple[Term, Term]:
    """(r, integer) with x = n ln 2 + r; the integer's low bits are n + bias, which must not be negative."""
    table = _TABLES[x.dtype]
    magic = 1.5 * 2.0 ** mantissa_bits(x.dtype) + bias
    shifted = fma(x, LOG2_E, magic)
    n = shifted - magic
    return fma(n, -table.ln2_low, fma(n, -table.ln2_high, x)), shifted.bits()


def power_of_two(biased: Term) -> Term:
    """2**n of an integer whose low bits are n + the exponent bias."""
    return (biased << mantissa_bits(biased.bits().dtype)).bits()
