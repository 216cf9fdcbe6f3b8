"""Floats narrower than f32, as integer sequences: f16, bf16, the f8 kinds and f4 to and from f32.

Decoding is exact; encoding rounds once, to nearest even. f64 gets to f32 by rounding to odd first, which makes the
second rounding exact (Boldo and Melquiond 2008). Formats as in the OCP specifications and ONNX (float8.md): ``fn``
has no infinities, ``fnuz`` neither infinities nor -0 and its one NaN is the bit pattern of -0.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value, float_literal
from tcompile.ir import dtypes
from tcompile.ir.dtypes import DType


@dataclass(frozen=True)
class Format:
    """A narrow float: mantissa bits, exponent bias, the code of the largest finite value, those of overflow and NaN."""

    mantissa: int
    bias: int
    largest: int
    overflow: int  # what a value too large becomes where it does not saturate
    nan: int
    fnuz: bool = False
    always_saturates: bool = False


FORMATS = {
    dtypes.F16: Format(10, 15, 0x7BFF, 0x7C00, 0x7E00),
    dtypes.BF16: Format(7, 127, 0x7F7F, 0x7F80, 0x7FC0),
    dtypes.F8E4M3FN: Format(3, 7, 0x7E, 0x7F, 0x7F),
    dtypes.F8E4M3FNUZ: Format(3, 8, 0x7F, 0x80, 0x80, fnuz=True),
    dtypes.F8E5M2: Format(2, 15, 0x7B, 0x7C, 0x7E),
    dtypes.F8E5M2FNUZ: Format(2, 16, 0x7F, 0x80, 0x80, fnuz=True),
    dtypes.F4E2M1: Format(1, 1, 0x7, 0x7, 0x0, always_saturates=True),
}


def _int(number: int) -> Value:
    return Value(str(number))


def _bin(fn: Function, opcode: str, a: Value, b: Value | int) -> Value:
    return ops.binary(fn, opcode, "i32", a, _int(b) if isinstance(b, int) else b)


def _choose(fn: Function, cond: Value, then: Value | int, otherwise: Value) -> Value:
    return ops.select(fn, cond, "i32", _int(then) if isinstance(then, int) else then, otherwise)


def decode(fn: Function, bits: Value, dtype: DType, *, half: bool) -> Value:
    """The f32 of stored bits. ``half``: the target converts f16 by an instruction."""
    storage = f"i{8 * dtype.bytes}"
    if dtype == dtypes.F16 and half:
        return ops.convert(fn, "fpext", "half", "float", ops.convert(fn, "bitcast", storage, "half", bits))
    wide = ops.convert(fn, "zext", storage, "i32", bits)
    if dtype == dtypes.BF16:
        return ops.convert(fn, "bitcast", "i32", "float", _bin(fn, "shl", wide, 16))
    if dtype == dtypes.F8E8M0:
        return _decode_e8m0(fn, wide)
    return _decode(fn, wide, dtype)


def _decode(fn: Function, wide: Value, dtype: DType) -> Value:
    form, sign_bit = FORMATS[dtype], 1 << (dtype.bits - 1)
    magnitude = _bin(fn, "and", wide, sign_bit - 1)
    sign = _bin(fn, "shl", _bin(fn, "and", wide, sign_bit), 32 - dtype.bits)
    normal = _bin(fn, "add", _bin(fn, "shl", magnitude, 23 - form.mantissa), (127 - form.bias) << 23)
    # a subnormal is its mantissa times the smallest step, exact without f32 subnormals on the way
    step = Value(float_literal(2.0 ** (1 - form.bias - form.mantissa)))
    small = ops.binary(fn, "fmul", "float", ops.convert(fn, "uitofp", "i32", "float", magnitude), step)
    subnormal = _bin(fn, "icmp ult", magnitude, 1 << form.mantissa)
    result = _choose(fn, subnormal, ops.convert(fn, "bitcast", "float", "i32", small), normal)
    if form.fnuz:
        nan = _bin(fn, "icmp eq", wide, form.nan)
        return ops.convert(fn, "bitcast", "i32", "float", _choose(fn, nan, 0x7FC00000, _bin(fn, "or", result, sign)))
    if dtype in (dtypes.F16, dtypes.F8E5M2):  # all exponent bits set: infinity, or NaN with its payload
        special = _bin(fn, "or", _bin(fn, "shl", magnitude, 23 - form.mantissa), 0x7F800000)
        result = _choose(fn, _bin(fn, "icmp uge", magnitude, form.overflow), special, result)
    elif dtype == dtypes.F8E4M3FN:
        result = _choose(fn, _bin(fn, "icmp eq", magnitude, form.nan), 0x7FC00000, result)
    return ops.convert(fn, "bitcast", "i32", "float", _bin(fn, "or", result, sign))


def _decode_e8m0(fn: Function, wide: Value) -> Value:
    """2**(x - 127): 255 is NaN, 0 is the subnormal 2**-127."""
    result = _choose(fn, _bin(fn, "icmp eq", wide, 255), 0x7FC00000, _bin(fn, "shl", wide, 23))
    return ops.convert(fn, "bitcast", "i32", "float", _choose(fn, _bin(fn, "icmp eq", wide, 0), 0x00400000, result))


def encode(fn: Function, value: Value, dtype: DType, *, saturate: bool, half: bool) -> Value:
    """The stored bits of an f32, rounded to nearest even. f8 overflow saturates or becomes what the format has."""
    storage = f"i{8 * dtype.bytes}"
    if dtype == dtypes.F16 and half:
        return ops.convert(fn, "bitcast", "half", storage, ops.convert(fn, "fptrunc", "float", "half", value))
    raw = ops.convert(fn, "bitcast", "float", "i32", value)
    magnitude = _bin(fn, "and", raw, 0x7FFFFFFF)
    if dtype == dtypes.F8E8M0:
        code = _encode_e8m0(fn, raw, magnitude)
    elif dtype == dtypes.BF16:
        code = _encode_bf16(fn, raw, magnitude)
    else:
        code = _encode(fn, raw, magnitude, dtype, saturate and dtype.bits <= 8)
    return ops.convert(fn, "trunc", "i32", storage, code)


def _rounded(fn: Function, magnitude: Value, dropped: int) -> Value:
    """magnitude >> dropped, rounded to nearest even."""
    odd = _bin(fn, "and", _bin(fn, "lshr", magnitude, dropped), 1)
    return _bin(fn, "lshr", _bin(fn, "add", _bin(fn, "add", magnitude, (1 << (dropped - 1)) - 1), odd), dropped)


def _encode_bf16(fn: Function, raw: Value, magnitude: Value) -> Value:
    nan = _bin(fn, "icmp ugt", magnitude, 0x7F800000)
    quiet = _bin(fn, "or", _bin(fn, "lshr", raw, 16), 0x40)
    return _choose(fn, nan, quiet, _rounded(fn, raw, 16))


def _encode(fn: Function, raw: Value, magnitude: Value, dtype: DType, saturate: bool) -> Value:
    form = FORMATS[dtype]
    code = _bin(fn, "sub", _rounded(fn, magnitude, 23 - form.mantissa), (127 - form.bias) << form.mantissa)
    # below the smallest normal: adding a float whose last place is the smallest step rounds for us
    anchor = 2.0 ** (24 - form.bias - form.mantissa)
    shifted = ops.binary(fn, "fadd", "float", ops.convert(fn, "bitcast", "i32", "float", magnitude), Value(float_literal(anchor)))
    anchor_bits = (int(24 - form.bias - form.mantissa) + 127) << 23
    small = _bin(fn, "sub", ops.convert(fn, "bitcast", "float", "i32", shifted), anchor_bits)
    code = _choose(fn, _bin(fn, "icmp ult", magnitude, (128 - form.bias) << 23), small, code)
    overflow = form.largest if saturate or form.always_saturates else form.overflow
    code = _choose(fn, _bin(fn, "icmp sgt", code, form.largest), overflow, code)
    nan = _bin(fn, "icmp ugt", magnitude, 0x7F800000)
    sign_bit = 1 << (dtype.bits - 1)
    sign = _bin(fn, "and", _bin(fn, "lshr", raw, 32 - dtype.bits), sign_bit)
    if form.fnuz:
        signed = _choose(fn, _bin(fn, "icmp eq", code, 0), 0, _bin(fn, "or", code, sign))
        return _choose(fn, nan, form.nan, signed)
    if dtype == dtypes.F4E2M1:  # no NaN either: a zero of the other sign, as ml_dtypes
        return _choose(fn, nan, _bin(fn, "xor", sign, sign_bit), _bin(fn, "or", code, sign))
    return _bin(fn, "or", _choose(fn, nan, form.nan, code), sign)


def _encode_e8m0(fn: Function, raw: Value, magnitude: Value) -> Value:
    """The nearest power of two, upwards from halfway (f32 subnormals: always, as ml_dtypes); what is not positive and finite is NaN."""
    normal = _bin(fn, "lshr", _bin(fn, "add", magnitude, 0x400000), 23)
    tiny = ops.convert(fn, "zext", "i1", "i32", _bin(fn, "icmp ugt", magnitude, 0x400000))
    code = _choose(fn, _bin(fn, "icmp ult", magnitude, 0x800000), tiny, normal)
    positive = _bin(fn, "icmp sgt", raw, 0)
    finite = _bin(fn, "icmp ult", code, 255)
    return _choose(fn, ops.binary(fn, "and", "i1", positive, finite), code, _int(255))


def round_to_odd(fn: Function, value: Value) -> Value:
    """f64 -> f32: of the two neighbours of an inexact value, the one with an odd last bit."""
    near = ops.convert(fn, "fptrunc", "double", "float", value)
    back = ops.convert(fn, "fpext", "float", "double", near)
    bits = ops.convert(fn, "bitcast", "float", "i32", near)
    inexact = ops.binary(fn, "fcmp one", "double", back, value)
    beyond = ops.binary(fn, "fcmp ogt", "double", ops.call(fn, "fabs", "double", back), ops.call(fn, "fabs", "double", value))
    towards_zero = _bin(fn, "sub", bits, ops.convert(fn, "zext", "i1", "i32", beyond))
    odd = _bin(fn, "or", towards_zero, ops.convert(fn, "zext", "i1", "i32", inexact))
    return ops.convert(fn, "bitcast", "i32", "float", odd)
