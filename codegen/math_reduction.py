"""Reduction of angles modulo pi/2 for ``math_trig``: see there. Arguments are non-negative."""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.codegen.math_term import Term, constant, fma, select
from tcompile.ir.dtypes import F32, F64, I32, I64

# floor(2/pi * 2**1280)
_TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1921cfe1deb1cb129a73ee88235f52ebb4484"
    "e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d7527bac7ebe5f17b"
    "3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6babf0cfbc209af4361d",
    16,
)
_BITS = 1280
_MAGIC = 1.5 * 2.0**52  # adding it rounds a smaller float to an integer, which the low mantissa bits then hold
_HALF_PI = (1.5707963267948966, 6.123233995736766e-17)


def quadrant_f32(x: Term) -> tuple[Term, Term, Term]:
    """(r high, r low, quadrant as i32) of an f32 x.

    Three parts of 2/pi of 27, 27 and 53 bits follow one another from weight 2**(1 - 24 j) down, j chosen by the size of x: the
    products with the first two are exact in f64, so are their fractions, and those before only add multiples of 4.
    """
    wide = x.cast(F64)
    first, second, third = _window_f32(wide)
    p, q = wide * first, wide * second
    p_whole, p_rest = _whole_and_rest(p)
    q_whole, q_rest = _whole_and_rest(q)
    whole, rest = _whole_and_rest(p_rest + q_rest)
    r = fma(wide, third, rest) * _HALF_PI[0]
    quadrant = (p_whole.bits() + q_whole.bits() + whole.bits()).cast(I32)
    high = r.cast(F32)
    return high, (r - high.cast(F64)).cast(F32), quadrant


def _window_f32(x: Term) -> list[Term]:
    windows = []
    for j in range(5):
        top = 1 - 24 * j
        windows.append((_part(top, 27), _part(top - 27, 27), _part(top - 54, 53)))
    chosen = [constant(part, F64) for part in windows[0]]
    for j, window in enumerate(windows[1:]):
        large = x >= 2.0 ** (47 + 24 * j)
        chosen = [select(large, part, before) for part, before in zip(window, chosen, strict=True)]
    return chosen


def _part(top: int, count: int) -> float:
    """The bits of 2/pi from weight 2**top down, ``count`` of them, as a float."""
    shift = _BITS + top - count + 1
    bits = (_TWO_OVER_PI >> shift) & ((1 << count) - 1) if shift >= 0 else (_TWO_OVER_PI << -shift) & ((1 << count) - 1)
    return bits * 2.0 ** (top - count + 1)


def _whole_and_rest(x: Term) -> tuple[Term, Term]:
    """(x rounded to an integer plus ``_MAGIC``, what is left of x, exactly), for |x| < 2**51."""
    whole = x + _MAGIC
    return whole, x - (whole - _MAGIC)


def quadrant_f64(x: Term) -> tuple[Term, Term, Term]:
    """(r high, r low, quadrant as i64) of an f64 x.

    2/pi in parts of 53 bits, normalised to [0, 4) with part c scaled by 2**(53 c); five of them from part j on meet x scaled by
    2**(-53 j), which is below 2**105 then. Each product is a pair (rounded, error); the large ones lose their multiples of 4.
    """
    j, scaled = _scaled(x)
    parts = _select_parts(j)
    products = []
    for i, part in enumerate(parts):
        moved = scaled * 2.0 ** (-53 * i)
        high = moved * part
        products.append((high, fma(moved, part, -high)))
    (a, b), (c, d), (e, f), (g, h), (k, _) = products
    total, low, turns = _sum_fractions((a, b, c))
    total, low = _add(total, low, d)
    total, low = _add(total, low, e)
    low = low + ((f + g) + (h + k))
    whole = total.round()
    total, low = _fast_sum(total - whole, low)
    quadrant = (turns + whole + _MAGIC).bits()
    return *_times_half_pi(total, low), quadrant


def _scaled(x: Term) -> tuple[Term, Term]:
    """(j, x * 2**(-53 j)): j grows by one with every 53 exponents above 2**105."""
    exponent = (x.bits() >> 52) - (1023 + 52)
    # (e * 1237) >> 16 == e // 53 for 0 <= e < 1024
    j = (exponent.at_least(0).cast(I32) * 1237) >> 16
    scale = ((1023 - j * 53).cast(I64) << 52).bits()
    return j, x * scale


def _select_parts(j: Term) -> list[Term]:
    """Parts j .. j + 4 of 2/pi, by shifting the list by the bits of j, the highest first."""
    parts: Sequence[Term] = [constant(_normalised_part(c), F64) for c in range(23)]
    for bit, left in ((16, 20), (8, 12), (4, 8), (2, 6), (1, 5)):
        moved = (j & bit).differs(0)
        parts = [select(moved, parts[k + bit], parts[k]) if k + bit < len(parts) else parts[k] for k in range(min(left, len(parts)))]
    return list(parts)


def _normalised_part(c: int) -> float:
    """The 53 bits of 2/pi from weight 2**(1 - 53 c) down, times 2**(53 c)."""
    shift = _BITS + 1 - 53 * c - 52
    return ((_TWO_OVER_PI >> shift) & ((1 << 53) - 1)) * 2.0**-51


def _sum_fractions(terms: Sequence[Term]) -> tuple[Term, Term, Term]:
    """(sum of the terms' fractions, what it lost, sum of their integer parts mod 4): all exact."""
    total = low = turns = None
    for term in terms:
        near = fma((term * 0.25).round(), -4.0, term)
        whole = near.round()
        rest = near - whole
        turns = whole if turns is None else turns + whole
        total, low = (rest, None) if total is None else _add(total, low, rest)
    return total, low, turns


def _add(total: Term, low: Term | None, term: Term) -> tuple[Term, Term]:
    """Knuth's sum: total + term with its rounding error added to ``low``."""
    s = total + term
    t = s - total
    error = (total - (s - t)) + (term - t)
    return s, error if low is None else low + error


def _fast_sum(a: Term, b: Term) -> tuple[Term, Term]:
    """a + b as a pair, for |a| >= |b| or a == 0."""
    s = a + b
    return s, b - (s - a)


def _times_half_pi(high: Term, low: Term) -> tuple[Term, Term]:
    product = high * _HALF_PI[0]
    error = fma(high, _HALF_PI[0], -product)
    return _fast_sum(product, fma(high, _HALF_PI[1], fma(low, _HALF_PI[0], error)))
