"""sinh, cosh, tanh and their inverses for f32 and f64, on top of exp, expm1 and the logarithm's core.

ULP (measured): tanh 5.4 (f32), 2.4 (f64); both types: sinh 2.4, cosh 1.5, asinh 1.9, acosh 2.1, atanh 2.2.
"""

from __future__ import annotations

from tcompile.codegen.math_exp import exp_scaled, expm1_plain, expm1_scaled
from tcompile.codegen.math_log import log_of_sum
from tcompile.codegen.math_term import Term, at_most, constant, flip_sign, mantissa_bits, saturating_rational, select, sign_bit, with_sign
from tcompile.ir.dtypes import F32

# tanh(x) = x * N(x*x) / D(x*x) for |x| <= 9.01, where f32 has reached 1: minimax of the relative error, then perturbed at random for
# the least error over all f32 arguments that reaches 1 there
_TANH_LIMIT = 9.01
_TANH_N = (0.7559106945991516, 0.10114381462335587, 0.0026417758781462908, 1.5569128663628362e-05, 1.0081784296289698e-08)
_TANH_D = (0.7559108138084412, 0.35311397910118103, 0.01955850049853325, 0.00024827037123031914, 5.87299041399092e-07)


def tanh(x: Term) -> Term:
    """The hyperbolic tangent, never above 1: f32 by a rational function, f64 as t / (t + 2) of t = expm1(2 |x|)."""
    if x.dtype == F32:
        return saturating_rational(x, _TANH_LIMIT, _TANH_N, _TANH_D)
    size = at_most(abs(x), 19.1)
    t = expm1_plain(size + size)
    return with_sign(t / (t + 2.0), sign_bit(x))


def sinh(x: Term) -> Term:
    """(t + t / (t + 1)) / 2 of t = expm1(|x|)."""
    size = abs(x)
    t = expm1_scaled(size, _overflow(x), 1)  # a quarter: the exponential may overflow before sinh does
    return select(size < _tiny(x), x, with_sign((t + t / (t * 4.0 + 1.0)) * 2.0, sign_bit(x)))


def cosh(x: Term) -> Term:
    """(e + 1/e) / 2 of e = exp(|x|)."""
    quarter = exp_scaled(abs(x), 0.0, _overflow(x), 2)
    return quarter * 2.0 + 0.125 / quarter


def asinh(x: Term) -> Term:
    """log(|x| + sqrt(x*x + 1)), as log1p(|x| + x*x / (1 + sqrt(x*x + 1))), with the sign of x."""
    size = abs(x)
    large = size > _large(x)
    square = size * size
    y = size + square / ((square + 1.0).sqrt() + 1.0)
    result = with_sign(_log1p_or_log_twice(y, size, large), sign_bit(x))
    return select((size < _tiny(x)) | (size < float("inf")).__invert__(), x, result)


def acosh(x: Term) -> Term:
    """log(x + sqrt(x*x - 1)), as log1p(t + sqrt(2 t + t*t)) of t = x - 1; NaN below 1."""
    t = x - 1.0
    y = t + (t * t + (t + t)).sqrt()
    value = _log1p_or_log_twice(y, x, x > _large(x))
    return select(x < 1.0, constant(float("nan"), x.dtype), select(x < float("inf"), value, x))


def atanh(x: Term) -> Term:
    """log1p(2 |x| / (1 - |x|)) / 2 with the sign of x; infinite at 1, NaN beyond."""
    size = abs(x)
    y = (size + size) / (1.0 - size)
    value = select(size < 1.0, _log1p(y) * 0.5, y * constant(float("inf"), x.dtype))
    value = select(size > 1.0, constant(float("nan"), x.dtype), value)
    return select(size < _tiny(x), x, flip_sign(value, sign_bit(x)))


def _log1p_or_log_twice(y: Term, x: Term, large: Term) -> Term:
    """log1p(y), or log(2 x) where ``large``."""
    u = select(large, x, y + 1.0)
    return log_of_sum(u, select(large, constant(0.0, x.dtype), _lost(y, u)), select(large, constant(1.0, x.dtype), 0.0))


def _log1p(y: Term) -> Term:
    u = y + 1.0
    return log_of_sum(u, _lost(y, u))


def _lost(y: Term, u: Term) -> Term:
    """(1 + y) - u exactly, for u the rounded 1 + y and y >= 0."""
    return select(y < 1.0, y - (u - 1.0), 1.0 - (u - y))


def _tiny(x: Term) -> float:
    """All odd functions here round to x below."""
    return 2.0 ** -(mantissa_bits(x.dtype) // 2 + 2)


def _large(x: Term) -> float:
    """x*x + 1 rounds to x*x above, with much room."""
    return 2.0 ** (mantissa_bits(x.dtype) + 2)


def _overflow(x: Term) -> float:
    """sinh and cosh are infinite here, while a quarter of exp is finite."""
    return 89.6 if x.dtype == F32 else 710.6
