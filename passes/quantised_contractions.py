"""Contractions of quantised factors as contractions of integers; part of ``passes/quantised.py``.

    conv((q - z) * s, (w - u) * t)  ==  conv(q - z, w - u) * (s * t)

Exact but for the rounding of the scales' product: the integers' products and sums are, where i32 holds them. Which form
the activations are held in is the target's:

    2 parts     halves: q - z in i16, which needs no correction and is padded with zeros
    4 parts     bytes: q in u8 (i8 codes moved up by 128), padded with z; z times the sum of the weights is subtracted afterwards
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32, I8, I16, I32, U8
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.target import Target
from tcompile.passes.quantised_match import Quantised, Weights, constant_weights, quantised, scale_along
from tcompile.passes.rewrite import Context, Patch, Rule, patch, rule

_LARGEST_CODE = 255


def contraction_rules(target: Target) -> tuple[Rule, ...]:
    """The rules for a target that multiplies words of ``target.dot_parts`` parts."""

    @rule("conv")
    def integer_conv(node: Node, context: Context) -> Patch | None:
        if any(d != 1 for d in node.attrs["lhs_dilation"]):
            return None
        return _integer(node, context, target.dot_parts, axes=(0,), summed=tuple(range(1, node.inputs[1].rank)))

    @rule("dot_general")
    def integer_dot(node: Node, context: Context) -> Patch | None:
        contract = node.attrs["contract"][1]
        if node.attrs["batch"][0]:
            return None
        return _integer(node, context, target.dot_parts, axes=free_axes(node.inputs[1].rank, (), contract), summed=contract)

    return (integer_conv, integer_dot)


def _integer(node: Node, context: Context, parts: int, axes: tuple[int, ...], summed: tuple[int, ...]) -> Patch | None:
    """The patch of a contraction whose weights have the free axes ``axes`` and are summed over ``summed``."""
    if node.attrs["dtype"] not in (F32, I32) or node.inputs[0].dtype.bits < 32:
        return None
    weights, b = constant_weights(node.inputs[1], context), context.build(node)
    if weights is None or not weights.codes.size or not _fits_i32(weights, summed):
        return None
    scale = scale_along(weights, axes)
    x = quantised(node.inputs[0], context, b)
    if x is None or scale is None:
        return None
    narrow = parts == 4 and weights.codes.min() >= -128 and weights.codes.max() <= 127
    total = _by_bytes(node, b, x, weights, axes, summed) if narrow else _by_halves(node, b, x, weights)
    if node.attrs["dtype"] == F32:
        factor = (scale.astype(np.float64) * x.scale).astype(np.float32)
        if not np.isfinite(factor).all():
            return None
        total = b.convert(total, F32)
        total = b.map("mul", total, _by_channel(b, node, total, factor))
    return patch("integers multiplied", b, total)


def _fits_i32(weights: Weights, summed: tuple[int, ...]) -> bool:
    """Whether no sum of products with codes less a zero point leaves i32."""
    return int(np.abs(weights.codes.astype(np.int64)).sum(axis=summed).max()) * _LARGEST_CODE < 2**31


def _by_halves(node: Node, b: Builder, x: Quantised, weights: Weights) -> Value:
    left = centred(b, x)
    return b.emit(node.op, left, b.constant(weights.codes.astype(np.int16)), **{**node.attrs, "dtype": I32})


def centred(b: Builder, x: Quantised) -> Value:
    """codes - zero in i16."""
    wide = b.convert(x.codes, I16)
    if isinstance(x.zero, Value):
        return b.map("sub", wide, b.broadcast_to(b.convert(x.zero, I16), wide.shape))
    return wide if x.zero == 0 else b.map("add", wide, b.scalar_like(-x.zero, wide))


def _by_bytes(node: Node, b: Builder, x: Quantised, weights: Weights, axes: tuple[int, ...], summed: tuple[int, ...]) -> Value:
    codes, zero = _unsigned(b, x)
    attrs = {**node.attrs, "dtype": I32}
    if node.op == "conv" and not (isinstance(zero, int) and zero == 0):
        codes = _padded(b, codes, zero, attrs)
        attrs |= {name: (0,) * len(attrs[name]) for name in ("low", "high")}
    total = b.emit(node.op, codes, b.constant(weights.codes.astype(np.int8)), **attrs)
    sums = weights.codes.astype(np.int64).sum(axis=summed).astype(np.int32)
    if isinstance(zero, int):
        return total if zero == 0 else b.map("add", total, _by_channel(b, node, total, -zero * sums))
    spread = b.broadcast_to(b.convert(zero, I32), total.shape)
    return b.map("sub", total, b.map("mul", spread, _by_channel(b, node, total, sums)))


def _unsigned(b: Builder, x: Quantised) -> tuple[Value, int | Value]:
    """u8 codes and their zero point; signed ones move up by 128."""
    if x.codes.dtype == U8:
        return x.codes, x.zero
    assert x.codes.dtype == I8, x
    moved = [x.codes, x.zero] if isinstance(x.zero, Value) else [x.codes]
    up = [b.map("xor", raised, b.scalar_like(128, raised)) for raised in (b.convert(value, U8) for value in moved)]
    return up[0], up[1] if isinstance(x.zero, Value) else x.zero + 128


def _padded(b: Builder, codes: Value, zero: int | Value, attrs: dict) -> Value:
    low, high = attrs["low"], attrs["high"]
    if all(amount == 0 for amount in (*low, *high)):
        return codes
    fill = zero if isinstance(zero, Value) else b.constant(zero, U8)
    return b.emit("pad", codes, fill, low=(0, 0, *low), high=(0, 0, *high), mode="constant")


def _by_channel(b: Builder, node: Node, like: Value, array: np.ndarray) -> Value:
    """A constant by the weights' free axes, broadcast over the result."""
    if math.prod(array.shape) and (array == array.reshape(-1)[0]).all():
        return b.scalar_like(array.reshape(-1)[0].item(), like)
    axes = (1,) if node.op == "conv" else tuple(range(like.rank - array.ndim, like.rank))
    return b.emit("broadcast", b.constant(array), shape=like.shape, axes=axes)
