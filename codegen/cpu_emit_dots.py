"""Sums of products of parts of words: one instruction where the machine has it, else shifts and multiplications.

dot2    vpmaddwd and an addition, which instruction selection makes one vpdpwssd where there is VNNI
dot4    vpdpbusd (AVX-VNNI, AVX512-VNNI), usdot (i8mm)
add2    vpaddw, or its like
pairs4  vpmaddubsw
"""

from __future__ import annotations

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_casts import Casts
from tcompile.codegen.cpu_emit_values import Value, vector
from tcompile.ir.dtypes import I32, DType

_PMADDUBS = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}
_PMADD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}
VNNI = frozenset({"avx512vnni", "avxvnni"})


def dot2(casts: Casts, dtype: DType, a: Value, b: Value, c: Value) -> Value:
    """c + the products of the signed halves of a and b."""

    def whole(a: Value, b: Value, c: Value) -> Value:
        lanes = ops.width(a, b, c)
        if casts.arch != "x86_64" or lanes not in _PMADD:
            return _by_parts(casts, a, b, c, 16, signed=True)
        halves = [_parts(casts, value, lanes, 16) for value in (a, b)]
        text = f"call <{lanes} x i32> @llvm.x86.{_PMADD[lanes]}(" + ", ".join(f"<{2 * lanes} x i16> {half.name}" for half in halves) + ")"
        depth = max(half.depth for half in halves)
        products = Value(casts.fn.pure(text, depth), depth, lanes)
        return ops.binary(casts.fn, "add", "i32", c, products)

    return ops.pieces(casts.fn, "i32", casts.lanes_of(I32), whole, a, b, c)


def dot4(casts: Casts, dtype: DType, a: Value, b: Value, c: Value) -> Value:
    """c + the products of the unsigned bytes of a and the signed ones of b."""

    def whole(a: Value, b: Value, c: Value) -> Value:
        lanes = ops.width(a, b, c)
        if lanes in _PMADD and casts.features & VNNI:
            return _bytes(casts, f"x86.avx512.vpdpbusd.{32 * lanes}", c, a, b, lanes)
        if lanes == 4 and "i8mm" in casts.features:
            return _bytes(casts, "aarch64.neon.usdot.v4i32.v16i8", c, a, b, lanes)
        return _by_parts(casts, a, b, c, 8, signed=False)

    return ops.pieces(casts.fn, "i32", casts.lanes_of(I32), whole, a, b, c)


def add2(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
    """The sums of the halves of a and b."""
    fn, lanes = casts.fn, ops.width(a, b)
    if lanes:
        left, right = (_parts(casts, value, lanes, 16) for value in (a, b))
        total = ops.binary(fn, "add", "i16", left, right)
        text = f"bitcast {vector('i16', 2 * lanes)} {total.name} to {vector('i32', lanes)}"
        return Value(fn.pure(text, total.depth), total.depth, lanes)
    low = ops.binary(fn, "and", "i32", ops.binary(fn, "add", "i32", a, b), Value("65535"))
    tops = (ops.binary(fn, "and", "i32", value, Value("-65536")) for value in (a, b))
    return ops.binary(fn, "or", "i32", ops.binary(fn, "add", "i32", *tops), low)


def pairs4(casts: Casts, dtype: DType, a: Value, b: Value) -> Value:
    """The products of the unsigned bytes of a and the signed ones of b, two and two added into halves, which saturate."""

    def whole(a: Value, b: Value) -> Value:
        lanes = ops.width(a, b)
        if casts.arch != "x86_64" or lanes not in _PMADDUBS:
            return _pairs_by_parts(casts, a, b)
        left, right = (_parts(casts, value, lanes, 8) for value in (a, b))
        halves, bytes_, depth = vector("i16", 2 * lanes), f"<{4 * lanes} x i8>", max(left.depth, right.depth)
        text = f"call {halves} @llvm.x86.{_PMADDUBS[lanes]}({bytes_} {left.name}, {bytes_} {right.name})"
        text = f"bitcast {halves} {casts.fn.pure(text, depth)} to {vector('i32', lanes)}"
        return Value(casts.fn.pure(text, depth), depth, lanes)

    return ops.pieces(casts.fn, "i32", casts.lanes_of(I32), whole, a, b)


def _pairs_by_parts(casts: Casts, a: Value, b: Value) -> Value:
    fn, halves = casts.fn, []
    for mask in ("65535", "-65536"):
        total = _by_parts(casts, ops.binary(fn, "and", "i32", a, Value(mask)), b, Value("0"), 8, signed=False)
        least = ops.call(fn, "smax", "i32", total, Value("-32768"))
        halves.append(ops.binary(fn, "and", "i32", ops.call(fn, "smin", "i32", least, Value("32767")), Value("65535")))
    return ops.binary(fn, "or", "i32", halves[0], ops.binary(fn, "shl", "i32", halves[1], Value("16")))


def _parts(casts: Casts, value: Value, lanes: int, bits: int) -> Value:
    """Words as a vector of their parts."""
    wide, count = ops.widened(casts.fn, value, "i32", lanes), lanes * 32 // bits
    text = f"bitcast {vector('i32', lanes)} {wide.name} to <{count} x i{bits}>"
    return Value(casts.fn.pure(text, wide.depth), wide.depth, count)


def _bytes(casts: Casts, intrinsic: str, c: Value, a: Value, b: Value, lanes: int) -> Value:
    """The call of an intrinsic whose factors are vectors of bytes."""
    total = ops.widened(casts.fn, c, "i32", lanes)
    left, right = (_parts(casts, value, lanes, 8) for value in (a, b))
    kind, bytes_, depth = vector("i32", lanes), f"<{4 * lanes} x i8>", max(value.depth for value in (total, left, right))
    text = f"call {kind} @llvm.{intrinsic}({kind} {total.name}, {bytes_} {left.name}, {bytes_} {right.name})"
    return Value(casts.fn.pure(text, depth), depth, lanes)


def _by_parts(casts: Casts, a: Value, b: Value, c: Value, bits: int, *, signed: bool) -> Value:
    """Part by part: each shifted to the top of its word and back, which extends it."""
    fn, top = casts.fn, Value(str(32 - bits))
    for k in range(32 // bits):
        up = Value(str(32 - bits * (k + 1)))
        left, right = (value if up.name == "0" else ops.binary(fn, "shl", "i32", value, up) for value in (a, b))
        left = ops.binary(fn, "ashr" if signed else "lshr", "i32", left, top)
        right = ops.binary(fn, "ashr", "i32", right, top)
        c = ops.binary(fn, "add", "i32", c, ops.binary(fn, "mul", "i32", left, right))
    return c
