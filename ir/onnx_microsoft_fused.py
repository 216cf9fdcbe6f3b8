"""Operators of com.microsoft that ONNX Runtime's optimiser makes of several: convolutions and products with activations, embeddings.

Source: ContribOperators.md of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.ir import dtypes
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_quant import dequantize, is_zero, quantize
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term

_MS = "com.microsoft"
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_GEMM = ("alpha", "beta", "transA", "transB")

# The parameters of activations, in the order of activation_params.
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max"),
}  # fmt: skip


def _given(ctx: OpContext, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: ctx.attr(name) for name in names if ctx.has_attr(name)}


def _activated(ctx: OpContext, y: Value, params: list[float]) -> Value:
    """The activation that the attribute names, of y."""
    name = ctx.attr("activation", "")
    if not name:
        return y
    if name not in _ACTIVATIONS:
        ctx.fail(f"the activation {name} is not supported", hint=f"known are {', '.join(_ACTIVATIONS)}")
    values = dict(zip(_ACTIVATIONS[name], params, strict=False))
    if name == "Clip":
        return Term(ctx.builder, y).map("max", values["min"]).map("min", values["max"]).value
    return ctx.call(name, [y], values)[0]


@onnx_op("FusedConv", domain=_MS)
def fused_conv(ctx: OpContext) -> Value:
    """FusedConv: activation(Conv(X, W, B) + Z)."""
    b = ctx.builder
    y = ctx.call("Conv", [ctx.input(0), ctx.input(1), ctx.optional(2)], _given(ctx, _CONV))[0]
    y = (Term(b, y) + Term(b, ctx.input(3))).value if ctx.has(3) else y
    return _activated(ctx, y, ctx.attr("activation_params", None) or [])


@onnx_op("FusedGemm", domain=_MS)
def fused_gemm(ctx: OpContext) -> Value:
    """FusedGemm: activation(Gemm(A, B, C))."""
    y = ctx.call("Gemm", [ctx.input(0), ctx.input(1), ctx.optional(2)], _given(ctx, _GEMM))[0]
    params = [ctx.attr(f"activation_{name}") for name in ("alpha", "beta", "gamma") if ctx.has_attr(f"activation_{name}")]
    return _activated(ctx, y, params)


@onnx_op("QGemm", domain=_MS)
def quantised_gemm(ctx: OpContext) -> Value:
    """QGemm: alpha A B + C of quantised A and B, with C in i32; quantised where y_scale is given, else f32.

    Operands: A, a_scale, a_zero, B, b_scale, b_zero, C, y_scale, y_zero. Scales and zero points of B may be per column.
    """
    b, alpha = ctx.builder, ctx.attr("alpha", 1.0)
    sides = [_turned(ctx, k, ctx.attr(name, 0)) for k, name in ((0, "transA"), (3, "transB"))]
    zeros = [ctx.optional(2), ctx.optional(5)]
    total = Term(b, ctx.call("MatMulInteger", [*sides, *(None if is_zero(ctx, zero) else zero for zero in zeros)])[0])
    total = total + Term(b, ctx.input(6)) if ctx.has(6) else total
    scale = Term(b, ctx.input(1)).reshape() * Term(b, ctx.input(4)) * alpha
    real = total.convert(dtypes.F32) * scale
    if not ctx.has(7):
        return real.value
    zero = ctx.optional(8)
    dtype = ctx.input(0).dtype if zero is None else zero.dtype
    return quantize(real, Term(b, ctx.input(7)).reshape(), None if is_zero(ctx, zero) else Term(b, zero).reshape(), dtype).value


def _turned(ctx: OpContext, k: int, swap: int) -> Value:
    x = ctx.input(k)
    return ctx.builder.transpose(x, (1, 0)) if swap else x


@onnx_op("EmbedLayerNormalization", domain=_MS)
def embed_layer_normalization(ctx: OpContext) -> list[Value | None]:
    """EmbedLayerNormalization: input_ids, segment_ids, word, position, segment embeddings, gamma, beta, mask, position_ids.

    Outputs: the normalised sum, how many of the mask's flags are set (0 without a mask), and the sum.
    """
    b = ctx.builder
    tokens = Term(b, ctx.input(0))
    places = Term(b, ctx.input(8)) if ctx.has(8) else Term(b, b.iota((tokens.shape[1],)))
    total = Term(b, ctx.input(2)).take(tokens, 0) + Term(b, ctx.input(3)).take(places, 0)
    if ctx.has(1):
        total = total + Term(b, ctx.input(4)).take(Term(b, ctx.input(1)), 0)
    attrs = {"axis": -1, "epsilon": ctx.attr("epsilon", 1e-12)}
    y = ctx.call("LayerNormalization", [total.value, ctx.input(5), ctx.input(6)], attrs)[0]
    count = None
    if ctx.wants(1):
        mask = Term(b, ctx.input(7)) if ctx.has(7) else tokens.map("mul", 0)
        count = mask.convert(dtypes.I32).sum(1).value
    return [y, count, total.value if ctx.wants(2) else None][: ctx.output_count]


@onnx_op("QLinearReduceMean", domain=_MS)
def qlinear_reduce_mean(ctx: OpContext) -> Value:
    """QLinearReduceMean: data, data_scale, data_zero, y_scale, y_zero."""
    b = ctx.builder
    zero = ctx.optional(2)
    x = dequantize(
        Term(b, ctx.input(0)), Term(b, ctx.input(1)).reshape(), None if is_zero(ctx, zero) else Term(b, zero).reshape(), dtypes.F32
    )
    axes = [ctx.axis(axis, x.rank) for axis in ctx.attr("axes", None) or range(x.rank)]
    y = x.mean(*axes, keepdims=bool(ctx.attr("keepdims", 1)))
    zero = ctx.optional(4)
    return quantize(y, Term(b, ctx.input(3)).reshape(), None if is_zero(ctx, zero) else Term(b, zero).reshape(), ctx.input(0).dtype).value
