"""Operators of com.microsoft that ONNX Runtime's optimiser and quantiser write into models.

Sources: ContribOperators.md of onnxruntime. Quantised ones compute in float between exact roundings, as there.
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_pool import average_windows
from tcompile.ir.onnx_quant import dequantize, dequantize_linear, is_zero, quantize, quantize_linear
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, as_term, join

_MS = "com.microsoft"


# Activations ----------------------------------------------------------------------------------------------------


def _gelu(x: Term) -> Term:
    return x * 0.5 * ((x * math.sqrt(0.5)).map("erf") + 1)


def _fast_gelu(x: Term) -> Term:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))"""
    return x * 0.5 * (((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)).map("tanh") + 1)


def _with_bias(ctx: OpContext) -> Term:
    x = Term(ctx.builder, ctx.input(0))
    return x + Term(ctx.builder, ctx.input(1)) if ctx.has(1) else x


@onnx_op("Gelu", "BiasGelu", domain=_MS)
def gelu(ctx: OpContext) -> Value:
    """Gelu and BiasGelu: x Phi(x), of the operand plus an optional bias."""
    return _gelu(_with_bias(ctx)).value


@onnx_op("FastGelu", domain=_MS)
def fast_gelu(ctx: OpContext) -> Value:
    """FastGelu: the tanh form, of the operand plus an optional bias."""
    return _fast_gelu(_with_bias(ctx)).value


@onnx_op("QuickGelu", domain=_MS)
def quick_gelu(ctx: OpContext) -> Value:
    """QuickGelu: x sigmoid(alpha x)."""
    x = Term(ctx.builder, ctx.input(0))
    return (x * (x * ctx.attr("alpha", 1.702)).map("sigmoid")).value


# Products -------------------------------------------------------------------------------------------------------


@onnx_op("FusedMatMul", "TransposeMatMul", domain=_MS)
def fused_matmul(ctx: OpContext) -> Value:
    """FusedMatMul: alpha A B with either operand's last axes swapped."""
    b = ctx.builder
    operands = [_swapped(ctx, k, ctx.attr(f"trans{side}", 0), ctx.attr(f"transBatch{side}", 0)) for k, side in enumerate("AB")]
    y = Term(b, ctx.call("MatMul", operands)[0])
    alpha = ctx.attr("alpha", 1.0)
    return y.value if alpha == 1.0 else (y * alpha).value


def _swapped(ctx: OpContext, k: int, swap: int, batch_last: int) -> Value:
    """Operand k with its batch axes in front and its matrix axes in order; ``batch_last``: axis 0 is a matrix axis, before the batch."""
    x = ctx.input(k)
    order = list(range(x.rank))
    if batch_last and x.rank > 2:
        order = [*order[1:-1], 0, order[-1]]
    if swap and x.rank >= 2:
        order[-2:] = order[:-3:-1]
    return x if order == sorted(order) else ctx.builder.transpose(x, tuple(order))


