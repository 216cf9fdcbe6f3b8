"""sin, cos, tan for f32 and f64, accurate for every finite argument.

    x * 2/pi = q + t with q an integer and |t| <= 1/2; r = t * pi/2; q mod 4 chooses sin or cos of r and the sign

The reduction is Payne and Hanek's, in floats: of the bits of 2/pi only a window matters, because the bits before it
give multiples of 4 and those behind it nothing visible. The exponent of x selects the window from constants. f32
reduces in f64 (one product with a window part is exact there), f64 in pairs of f64.
ULP (measured, arguments of any size): sin, cos 0.9 (f32), 0.8 (f64); tan 2.3.
"""

from __future__ import annotations

from tcompile.codegen.math_reduction import quadrant_f32, quadrant_f64
from tcompile.codegen.math_term import Term, flip_sign, fma, horner, select, sign_bit
from tcompile.ir.dtypes import F32, F64

# sin(r) = r + r**3 * S(r*r), cos(r) = 1 - r*r/2 + r**4 * C(r*r) for |r| <= pi/4: minimax, coefficients rounded one by one
_SIN = {
    F32: (-0.16666655242443085, 0.008332191035151482, -0.00019518600311130285),
    F64: (
        -0.16666666666666666, 0.008333333333333035, -0.00019841269840950254, 2.755731906659323e-06, -2.505206890393592e-08,
        1.6054055667472885e-10, -7.377226776972067e-13,
    ),
}  # fmt: skip
_COS = {
    F32: (0.04166664555668831, -0.00138873013202101, 2.4430690245935693e-05),
    F64: (
        0.0416666666666666, -0.0013888888888874459, 2.4801587289648853e-05, -2.755731439056979e-07, 2.087572735881296e-09,
        -1.1359811065811129e-11,
    ),
}  # fmt: skip


def sin(x: Term) -> Term:
    """The sine; NaN of infinities."""
    size = abs(x)
    sine, cosine, quadrant = _parts(size)
    value = select((quadrant & 1).differs(0), cosine, sine)
    return _small(x, flip_sign(flip_sign(value, _sign_of_bit1(quadrant)), sign_bit(x)), x)


def cos(x: Term) -> Term:
    """The cosine; NaN of infinities."""
    sine, cosine, quadrant = _parts(abs(x))
    value = select((quadrant & 1).differs(0), sine, cosine)
    return flip_sign(value, _sign_of_bit1(quadrant + 1))


def tan(x: Term) -> Term:
    """The tangent; NaN of infinities."""
    sine, cosine, quadrant = _parts(abs(x))
    odd = (quadrant & 1).differs(0)
    value = select(odd, cosine, sine) / select(odd, -sine, cosine)
    return _small(x, flip_sign(value, sign_bit(x)), x)


def _parts(size: Term) -> tuple[Term, Term, Term]:
    """(sin r, cos r, quadrant) for the reduced argument of a non-negative x."""
    high, low, quadrant = quadrant_f32(size) if size.dtype == F32 else quadrant_f64(size)
    z = high * high
    sine = high + fma(high * z, horner(z, _SIN[size.dtype]), low)
    # cos(high + low) = cos(high) - high * low; 1 - z/2 is kept in two parts
    half = z * 0.5
    one = 1.0 - half
    cosine = one + fma(z * z, horner(z, _COS[size.dtype]), ((1.0 - one) - half) - high * low)
    return sine, cosine, quadrant


def _sign_of_bit1(quadrant: Term) -> Term:
    """Bit 1 of an integer moved to the sign bit."""
    return (quadrant & 2) << (quadrant.dtype.bits - 2)


def _small(x: Term, value: Term, tiny: Term) -> Term:
    """``tiny`` where x is so small that sin and tan round to x (and where the reduction would meet denormals)."""
    return select(abs(x) < (2.0**-13 if x.dtype == F32 else 2.0**-27), tiny, value)
