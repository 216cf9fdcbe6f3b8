"""ONNX normalisations over channels: BatchNormalization, InstanceNormalization, GroupNormalization and LRN.

Each is arithmetic over core ``map`` and ``reduce``; statistics are in float32 at least.
"""

from __future__ import annotations

from tcompile.ir import dims, dtypes
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term


def _channel(ctx: OpContext, k: int, rank: int, dtype: DType) -> Term:
    """Operand k [C], shaped to broadcast over [N, C, ...]; one per element ([C, ...], BatchNormalization's old spatial = 0) does."""
    value = Term(ctx.builder, ctx.input(k)).convert(dtype)
    if value.rank > 1:
        return value
    return value.reshape(value.shape[0], *(1,) * (rank - 2))


@onnx_op("BatchNormalization")
def batch_normalization(ctx: OpContext) -> Value | tuple[Value, ...]:
    """BatchNormalization (opset 1, 6, 7, 9, 14, 15): operands X, scale, B, mean, var.

    Inference is one multiply-add per element, whose constants fold. Training mode (``training_mode``, or more
    than one output before opset 14) normalises with the batch's statistics and returns the running ones.
    """
    x = Term(ctx.builder, ctx.input(0))
    work = x.dtype.compute
    training = ctx.attr("training_mode", 0) if ctx.opset >= 14 else ctx.output_count > 1
    if not training:
        mean, variance = _channel(ctx, 3, x.rank, work), _channel(ctx, 4, x.rank, work)
        return _normalise(ctx, x, mean, variance).value
    return _train(ctx, x)


def _normalise(ctx: OpContext, x: Term, mean: Term, variance: Term) -> Term:
    """x * s + (B - mean * s) with s = scale / sqrt(var + epsilon)."""
    work = x.dtype.compute
    scale, bias = _channel(ctx, 1, x.rank, work), _channel(ctx, 2, x.rank, work)
    factor = scale / (variance + ctx.attr("epsilon", 1e-5)).map("sqrt")
    return (x.convert(work) * factor + (bias - mean * factor)).convert(x.dtype)


def _train(ctx: OpContext, x: Term) -> tuple[Value, ...]:
    work = x.dtype.compute
    axes = [k for k in range(x.rank) if k != 1]
    wide = x.convert(work)
    mean = wide.mean(*axes)
    column = (x.shape[1], *(1,) * (x.rank - 2))
    centred = wide - mean.reshape(*column)
    variance = (centred * centred).mean(*axes)
    y = _normalise(ctx, x, mean.reshape(*column), variance.reshape(*column))
    momentum = ctx.attr("momentum", 0.9)
    running = []
    for k, now in ((3, mean), (4, variance)):
        before = Term(ctx.builder, ctx.input(k))
        running.append((before.convert(work) * momentum + now * (1.0 - momentum)).convert(before.dtype).value)
    saved = [mean.convert(x.dtype).value, variance.convert(x.dtype).value]
    return tuple([y.value, *running, *saved][: ctx.output_count])


@onnx_op("InstanceNormalization")
def instance_normalization(ctx: OpContext) -> Value:
    """InstanceNormalization (opset 1, 6, 22): statistics over the spatial axes."""
    x = Term(ctx.builder, ctx.input(0))
    work = x.dtype.compute
    unit = _standardise(x.convert(work), range(2, x.rank), ctx.attr("epsilon", 1e-5))
    y = unit * _channel(ctx, 1, x.rank, work) + _channel(ctx, 2, x.rank, work)
    return y.convert(x.dtype).value


def _standardise(x: Term, axes, epsilon: float) -> Term:
    """(x - mean) / sqrt(var + epsilon) over the axes."""
    axes = tuple(axes)
    centred = x - x.mean(*axes, keepdims=True)
    variance = (centred * centred).mean(*axes, keepdims=True)
    return centred / (variance + epsilon).map("sqrt")


@onnx_op("GroupNormalization", since=18)
def group_normalization(ctx: OpContext) -> Value:
    """GroupNormalization (opset 18: scale and bias per group; 21: per channel)."""
    x = Term(ctx.builder, ctx.input(0))
    groups, channels = ctx.attr("num_groups"), x.shape[1]
    work = dtypes.from_onnx(ctx.attr("stash_type", 1)) if ctx.opset >= 21 else x.dtype.compute
    grouped = (x.shape[0], groups, dims.floordiv(channels, groups), *x.shape[2:])
    unit = _standardise(x.convert(work).reshape(*grouped), range(2, x.rank + 1), ctx.attr("epsilon", 1e-5))
    if ctx.opset < 21:
        y = unit * _channel(ctx, 1, x.rank + 1, work) + _channel(ctx, 2, x.rank + 1, work)
        return y.reshape(*x.shape).convert(x.dtype).value
    y = unit.reshape(*x.shape) * _channel(ctx, 1, x.rank, work) + _channel(ctx, 2, x.rank, work)
    return y.convert(x.dtype).value


@onnx_op("LRN")
def local_response_normalization(ctx: OpContext) -> Value:
    """LRN (opset 1, 13): x / (bias + alpha / size * sum of squares over a window of channels) ** beta."""
    x = Term(ctx.builder, ctx.input(0))
    work, size = x.dtype.compute, ctx.attr("size")
    wide = x.convert(work)
    total = _channel_window_sum(wide * wide, size)
    base = total * (ctx.attr("alpha", 1e-4) / size) + ctx.attr("bias", 1.0)
    return (wide / base ** ctx.attr("beta", 0.75)).convert(x.dtype).value


def _channel_window_sum(x: Term, size: int) -> Term:
    ones, zeros = (1,) * x.rank, [0] * x.rank
    low, high, window = list(zeros), list(zeros), list(ones)
    window[1], low[1], high[1] = size, (size - 1) // 2, size // 2
    total = x.b.emit(
        "reduce_window", x.value, fn="add", window=tuple(window), strides=ones, dilation=ones, low=tuple(low), high=tuple(high)
    )  # fmt: skip
    return Term(x.b, total)
