"""Conversions of the emitted CUDA C: floats to integers that saturate, and floats narrower than f32 from and to f32.

The sequences are those of ``codegen/cpu_emit_narrow.py``: decoding is exact, encoding rounds once to nearest even. f64 gets
to f32 by rounding to odd first, which makes the second rounding exact.
"""

from __future__ import annotations

from tcompile.codegen.cpu_emit_narrow import FORMATS
from tcompile.ir import dtypes
from tcompile.ir.dtypes import DType

_SATURATING = """
// float to integer: towards zero, saturating, 0 for NaN
DEVICE int tc_to_int(float x) { return __float2int_rz(x); }
DEVICE int tc_to_int(double x) { return x != x ? 0 : __double2int_rz(x); }
DEVICE unsigned tc_to_uint(float x) { return __float2uint_rz(x); }
DEVICE unsigned tc_to_uint(double x) { return x != x ? 0 : __double2uint_rz(x); }
DEVICE long long tc_to_llong(float x) { return x != x ? 0 : __float2ll_rz(x); }
DEVICE long long tc_to_llong(double x) { return x != x ? 0 : __double2ll_rz(x); }
DEVICE unsigned long long tc_to_ullong(float x) { return x > 0 ? __float2ull_rz(x) : 0; }
DEVICE unsigned long long tc_to_ullong(double x) { return x > 0 ? __double2ull_rz(x) : 0; }
"""

_TO_ODD = """
// f64 to f32: of the two neighbours of an inexact value, the one with an odd last bit
DEVICE float tc_round_to_odd(double x)
{
    const float nearest = (float)x;
    const double back = (double)nearest;
    const bool inexact = back < x || back > x;
    const unsigned towards_zero = __float_as_uint(nearest) - (fabs(back) > fabs(x) ? 1u : 0u);
    return __uint_as_float(towards_zero | (inexact ? 1u : 0u));
}
"""

_HALF = """
#ifdef __CUDACC__
DEVICE float tc_from_f16(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
DEVICE f16 tc_to_f16(float x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#endif
"""

_BF16 = """
DEVICE float tc_from_bf16(bf16 x) { return __uint_as_float((unsigned)x << 16); }
#ifdef __CUDACC__
DEVICE bf16 tc_to_bf16(float x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#endif
"""

_E8M0 = """
// 2**(x - 127): 255 is NaN, 0 is the subnormal 2**-127
DEVICE float tc_from_f8e8m0(f8e8m0 x)
{
    return __uint_as_float(x == 255 ? 0x7fc00000u : x == 0 ? 0x400000u : (unsigned)x << 23);
}
// the nearest power of two, upwards from halfway; what is not positive and finite is NaN
DEVICE f8e8m0 tc_to_f8e8m0(float x)
{
    const unsigned raw = __float_as_uint(x), magnitude = raw & 0x7fffffffu;
    const unsigned code = magnitude < 0x800000u ? (magnitude > 0x400000u ? 1u : 0u) : (magnitude + 0x400000u) >> 23;
    return (f8e8m0)((int)raw > 0 && code < 255u ? code : 255u);
}
"""


def _decode(dtype: DType) -> str:
    form, sign = FORMATS[dtype], 1 << (dtype.bits - 1)
    lines = [
        f"DEVICE float tc_from_{dtype}({dtype} x)",
        "{",
        f"    const unsigned magnitude = x & {sign - 1:#x}u, sign = (x & {sign:#x}u) << {32 - dtype.bits};",
        f"    const float small = (float)magnitude * {2.0 ** (1 - form.bias - form.mantissa)!r}f;  // below the normal numbers",
        f"    unsigned bits = magnitude < {1 << form.mantissa}u ? __float_as_uint(small) : "
        f"(magnitude << {23 - form.mantissa}) + {(127 - form.bias) << 23:#x}u;",
    ]
    if form.fnuz:
        lines.append(f"    return __uint_as_float(x == {form.nan:#x} ? 0x7fc00000u : bits | sign);")
    else:
        if dtype == dtypes.F8E5M2:
            lines.append(f"    if (magnitude >= {form.overflow:#x}u) bits = magnitude << {23 - form.mantissa} | 0x7f800000u;")
        elif dtype == dtypes.F8E4M3FN:
            lines.append(f"    if (magnitude == {form.nan:#x}u) bits = 0x7fc00000u;")
        lines.append("    return __uint_as_float(bits | sign);")
    return "\n".join([*lines, "}"])


def _encode(dtype: DType) -> str:
    form, sign, dropped = FORMATS[dtype], 1 << (dtype.bits - 1), 23 - FORMATS[dtype].mantissa
    anchor = 24 - form.bias - form.mantissa
    overflow = f"{form.largest:#x}u" if form.always_saturates else f"saturate ? {form.largest:#x}u : {form.overflow:#x}u"
    lines = [
        f"DEVICE {dtype} tc_to_{dtype}(float x, bool saturate)",
        "{",
        "    const unsigned raw = __float_as_uint(x), magnitude = raw & 0x7fffffffu;",
        f"    const unsigned rounded = (magnitude + {(1 << (dropped - 1)) - 1:#x}u + (magnitude >> {dropped} & 1u)) >> {dropped};",
        "    // below the normal numbers, adding a float whose last place is the smallest step rounds for us",
        f"    const unsigned small = __float_as_uint(__uint_as_float(magnitude) + {2.0**anchor!r}f) - {(anchor + 127) << 23:#x}u;",
        f"    unsigned code = magnitude < {(128 - form.bias) << 23:#x}u ? small : rounded - {(127 - form.bias) << form.mantissa}u;",
        f"    if ((int)code > {form.largest:#x}) code = {overflow};",
        f"    const unsigned sign = raw >> {32 - dtype.bits} & {sign:#x}u;",
    ]
    nan = "magnitude > 0x7f800000u"
    if form.fnuz:
        lines.append(f"    return ({dtype})({nan} ? {form.nan:#x}u : code == 0 ? 0u : code | sign);")
    elif dtype == dtypes.F4E2M1:  # no NaN: a zero of the other sign, as ml_dtypes
        lines.append(f"    return ({dtype})({nan} ? sign ^ {sign:#x}u : code | sign);")
    else:
        lines.append(f"    return ({dtype})(({nan} ? {form.nan:#x}u : code) | sign);")
    return "\n".join([*lines, "}"])


_INTEGER_SEQUENCES = (dtypes.F8E4M3FN, dtypes.F8E4M3FNUZ, dtypes.F8E5M2, dtypes.F8E5M2FNUZ, dtypes.F4E2M1)

NARROW: dict[str, str] = {
    "tc_to_integer": _SATURATING,
    "tc_round_to_odd": _TO_ODD,
    "tc_f16": _HALF,
    "tc_bf16": _BF16,
    "tc_f8e8m0": _E8M0,
    **{f"tc_{dtype}": f"{_decode(dtype)}\n{_encode(dtype)}" for dtype in _INTEGER_SEQUENCES},
}