@onnx_op("MatMulNBits", domain=_MS)
def matmul_nbits(ctx: OpContext) -> Value:
    """MatMulNBits: A [..., K] with weights [N, K] of 2, 4 or 8 bits in blocks along K, each with a scale and a zero point."""
    b = ctx.builder
    rows, depth, bits, block = ctx.attr("N"), ctx.attr("K"), ctx.attr("bits", 4), ctx.attr("block_size")
    blocks = -(-depth // block)
    a = Term(b, ctx.input(0))
    codes = _unpacked(ctx, 1, bits, rows * blocks, block).reshape(rows, blocks, block)
    scales, zeros = Term(b, ctx.input(2)).reshape(rows, blocks, 1), _block_zeros(ctx, bits, rows, blocks)
    if ctx.has(4):  # the block whose scale an element takes: quantised in the order of the activations
        codes = codes.reshape(rows, blocks * block).part(1, 0, depth).reshape(rows, depth, 1)
        group = Term(b, ctx.input(4)).convert(dtypes.I64)
        scales, zeros = (x if x.rank == 0 else x.take(group.part(0, 0, depth), 1) for x in (scales, zeros))
        weights = dequantize(codes, scales, zeros, a.dtype).reshape(rows, depth)
    else:
        weights = dequantize(codes, scales, zeros, a.dtype).reshape(rows, blocks * block).part(1, 0, depth)
    y = a.dot(weights, contract=((a.rank - 1,), (1,)))
    return (y + Term(b, ctx.input(5))).value if ctx.has(5) else y.value


def _unpacked(ctx: OpContext, k: int, bits: int, rows: int, count: int) -> Term:
    """Operand k as [rows, count] integers of ``bits``; each row starts at a byte, its first element in the low bits."""
    b, array = ctx.builder, ctx.constant(k)
    dtype = {2: dtypes.U2, 4: dtypes.U4, 8: dtypes.U8}.get(bits)
    if dtype is None:
        ctx.fail(f"weights of {bits} bits are not supported", hint="2, 4 and 8 are")
    if array is None:
        ctx.fail("packed weights must be constants")
    packed = array.reshape(rows, -1)
    if bits == 8:
        return as_term(b, packed[:, :count])
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = ((packed[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(rows, -1)[:, :count]
    return as_term(b, np.ascontiguousarray(fields).astype(dtype.numpy))


def _block_zeros(ctx: OpContext, bits: int, rows: int, blocks: int) -> Term:
    """The zero point of each block [rows, blocks, 1]; the middle of the range where none is given."""
    if not ctx.has(3):
        return Term(ctx.builder, ctx.builder.constant(float(1 << (bits - 1)), dtypes.F32))
    zeros = ctx.input(3)
    if zeros.dtype.is_float:
        return Term(ctx.builder, zeros).reshape(rows, blocks, 1)
    return _unpacked(ctx, 3, bits, rows, blocks).reshape(rows, blocks, 1)


# Normalisation --------------------------------------------------------------------------------------------------


def _normalised(x: Term, scale: Term, bias: Term | None, epsilon: float, *, centre: bool) -> Term:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis; without ``centre`` the mean counts as 0."""
    wide = x.convert(x.dtype.compute)
    wide = wide - wide.mean(x.rank - 1, keepdims=True) if centre else wide
    variance = (wide * wide).mean(x.rank - 1, keepdims=True)
    y = (wide / (variance + epsilon).map("sqrt")) * scale.convert(wide.dtype)
    return (y if bias is None else y + bias.convert(wide.dtype)).convert(x.dtype)


@onnx_op("SkipLayerNormalization", domain=_MS)
def skip_layer_normalization(ctx: OpContext) -> list[Value | None]:
    """SkipLayerNormalization: operands input, skip, gamma, beta, bias; output 3 is the sum that was normalised."""
    return _skip(ctx, beta=3, bias=4, centre=True)


@onnx_op("SkipSimplifiedLayerNormalization", domain=_MS)
def skip_simplified_layer_normalization(ctx: OpContext) -> list[Value | None]:
    """SkipSimplifiedLayerNormalization: operands input, skip, gamma, bias; the root mean square form."""
    return _skip(ctx, beta=None, bias=3, centre=False)


def _skip(ctx: OpContext, *, beta: int | None, bias: int, centre: bool) -> list[Value | None]:
    b = ctx.builder
    total = Term(b, ctx.input(0)) + Term(b, ctx.input(1))
    total = total + Term(b, ctx.input(bias)) if ctx.has(bias) else total
    shift = Term(b, ctx.input(beta)) if beta is not None and ctx.has(beta) else None
    y = _normalised(total, Term(b, ctx.input(2)), shift, ctx.attr("epsilon", 1e-12), centre=centre)
    return [y.value, None, None, total.value][: ctx.output_count]


# Quantised ------------------------------------------------------------------------------------------------------

onnx_op("QuantizeLinear", domain=_MS)(quantize_linear)
onnx_op("DequantizeLinear", domain=_MS)(dequantize_linear)


def _real(ctx: OpContext, k: int) -> Term:
    """Operands k, k+1, k+2 (values, scale, zero point) as floats."""
    b = ctx.builder
    zero = None if is_zero(ctx, ctx.optional(k + 2)) else Term(b, ctx.input(k + 2)).reshape()
    return dequantize(Term(b, ctx.input(k)), Term(b, ctx.input(k + 1)).reshape(), zero, dtypes.F32)


def _coded(ctx: OpContext, y: Term, k: int, dtype: DType) -> Value:
    """y quantised with the scale and zero point in operands k, k+1."""
    b = ctx.builder
    zero = None if is_zero(ctx, ctx.optional(k + 1)) else Term(b, ctx.input(k + 1)).reshape()
    return quantize(y, Term(b, ctx.input(k)).reshape(), zero, dtype).value


@onnx_op("QLinearAdd", "QLinearMul", domain=_MS)
def qlinear_binary(ctx: OpContext) -> Value:
    """QLinearAdd and QLinearMul: a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero."""
    fn = "add" if ctx.op == "QLinearAdd" else "mul"
    return _coded(ctx, _real(ctx, 0).map(fn, _real(ctx, 3)), 6, ctx.input(0).dtype)


@onnx_op("QLinearSigmoid", "QLinearLeakyRelu", domain=_MS)
def qlinear_unary(ctx: OpContext) -> Value:
    """QLinearSigmoid and QLinearLeakyRelu: x, x_scale, x_zero, y_scale, y_zero."""
    x = _real(ctx, 0)
    y = x.map("sigmoid") if ctx.op == "QLinearSigmoid" else (x >= 0).where(x, x * ctx.attr("alpha", 0.01))
    return _coded(ctx, y, 3, ctx.input(0).dtype)


@onnx_op("QLinearSoftmax", domain=_MS)
def qlinear_softmax(ctx: OpContext) -> Value:
    """QLinearSoftmax: x, x_scale, x_zero, y_scale, y_zero."""
    x = _real(ctx, 0)
    axis = ctx.axis(ctx.attr("axis", -1), x.rank)
    axes = (axis,) if ctx.attr("opset", 13) >= 13 else tuple(range(axis, x.rank))
    powers = (x - x.max(*axes, keepdims=True)).map("exp")
    return _coded(ctx, powers / powers.sum(*axes, keepdims=True), 3, ctx.input(0).dtype)


@onnx_op("QLinearConcat", domain=_MS)
def qlinear_concat(ctx: OpContext) -> Value:
    """QLinearConcat: y_scale, y_zero, then triples of values, scale, zero point."""
    parts = [_real(ctx, k) for k in range(2, ctx.input_count, 3)]
    axis = ctx.axis(ctx.attr("axis"), parts[0].rank)
    return _coded(ctx, join(parts, axis), 0, ctx.input(1).dtype)


@onnx_op("QLinearGlobalAveragePool", domain=_MS)
def qlinear_global_average_pool(ctx: OpContext) -> Value:
    """QLinearGlobalAveragePool: x, x_scale, x_zero, y_scale, y_zero; channels_last too."""
    x = _real(ctx, 0)
    axes = range(1, x.rank - 1) if ctx.attr("channels_last", 0) else range(2, x.rank)
    return _coded(ctx, x.mean(*axes, keepdims=True), 3, ctx.input(0).dtype)


@onnx_op("QLinearAveragePool", domain=_MS)
def qlinear_average_pool(ctx: OpContext) -> Value:
    """QLinearAveragePool: x, x_scale, x_zero, y_scale, y_zero."""
    if ctx.attr("channels_last", 0):
        ctx.fail("channels_last is not supported")
    return _coded(ctx, average_windows(ctx, _real(ctx, 0)), 3, ctx.input(0).dtype)


@onnx_op("MatMulIntegerToFloat", domain=_MS)
def matmul_integer_to_float(ctx: OpContext) -> Value:
    """MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero, b_zero, bias."""
    b = ctx.builder
    product = Term(b, ctx.call("MatMulInteger", [ctx.item(0), ctx.item(1), ctx.item(4), ctx.item(5)])[0])
    y = product.convert(dtypes.F32) * (Term(b, ctx.input(2)) * Term(b, ctx.input(3)))
    return (y + Term(b, ctx.input(6))).value if ctx.has(6) else y.value


@onnx_op("DynamicQuantizeMatMul", domain=_MS)
def dynamic_quantize_matmul(ctx: OpContext) -> Value:
    """DynamicQuantizeMatMul: A in f32 is quantised to u8 first; B, b_scale, b_zero, bias."""
    b = ctx.builder
    coded, scale, zero = ctx.call("DynamicQuantizeLinear", [ctx.item(0)], outputs=3)
    product = Term(b, ctx.call("MatMulInteger", [coded, ctx.item(1), zero, ctx.item(3)])[0])
    y = product.convert(dtypes.F32) * (Term(b, scale) * Term(b, ctx.input(2)))
    return (y + Term(b, ctx.input(4))).value if ctx.has(4) else y.value


# Distances ------------------------------------------------------------------------------------------------------


@onnx_op("CDist", domain=_MS)
def pairwise_distances(ctx: OpContext) -> Value:
    """CDist: the distance of every row of A [m, k] from every row of B [n, k], as [m, n].

    Differences come first, so that near rows keep their digits.
    """
    metric = ctx.attr("metric", "sqeuclidean")
    if metric not in ("sqeuclidean", "euclidean"):
        ctx.fail(f"the metric {metric!r} is not supported", hint="sqeuclidean or euclidean")
    a, b = (Term(ctx.builder, ctx.input(k)) for k in range(2))
    gap = a.expand(1) - b.expand(0)
    total = (gap * gap).sum(2)
    return (total.map("sqrt") if metric == "euclidean" else total).value
