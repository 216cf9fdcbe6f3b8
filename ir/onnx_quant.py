"""ONNX quantisation: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearConv, QLinearMatMul, ConvInteger.

Quantised arithmetic is exact: integers less their zero points, products summed in i32, one scaling back at the end.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_conv import emit_conv, read_window
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term


def integer_range(dtype: DType) -> tuple[int, int]:
    """The smallest and largest value of an integer type of any width."""
    info = ml_dtypes.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


def along(x: Term, like: Term, axis: int, block: int = 0) -> Term:
    """A scale or zero point shaped to broadcast over ``like``: one for all, one per index of an axis, or one per block."""
    if x.rank == 0 or (x.rank == 1 and x.shape[0] == 1):
        return x.reshape()
    if block:
        return _per_block(x, like, axis, block)
    if x.rank != 1:
        return x
    return x.reshape(*(x.shape[0] if k == axis else 1 for k in range(like.rank)))


def _per_block(x: Term, like: Term, axis: int, block: int) -> Term:
    """Each element repeated ``block`` times along the axis, cut to the extent of ``like``."""
    shape = x.shape
    wide = x.expand(axis + 1).broadcast(*shape[: axis + 1], block, *shape[axis + 1 :])
    wide = wide.reshape(*shape[:axis], shape[axis] * block, *shape[axis + 1 :])
    return wide.part(axis, 0, like.shape[axis])


def is_zero(ctx: OpContext, value: Value | None) -> bool:
    """Whether a zero point is absent or known to be all zeros."""
    array = None if value is None else ctx.builder.constant_of(value)
    return value is None or (array is not None and not array.astype(np.float32).any())


def quantize(x: Term, scale: Term, zero: Term | None, target: DType, *, saturate: bool = True) -> Term:
    """saturate(round(x / scale) + zero) in ``target``; the scale and zero point broadcast over x."""
    ratio = (x / scale).convert(x.dtype.compute)
    if target.is_float:
        ratio = ratio if zero is None else ratio + zero.convert(ratio.dtype)
        return Term(x.b, x.b.convert(ratio.value, target, saturate=saturate))
    low, high = integer_range(target)
    whole = ratio.map("round")
    whole = whole if zero is None else whole + zero.convert(whole.dtype)
    return whole.map("max", low).map("min", high).convert(target)


def dequantize(x: Term, scale: Term, zero: Term | None, target: DType) -> Term:
    """(x - zero) * scale in ``target``; products of narrow floats round once."""
    work = target.compute
    wide = x.convert(work)
    wide = wide if zero is None else wide - zero.convert(work)
    return (wide * scale.convert(work)).convert(target)


def _axis(ctx: OpContext, rank: int) -> int:
    return ctx.axis(ctx.attr("axis", 1), rank) if rank > 1 or ctx.has_attr("axis") else 0


def _quantized_type(ctx: OpContext) -> DType:
    """The type of QuantizeLinear's output: the zero point's, else output_dtype, else u8."""
    if ctx.has(2):
        return ctx.input(2).dtype
    return dtypes.from_onnx(ctx.attr("output_dtype", 0) or dtypes.U8.onnx)


@onnx_op("QuantizeLinear", since=10)
def quantize_linear(ctx: OpContext) -> Value:
    """QuantizeLinear (opset 10, 13, 19, 21, 23, 24, 25): per tensor, per axis or in blocks, to any integer or f8/f4 type."""
    x, scale = Term(ctx.builder, ctx.input(0)), Term(ctx.builder, ctx.input(1))
    axis, block = _axis(ctx, x.rank) if scale.rank else 0, ctx.attr("block_size", 0)
    work = _division_type(ctx, x, scale)
    zero = None if is_zero(ctx, ctx.optional(2)) else along(Term(ctx.builder, ctx.input(2)), x, axis, block)
    ratio_scale = along(scale, x, axis, block).convert(work)
    return quantize(x.convert(work), ratio_scale, zero, _quantized_type(ctx), saturate=bool(ctx.attr("saturate", 1))).value


def _division_type(ctx: OpContext, x: Term, scale: Term) -> DType:
    """The type x / scale is computed in: ``precision`` (opset 23), else the scale's; f32 where that is f8."""
    wanted = ctx.attr("precision", 0) or 0
    if wanted:
        return dtypes.from_onnx(wanted)
    if scale.dtype.is_float and scale.dtype.bits >= 16:
        return scale.dtype
    return x.dtype if x.dtype.is_float else dtypes.F32


@onnx_op("DequantizeLinear", since=10)
def dequantize_linear(ctx: OpContext) -> Value:
    """DequantizeLinear (opset 10, 13, 19, 21, 23, 24, 25)."""
    x, scale = Term(ctx.builder, ctx.input(0)), Term(ctx.builder, ctx.input(1))
    axis, block = _axis(ctx, x.rank) if scale.rank else 0, ctx.attr("block_size", 0)
    target = dtypes.from_onnx(ctx.attr("output_dtype", 0) or scale.dtype.onnx)
    zero = None if is_zero(ctx, ctx.optional(2)) else along(Term(ctx.builder, ctx.input(2)), x, axis, block)
    return dequantize(x, along(scale, x, axis, block), zero, target).value


