"""NumPy meanings of the elementwise functions that NumPy does not have: erf and fma."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_erf_of_one = np.frompyfunc(math.erf, 1, 1)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function in f64, as exact as ``math.erf``."""
    return np.asarray(_erf_of_one(x)).astype(np.float64)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c with one rounding."""
    if a.dtype == np.float32:
        return _fma_f32(a.astype(np.float64), b.astype(np.float64), c.astype(np.float64))
    shape = np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c))
    a, b, c = (np.broadcast_to(x, shape).ravel() for x in (a, b, c))
    product = a * b
    # a zero or a non-finite operand leaves one rounding at most, a negligible product none
    plain = (a == 0) | (b == 0) | (c == 0) | ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c))
    plain |= (np.abs(product) < np.abs(c) * 2.0**-60) & (np.abs(c) > 2.0**-900)
    result = np.where(plain, product + c, _fma_f64(a, b, c))
    # elsewhere the error of the product must be a normal number, and nothing may overflow on the way
    large = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.maximum(np.abs(c), np.abs(product)))
    for k in np.flatnonzero(~plain & ((np.abs(product) < 2.0**-900) | (large > 2.0**900))):
        result[k] = _fma_exact(float(a[k]), float(b[k]), float(c[k]))
    # the product of finite operands is finite before it is rounded
    return np.where(np.isinf(c) & np.isfinite(a) & np.isfinite(b), c, result).reshape(shape)


def _fma_f64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Boldo and Melquiond, "Emulation of FMA and correctly rounded sums" (2008): the low parts are summed with rounding to odd."""
    high, low = _two_product(a, b)
    sum_low, rest_low = _two_sum(c, low)
    sum_high, rest_high = _two_sum(high, sum_low)
    return sum_high + _sum_to_odd(rest_high, rest_low)


def _fma_exact(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact) if exact else a * b + c
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    # the product of two f32 is exact in f64; rounding the sum to odd makes the rounding to f32 the only one
    return _sum_to_odd(a * b, c).astype(np.float32)


def _sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b; of the two neighbours of an inexact sum, the one whose last mantissa bit is odd."""
    total, rest = _two_sum(a, b)
    even = (np.asarray(total).view(np.uint64) & 1) == 0
    nudge = even & (rest != 0) & np.isfinite(total) & np.isfinite(rest)
    return np.where(nudge, np.nextafter(total, np.copysign(np.inf, rest)), total)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knuth: s + e == a + b exactly, s the rounded sum."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dekker: p + e == a * b exactly (short of overflow), p the rounded product."""
    p = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _split(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = a * 134217729.0  # 2**27 + 1
    high = scaled - (scaled - a)
    return high, a - high
