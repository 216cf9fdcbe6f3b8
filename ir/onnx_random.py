"""ONNX random operators over the counter-based bits of core ``rng_bits``: the same node gives the same numbers every run.

Streams differ from those of other runtimes, as ONNX allows. A node without a seed takes one from its name.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

from tcompile.ir import dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term


def _seed(ctx: OpContext) -> int:
    seed = ctx.attr("seed", None)
    return zlib.crc32(ctx.label.encode()) if seed is None else int.from_bytes(struct.pack("<f", seed), "little")


def uniform(ctx: OpContext, shape: Sequence[DimLike], dtype: DType) -> Term:
    """Numbers in [0, 1), in f32 or, for f64, of 32 random bits."""
    bits = Term(ctx.builder, ctx.builder.emit("rng_bits", shape=tuple(shape), seed=_seed(ctx)))
    if dtype == dtypes.F64:
        return bits.convert(dtypes.F64) * 2.0**-32
    # 24 bits: the sum of an f32's mantissa, so that 1 is never reached
    return bits.map("shr", 8).convert(dtypes.F32) * 2.0**-24


def normal(ctx: OpContext, shape: Sequence[DimLike], dtype: DType) -> Term:
    """Standard normal numbers, by Box and Muller."""
    pair = uniform(ctx, (2, *shape), dtype)
    radius = ((-(1 - pair.at(0, 0)).map("log")) * 2).map("sqrt")
    return radius * (pair.at(0, 1) * (2 * math.pi)).map("cos")


def _like(ctx: OpContext) -> tuple[Sequence[DimLike], DType]:
    x, number = ctx.input(0), ctx.attr("dtype", None)
    return x.shape, x.dtype if number is None else dtypes.from_onnx(number)


def _given(ctx: OpContext) -> tuple[Sequence[DimLike], DType]:
    return tuple(ctx.attr("shape")), dtypes.from_onnx(ctx.attr("dtype", 1))


@onnx_op("RandomUniform")
def random_uniform(ctx: OpContext) -> Value:
    """RandomUniform (opset 1, 22)."""
    return _uniform(ctx, *_given(ctx))


@onnx_op("RandomUniformLike")
def random_uniform_like(ctx: OpContext) -> Value:
    """RandomUniformLike (opset 1, 22)."""
    return _uniform(ctx, *_like(ctx))


def _uniform(ctx: OpContext, shape: Sequence[DimLike], dtype: DType) -> Value:
    low, high = ctx.attr("low", 0.0), ctx.attr("high", 1.0)
    return (uniform(ctx, shape, dtype) * (high - low) + low).convert(dtype).value


@onnx_op("RandomNormal")
def random_normal(ctx: OpContext) -> Value:
    """RandomNormal (opset 1, 22)."""
    return _normal(ctx, *_given(ctx))


@onnx_op("RandomNormalLike")
def random_normal_like(ctx: OpContext) -> Value:
    """RandomNormalLike (opset 1, 22)."""
    return _normal(ctx, *_like(ctx))


def _normal(ctx: OpContext, shape: Sequence[DimLike], dtype: DType) -> Value:
    return (normal(ctx, shape, dtype) * ctx.attr("scale", 1.0) + ctx.attr("mean", 0.0)).convert(dtype).value


@onnx_op("Bernoulli", since=15)
def bernoulli(ctx: OpContext) -> Value:
    """Bernoulli (opset 15, 22): 1 with the probability that the operand holds."""
    shape, dtype = _like(ctx)
    p = Term(ctx.builder, ctx.input(0)).convert(dtypes.F32)
    return (uniform(ctx, shape, dtypes.F32) < p).convert(dtype).value


@onnx_op("Multinomial", since=7)
def multinomial(ctx: OpContext) -> Value:
    """Multinomial (opset 7, 22): draws from the rows of unnormalised log probabilities, by the Gumbel maximum."""
    x = Term(ctx.builder, ctx.input(0)).convert(dtypes.F32)
    batch, classes = x.shape
    draws = ctx.attr("sample_size", 1)
    noise = uniform(ctx, (batch, draws, classes), dtypes.F32)
    gumbel = -(-(noise + 2.0**-25).map("log")).map("log")
    best = ctx.builder.emit("arg_reduce", (x.expand(1) + gumbel).value, fn="max", axis=2, last=False)
    return ctx.builder.convert(best, dtypes.from_onnx(ctx.attr("dtype", 6)))