@onnx_op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(ctx: OpContext) -> tuple[Value, Value, Value]:
    """DynamicQuantizeLinear (opset 11): u8 with the range of the data, which is made to hold 0."""
    x = Term(ctx.builder, ctx.input(0))
    axes = range(x.rank)
    high, low = x.max(*axes).map("max", 0), x.reduce("min", axes).map("min", 0)
    scale = (high - low) / 255
    scale = scale.equals(0).where(1.0, scale)  # all zeros: any scale represents them
    zero = (-low / scale).map("max", 0).map("min", 255).map("round").convert(dtypes.U8)
    return quantize(x, scale, zero, dtypes.U8).value, scale.value, zero.value


# Integer products -----------------------------------------------------------------------------------------------


def centred(ctx: OpContext, k: int, zero: int, like_axis: int | None = None) -> Term:
    """Operand k as i32 less the zero point in operand ``zero``, which runs along an axis where it has more than one element.

    8-bit floats become f32.
    """
    x = Term(ctx.builder, ctx.input(k))
    x = x.convert(dtypes.F32 if x.dtype.is_float else dtypes.I32)
    if is_zero(ctx, ctx.optional(zero)):
        return x
    point = Term(ctx.builder, ctx.input(zero)).convert(x.dtype)
    return x - along(point, x, 0 if like_axis is None else like_axis)


@onnx_op("ConvInteger", since=10)
def conv_integer(ctx: OpContext) -> Value:
    """ConvInteger (opset 10): the i32 convolution of centred integers."""
    x, w = centred(ctx, 0, 2), centred(ctx, 1, 3, 0)
    window = read_window(ctx, x.shape[2:], w.shape[2:])
    return emit_conv(ctx.builder, x.value, w.value, window, ctx.attr("group", 1), dtypes.I32)


@onnx_op("QLinearConv", since=10)
def qlinear_conv(ctx: OpContext) -> Value:
    """QLinearConv (opset 10): x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, optional i32 bias."""
    b = ctx.builder
    x, w = centred(ctx, 0, 2), centred(ctx, 3, 5, 0)
    window = read_window(ctx, x.shape[2:], w.shape[2:])
    total = Term(b, emit_conv(b, x.value, w.value, window, ctx.attr("group", 1), dtypes.I32))
    if ctx.has(8):
        bias = Term(b, ctx.input(8))
        total = total + bias.reshape(bias.shape[0], *(1,) * (total.rank - 2))
    scale = Term(b, ctx.input(1)) * along(Term(b, ctx.input(4)), total, 1) / Term(b, ctx.input(6)).reshape()
    return requantize(ctx, total, scale, 7).value


def requantize(ctx: OpContext, total: Term, scale: Term, zero: int) -> Term:
    """round(total * scale) + the zero point of operand ``zero``, saturated to its type."""
    value = ctx.input(zero)
    if value.dtype.is_float:
        real = total.convert(dtypes.F32) * scale + Term(ctx.builder, value).convert(dtypes.F32).reshape()
        return Term(ctx.builder, ctx.builder.convert(real.value, value.dtype, saturate=True))
    low, high = integer_range(value.dtype)
    whole = (total.convert(dtypes.F32) * scale).map("round")
    if not is_zero(ctx, value):
        whole = whole + Term(ctx.builder, value).convert(dtypes.F32).reshape()
    return whole.map("max", low).map("min", high).convert(value.dtype)


@onnx_op("QLinearMatMul", since=10)
def qlinear_matmul(ctx: OpContext) -> Value:
    """QLinearMatMul (opset 10, 21): a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero; scales per tensor, row of a, column of b."""
    b = ctx.builder
    sides = [_rows(ctx, 0, 2), _columns(ctx, 3, 5)]
    if any(x.dtype.is_float for x in sides):
        sides = [x.convert(dtypes.F32) for x in sides]
    total = Term(b, ctx.call("MatMul", [x.value for x in sides])[0])
    left = _broadcast_scale(Term(b, ctx.input(1)).convert(dtypes.F32), last=False)
    right = _broadcast_scale(Term(b, ctx.input(4)).convert(dtypes.F32), last=True)
    return requantize(ctx, total, left * right / Term(b, ctx.input(6)).convert(dtypes.F32).reshape(), 7).value


def _broadcast_scale(scale: Term, *, last: bool) -> Term:
    if scale.rank != 1 or scale.shape[0] == 1:
        return scale.reshape() if scale.rank <= 1 else scale
    return scale if last else scale.expand(1)


def _rows(ctx: OpContext, k: int, zero: int) -> Term:
    """The left matrix, with zero points per row."""
    x = ctx.input(k)
    return centred(ctx, k, zero, max(x.rank - 2, 0))


def _columns(ctx: OpContext, k: int, zero: int) -> Term:
    """The right matrix, with zero points per column."""
    return centred(ctx, k, zero, ctx.input(k).rank - 1)
