"""Quantisation next to other work: steps that meet are one step; part of ``passes/quantised.py``.

Notation: Q(x) = convert(clamp(round(x / s) + z, low, high)), D(q) = (convert(q) - z) * s. ONNX leaves open what the code of a
NaN is; here it is what ``convert`` makes of it, before or after z is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import F32, I16, I32, U8, DType
from tcompile.ir.graph import Node, Value
from tcompile.passes.quantised_match import is_code, quantised
from tcompile.passes.rewrite import Context, Patch, patch, rule


@dataclass(frozen=True)
class Codes:
    """A float that is whole numbers in a range: clamp(round(x) + zero, low, high)."""

    rounded: Value
    zero: int
    low: int
    high: int


def codes(value: Value, context: Context) -> Codes | None:
    """The whole numbers in a known range that a float value is."""
    bounds: dict[str, int] = {}
    for _ in range(2):
        made = context.producer(value, "map")
        if made is None or made.attrs["fn"] not in ("min", "max") or made.attrs["fn"] in bounds:
            break
        bound = context.scalar(made.inputs[1])
        if bound is None or not np.isfinite(bound) or bound != np.rint(bound):
            return None
        bounds[made.attrs["fn"]] = int(bound)
        value = made.inputs[0]
    zero, made = 0, context.producer(value, "map")
    if made is not None and made.attrs["fn"] == "add":
        offset = context.scalar(made.inputs[1])
        if offset is None or offset != np.rint(offset):
            return None
        zero, value = int(offset), made.inputs[0]
        made = context.producer(value, "map")
    if len(bounds) < 2 or made is None or made.attrs["fn"] != "round" or bounds["max"] > bounds["min"]:
        return None
    return Codes(value, zero, bounds["max"], bounds["min"])


def _inside(found: Codes | None, dtype: DType) -> bool:
    low, high = integer_limits(dtype)
    return found is not None and low <= found.low and found.high <= high


@rule("convert")
def widened_code(node: Node, context: Context) -> Patch | None:
    # convert(convert(x, u8), i16) == convert(x, i16), for an x of whole numbers that u8 holds
    inner = context.producer(node.inputs[0], "convert")
    if inner is None or not is_code(inner.output) or inner.inputs[0].dtype != F32 or node.output.dtype != I16:
        return None
    x = inner.inputs[0]
    if not _inside(codes(x, context), inner.output.dtype):
        return None
    b = context.build(node)
    return patch("a code made wide", b, b.convert(x, I16))


@rule("map")
def shifted_code(node: Node, context: Context) -> Patch | None:
    # clamp(round(x) + z, low, high) - z == clamp(round(x), low - z, high - z), also as i16
    shift = context.scalar(node.inputs[1]) if node.attrs["fn"] == "add" else None
    if shift is None or node.output.dtype not in (I16, F32):
        return None
    made = context.producer(node.inputs[0], "convert") if node.output.dtype == I16 else None
    found = codes(made.inputs[0] if made else node.inputs[0], context)
    if found is None or not found.zero or found.zero + int(shift) != 0 or (node.output.dtype == I16 and made is None):
        return None
    b = context.build(node)
    top = b.map("max", found.rounded, b.scalar_like(found.low - found.zero, found.rounded))
    return patch(
        "a zero point added and subtracted", b, b.convert(b.map("min", top, b.scalar_like(found.high - found.zero, top)), node.output.dtype)
    )


@rule("map")
def raised_code(node: Node, context: Context) -> Patch | None:
    # convert(x, i8) ^ 128 in u8 == convert(x + 128, u8), for an x of whole numbers that i8 holds
    if node.attrs["fn"] != "xor" or node.output.dtype != U8 or context.scalar(node.inputs[1]) != 128:
        return None
    turned = context.producer(node.inputs[0], "convert")
    made = context.producer(turned.inputs[0], "convert") if turned else None
    found = codes(made.inputs[0], context) if made and made.inputs[0].dtype == F32 else None
    if not _inside(found, made.output.dtype if made else U8):
        return None
    b = context.build(node)
    x = b.map("add", found.rounded, b.scalar_like(found.zero + 128, found.rounded))
    x = b.map("max", x, b.scalar_like(found.low + 128, x))
    return patch("a signed code moved up", b, b.convert(b.map("min", x, b.scalar_like(found.high + 128, x)), U8))


@rule("convert")
def quantised_again(node: Node, context: Context) -> Patch | None:
    # Q(D(q)) == q for one s and z: q * s / s is within an ulp or two of q
    if not is_code(node.output):
        return None
    found = codes(node.inputs[0], context)
    rounded = context.producer(found.rounded, "map") if found else None
    ratio = context.producer(rounded.inputs[0], "map") if rounded else None
    if ratio is None or ratio.attrs["fn"] not in ("div", "mul"):
        return None
    b = context.build(node)
    number, inner = context.scalar(ratio.inputs[1]), quantised(ratio.inputs[0], context, b)
    if inner is None or number is None or inner.codes.dtype != node.output.dtype or inner.codes.shape != node.output.shape:
        return None
    step = float(number) if ratio.attrs["fn"] == "div" else 1 / float(number)
    low, high = integer_limits(node.output.dtype)
    if step != inner.scale or found.zero != inner.zero or (found.low, found.high) != (low, high):
        return None
    return patch("quantised as it was", b, inner.codes)


@rule("reduce_window")
def pooled_codes(node: Node, context: Context) -> Patch | None:
    # max of D(q) == D(max of q), where each window has an element: D grows with q
    attrs = node.attrs
    sized = zip(attrs["window"], attrs["low"], attrs["high"], strict=True)
    if attrs["fn"] != "max" or not all(isinstance(low, int) and isinstance(high, int) and max(low, high) < n for n, low, high in sized):
        return None
    b = context.build(node)
    inner = quantised(node.inputs[0], context, b)
    if inner is None or not node.output.dtype.is_float or isinstance(inner.zero, Value):
        return None
    wide = b.convert(b.emit("reduce_window", inner.codes, **attrs), node.output.dtype)
    wide = b.map("add", wide, b.scalar_like(-inner.zero, wide)) if inner.zero else wide
    return patch("codes pooled", b, b.map("mul", wide, b.scalar_like(inner.scale, wide)))


@rule("convert")
def widened_before_pooling(node: Node, context: Context) -> Patch | None:
    # convert(max of q, i16) == max of convert(q, i16), where each window has an element
    pool = context.producer(node.inputs[0], "reduce_window")
    if node.output.dtype != I16 or pool is None or pool.attrs["fn"] != "max":
        return None
    if not context.used_once(pool.output) or not is_code(pool.output):
        return None
    b = context.build(node)
    return patch("wide codes pooled", b, b.emit("reduce_window", b.convert(pool.inputs[0], I16), **pool.attrs))


@rule("map")
def shifted_before_pooling(node: Node, context: Context) -> Patch | None:
    # (max of q) + c == max of (q + c), in i16, which holds both
    shift = context.scalar(node.inputs[1]) if node.attrs["fn"] == "add" and node.output.dtype == I16 else None
    pool = context.producer(node.inputs[0], "reduce_window") if shift is not None else None
    wide = context.producer(pool.inputs[0], "convert") if pool and pool.attrs["fn"] == "max" and context.used_once(pool.output) else None
    if wide is None or abs(int(shift)) > 255:
        return None
    b = context.build(node)
    moved = b.map("add", pool.inputs[0], b.scalar_like(shift, pool.inputs[0]))
    return patch("shifted codes pooled", b, b.emit("reduce_window", moved, **pool.attrs))


# Scales -----------------------------------------------------------------------------------------------------


def _of_integers(value: Value, context: Context) -> bool:
    """Whether a float is the conversion of an i32 sum."""
    made = context.producer(value, "convert")
    return made is not None and made.inputs[0].dtype == I32


@rule("map")
def scaled_sum(node: Node, context: Context) -> Patch | None:
    # n * s + b == fma(n, s, b), rounded once, for sums n of integer products
    if node.attrs["fn"] != "add" or node.output.dtype != F32 or not context.is_constant(node.inputs[1]):
        return None
    product = context.producer(node.inputs[0], "map")
    if product is None or product.attrs["fn"] != "mul" or not context.used_once(product.output):
        return None
    if not _of_integers(product.inputs[0], context) or not context.is_constant(product.inputs[1]):
        return None
    b = context.build(node)
    return patch("scale and bias at once", b, b.map("fma", *product.inputs, node.inputs[1]))


@rule("map")
def scaled_again(node: Node, context: Context) -> Patch | None:
    """fma(n, s, b) / c == fma(n, s / c, b / c), and (n * s) / c == n * (s / c), up to the rounding of the factors."""
    factor = _factor(node, context)
    inner = context.producer(node.inputs[0], "map") if factor is not None else None
    if inner is None or inner.attrs["fn"] not in ("fma", "mul") or not context.used_once(inner.output):
        return None
    if not _of_integers(inner.inputs[0], context) or not all(map(context.is_constant, inner.inputs[1:])):
        return None
    b = context.build(node)
    scaled = [_times(b, value, factor, context) for value in inner.inputs[1:]]
    if any(value is None for value in scaled):
        return None
    return patch("one scale", b, b.map(inner.attrs["fn"], inner.inputs[0], *scaled))


def _factor(node: Node, context: Context) -> float | None:
    """What a map multiplies its first operand by, where that is a positive number."""
    number = context.scalar(node.inputs[1]) if node.attrs["fn"] in ("mul", "div") and node.output.dtype == F32 else None
    if number is None or not np.isfinite(number) or number <= 0:
        return None
    return float(number) if node.attrs["fn"] == "mul" else 1 / float(number)


def _times(b, value: Value, factor: float, context: Context) -> Value | None:
    spread = context.producer(value, "broadcast")
    array = context.constant(spread.inputs[0] if spread else value)
    scaled = (array.astype(np.float64) * factor).astype(np.float32)
    if not np.isfinite(scaled).all():
        return None
    made = b.constant(scaled)
    return b.emit("broadcast", made, **spread.attrs) if spread else made


@rule("map")
def scaled_maximum(node: Node, context: Context) -> Patch | None:
    # max(x, c) / s == max(x / s, c / s) for s > 0, where x is a scaled sum
    factor = _factor(node, context)
    top = context.producer(node.inputs[0], "map") if factor is not None else None
    if top is None or top.attrs["fn"] not in ("max", "min") or not context.used_once(top.output):
        return None
    inner, bound = context.producer(top.inputs[0], "map"), context.scalar(top.inputs[1])
    if inner is None or inner.attrs["fn"] not in ("fma", "mul") or not _of_integers(inner.inputs[0], context) or bound != 0:
        return None
    b = context.build(node)
    scaled = b.map(node.attrs["fn"], top.inputs[0], node.inputs[1])
    return patch("scale before a maximum", b, b.map(top.attrs["fn"], scaled, top.inputs[1]))


@rule("map")
def rounded_maximum(node: Node, context: Context) -> Patch | None:
    # round(max(x, c)) == max(round(x), c) for a whole c, up to the sign of a zero, which no code has
    top = context.producer(node.inputs[0], "map") if node.attrs["fn"] == "round" else None
    if top is None or top.attrs["fn"] not in ("max", "min") or not context.used_once(top.output):
        return None
    bound = context.scalar(top.inputs[1])
    if bound is None or bound != np.rint(bound):
        return None
    b = context.build(node)
    return patch("round before a maximum", b, b.map(top.attrs["fn"], b.map("round", top.inputs[0]), top.inputs[1]))


@rule("map")
def scaled_residual(node: Node, context: Context) -> Patch | None:
    """round((a * s + b * t) / c) == round(a * (s / c) + b * (t / c)), up to the rounding of the factors, for whole a and b."""
    ratio = context.producer(node.inputs[0], "map") if node.attrs["fn"] == "round" else None
    factor = _factor(ratio, context) if ratio is not None else None
    total, top = context.producer(ratio.inputs[0], "map") if factor is not None else None, None
    if total is not None and total.attrs["fn"] == "max" and context.scalar(total.inputs[1]) == 0 and context.used_once(total.output):
        total, top = context.producer(total.inputs[0], "map"), total
    if total is None or total.attrs["fn"] != "add" or not context.used_once(total.output):
        return None
    terms = [context.producer(value, "map") for value in total.inputs]
    scales = [context.scalar(term.inputs[1]) if term is not None and term.attrs["fn"] == "mul" else None for term in terms]
    if any(scale is None for scale in scales):
        return None
    b = context.build(node)
    numbers = [np.float32(float(scale) * factor) for scale in scales]
    x, y = (term.inputs[0] for term in terms)
    second = b.map("mul", y, b.scalar_like(numbers[1], y))
    joined = b.map("round", b.map("fma", x, b.scalar_like(numbers[0], x), second))
    return patch("one scale for each term", b, joined if top is None else b.map("max", joined, b.scalar_like(0, joined)))


RULES = (
    quantised_again,
    widened_code,
    shifted_code,
    raised_code,
    widened_before_pooling,
    shifted_before_pooling,
    scaled_sum,
    scaled_again,
    scaled_maximum,
    rounded_maximum,
    scaled_residual,
)
