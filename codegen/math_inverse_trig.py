"""asin, acos, atan, atan2 for f32 and f64: one polynomial each near 0, and identities that lead there.

    asin(x) = x + x**3 * A(x*x) for |x| <= 1/2;  asin(x) = pi/2 - 2 asin(sqrt((1 - x) / 2)) beyond
    atan(x) = x + x**3 * T(x*x) for |x| <= tan(pi/8);  atan(a/b) = pi/4 + atan((a - b) / (a + b)) up to 1

ULP (measured): asin 1.7 (f32), 1.7 (f64); acos 1.3; atan 1.9, 1.3; atan2 1.8, 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.math_term import Term, constant, exponent_bias, flip_sign, fma, horner, select, sign_bit, with_sign
from tcompile.ir.dtypes import F32, F64

_TAN_EIGHTH = 0.41421356237309503  # tan(pi/8)


@dataclass(frozen=True)
class Table:
    """Minimax polynomials (relative error, coefficients rounded one by one) and pi in two parts."""

    asin: tuple[float, ...]
    atan: tuple[float, ...]
    pi: tuple[float, float]


_TABLES = {
    F32: Table(
        asin=(0.16666753590106964, 0.07495249807834625, 0.045476529747247696, 0.02414884977042675, 0.04221852123737335),
        atan=(-0.33333316445350647, 0.1999853253364563, -0.14244508743286133, 0.10600142180919647, -0.06092619523406029),
        pi=(3.1415927410125732, -8.742277657347586e-08),
    ),
    F64: Table(
        asin=(
            0.1666666666666676, 0.07499999999970615, 0.04464285717488282, 0.030381942691862642, 0.022372215493606375,
            0.01735160216853339, 0.013980945485171854, 0.011397845456549018, 0.010786433756322772, 0.0036824304365725645,
            0.021767087875689324, -0.021085048671960455, 0.032683265999745414,
        ),
        atan=(
            -0.33333333333333204, 0.19999999999955073, -0.14285714280319942, 0.11111110788631474, -0.09090897885445588,
            0.07692062224338705, -0.06663124865669168, 0.05848030995676396, -0.05039914982351299, 0.03807965961891782,
            -0.017923589007518514,
        ),
        pi=(3.141592653589793, 1.2246467991473532e-16),
    ),
}  # fmt: skip


def asin(x: Term) -> Term:
    """The arc sine; NaN beyond 1."""
    size = abs(x)
    far, root, tail = _asin_parts(size)
    high, low = _pi_times(x, 0.5)
    outer = high - ((root + root) - fma(tail, -2.0, low))
    return with_sign(select(far, outer, root + tail), sign_bit(x))


def acos(x: Term) -> Term:
    """The arc cosine; NaN beyond 1."""
    far, root, tail = _asin_parts(abs(x))
    pi_high, pi_low = _pi_times(x, 1.0)
    high, low = _pi_times(x, 0.5)
    signed_root, signed_tail = flip_sign(root, sign_bit(x)), flip_sign(tail, sign_bit(x))
    near = high - (signed_root - (low - signed_tail))
    double = (root + tail) * 2.0
    left = pi_high - (root * 2.0 - fma(tail, -2.0, pi_low))
    return select(far, select(x < 0.0, left, double), near)


def _asin_parts(size: Term) -> tuple[Term, Term, Term]:
    """(whether |x| > 1/2, s, asin(s) - s) where s is |x|, or sqrt((1 - |x|) / 2)."""
    far = size > 0.5
    z = select(far, fma(size, -0.5, 0.5), size * size)
    root = select(far, z.sqrt(), size)
    return far, root, root * (z * horner(z, _TABLES[size.dtype].asin))


def atan(x: Term) -> Term:
    """The arc tangent."""
    size = abs(x)
    above, middle = size > 1.0 / _TAN_EIGHTH, size > _TAN_EIGHTH
    numerator = select(above, constant(-1.0, x.dtype), select(middle, size - 1.0, size))
    denominator = select(above, size, select(middle, size + 1.0, constant(1.0, x.dtype)))
    half, quarter = _pi_times(x, 0.5), _pi_times(x, 0.25)
    high, low = (select(above, constant(h, x.dtype), select(middle, constant(q, x.dtype), 0.0)) for h, q in zip(half, quarter, strict=True))
    return with_sign(_atan_sum(numerator / denominator, high, low), sign_bit(x))


def atan2(y: Term, x: Term) -> Term:
    """The angle of the point (x, y) in [-pi, pi], signs of zeros respected."""
    large, small, swapped = _octant(abs(y), abs(x))
    middle = small > large * _TAN_EIGHTH
    numerator = select(middle, small - large, small)
    denominator = select(middle, small + large, large)
    quotient = numerator / select(denominator.equals(0.0), constant(1.0, x.dtype), denominator)
    quarter, half, whole = _pi_times(x, 0.25), _pi_times(x, 0.5), _pi_times(x, 1.0)
    high, low = (select(middle, constant(q, x.dtype), 0.0) for q in quarter)
    negative = sign_bit(x).differs(0)
    # atan(a/b) = pi/2 - atan(b/a), and pi - ... left of the y axis: constants and sign of the quotient are chosen, then summed once
    high, low, quotient = _reflect(swapped, half, high, low, quotient)
    high, low, quotient = _reflect(negative, whole, high, low, quotient)
    value = with_sign(abs(_atan_sum(quotient, high, low)), sign_bit(y))
    return select(x.differs(x) | y.differs(y), x + y, value)


def _octant(a: Term, b: Term) -> tuple[Term, Term, Term]:
    """(the larger, the smaller, a > b), scaled so that their sum is finite and normal; two infinities count as equal."""
    swapped = a > b
    large, small = select(swapped, a, b), select(swapped, b, a)
    infinite = small.equals(float("inf"))
    large, small = select(infinite, constant(1.0, a.dtype), large), select(infinite, constant(1.0, a.dtype), small)
    far = 2.0 ** (exponent_bias(a.dtype) // 2)
    scale = select(large > far, constant(0.25, a.dtype), select(large < 1.0 / far, constant(far, a.dtype), 1.0))
    return large * scale, small * scale, swapped


def _reflect(where: Term, pi: tuple[float, float], high: Term, low: Term, quotient: Term) -> tuple[Term, Term, Term]:
    """pi - (high + low + atan(quotient)) where the condition holds, as the same three terms."""
    return (
        select(where, pi[0] - high, high),
        select(where, pi[1] - low, low),
        select(where, -quotient, quotient),
    )


def _atan_sum(u: Term, high: Term, low: Term) -> Term:
    """high + low + atan(u) for |u| <= tan(pi/8)."""
    z = u * u
    return high + (u + fma(u * z, horner(z, _TABLES[u.dtype].atan), low))


def _pi_times(x: Term, factor: float) -> tuple[float, float]:
    """pi times a power of two, in two parts."""
    high, low = _TABLES[x.dtype].pi
    return high * factor, low * factor
