"""ONNX Attention: scaled dot products, masks, a softmax and the weighted sum, with grouped heads and a key-value cache.

Query heads that share a key head stand beside it as one more axis, so that keys and values are not repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, join, number

_Q, _K, _V, _MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = range(7)


@dataclass
class _Scores:
    """Scores [batch, heads, queries, keys] on their way to probabilities; ``may_be_empty``: a row may have no key left."""

    x: Term
    may_be_empty: bool = False

    def keep(self, allowed: Term) -> None:
        """Puts -inf where a key is not allowed."""
        self.x = allowed.where(self.x, -math.inf)


@onnx_op("Attention", since=23)
def attention(ctx: OpContext) -> list[Value | None]:
    """Attention (opset 23, 24, 25): outputs Y, present_key, present_value, qk_matmul_output."""
    flat = ctx.input(_Q).rank == 3
    q = _heads(ctx, _Q, "q_num_heads", split=flat)
    k, v = _heads(ctx, _K, "kv_num_heads", split=flat), _heads(ctx, _V, "kv_num_heads", split=flat)
    k, v = _with_past(ctx, _PAST_KEY, k), _with_past(ctx, _PAST_VALUE, v)
    scores = _Scores(_scaled_products(ctx, q, k))
    shown = {0: scores.x}
    _soften(ctx, scores)
    shown[1] = scores.x
    _mask(ctx, scores)
    shown[2] = scores.x
    probabilities = _softmax(ctx, scores).convert(q.dtype)
    shown[3] = probabilities
    y = _grouped(probabilities, k).dot(v.convert(q.dtype), batch=((0, 1), (0, 1)), contract=((4,), (2,)))
    y = y.reshape(q.shape[0], q.shape[1], q.shape[2], v.shape[3])
    if flat:
        y = y.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], q.shape[1] * v.shape[3])
    outputs = [y, k, v, shown[ctx.attr("qk_matmul_output_mode", 0)]]
    return [term.value if ctx.wants(n) else None for n, term in enumerate(outputs)][: ctx.output_count]


def _heads(ctx: OpContext, operand: int, attr: str, *, split: bool) -> Term:
    """An operand as [batch, heads, sequence, size]."""
    x = Term(ctx.builder, ctx.input(operand))
    if not split:
        return x
    count = ctx.attr(attr, None)
    if not count:
        ctx.invalid(f"operands of rank 3 need the attribute {attr}")
    batch, length, width = x.shape
    return x.reshape(batch, length, count, dims.floordiv(width, count)).transpose(0, 2, 1, 3)


def _with_past(ctx: OpContext, operand: int, x: Term) -> Term:
    return join([Term(ctx.builder, ctx.input(operand)), x], 2) if ctx.has(operand) else x


def _grouped(x: Term, keys: Term) -> Term:
    """[batch, heads, ...] -> [batch, key heads, heads per key head, ...]."""
    groups = keys.shape[1]
    return x.reshape(x.shape[0], groups, dims.floordiv(x.shape[1], groups), *x.shape[2:])


def _scaled_products(ctx: OpContext, q: Term, k: Term) -> Term:
    """scale q k^T; narrow floats take the root of the scale on both sides first, so that the product cannot overflow."""
    scale = ctx.attr("scale", None)
    if scale is None:
        size = q.shape[3]
        if not isinstance(size, int):
            ctx.fail("the size of the heads is symbolic", hint="give the attribute scale")
        scale = 1 / math.sqrt(size)
    narrow = q.dtype.bits < 32
    left, right = (q * math.sqrt(scale), k * math.sqrt(scale)) if narrow else (q, k)
    products = _grouped(left, k).dot(right, batch=((0, 1), (0, 1)), contract=((4,), (3,)))
    products = products.reshape(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return products if narrow else products * scale


def _soften(ctx: OpContext, scores: _Scores) -> None:
    """softcap tanh(x / softcap)"""
    cap = ctx.attr("softcap", 0.0)
    if cap:
        scores.x = (scores.x / cap).map("tanh") * cap


# Masks ----------------------------------------------------------------------------------------------------------


def _mask(ctx: OpContext, scores: _Scores) -> None:
    """The mask operand, then what is_causal, the window and the lengths of the cache forbid."""
    if ctx.has(_MASK):
        _apply_operand(ctx, scores)
    queries, keys = scores.x.shape[-2:]
    left, right = ctx.attr("left_window_size", -1), ctx.attr("right_window_size", -1)
    causal = bool(ctx.attr("is_causal", 0))
    right = 0 if causal else right
    if (left is not None and left >= 0) or (right is not None and right >= 0):
        gap = _gap(ctx, queries, keys)
        if right is not None and right >= 0:
            scores.keep(gap >= -right)
        if left is not None and left >= 0:
            scores.keep(gap <= left)
            scores.may_be_empty = True
    if ctx.has(_LENGTHS):
        scores.keep(_places(ctx, keys) < _lengths(ctx))
        scores.may_be_empty = True


def _apply_operand(ctx: OpContext, scores: _Scores) -> None:
    """A bool mask keeps keys, a float one is added; keys beyond its last axis are masked."""
    mask = Term(ctx.builder, ctx.input(_MASK))
    scores.may_be_empty = True
    missing = scores.x.shape[-1] - mask.shape[-1]
    is_bool = mask.dtype == dtypes.BOOL
    if mask.shape[-1] != 1 and missing != 0:
        mask = mask if is_bool else mask.convert(scores.x.dtype)
        fill = ctx.builder.constant(False if is_bool else -math.inf, mask.dtype)
        high = (*(0,) * (mask.rank - 1), dims.maximum(missing, 0))
        mask = Term(ctx.builder, ctx.builder.emit("pad", mask.value, fill, low=(0,) * mask.rank, high=high, mode="constant"))
        mask = mask.reshape(*mask.shape[:-1], scores.x.shape[-1])
    if is_bool:
        scores.keep(mask)
    else:
        scores.x = scores.x + mask.convert(scores.x.dtype)


def _places(ctx: OpContext, count: DimLike) -> Term:
    return Term(ctx.builder, ctx.builder.iota((count,)))


def _lengths(ctx: OpContext) -> Term:
    """nonpad_kv_seqlen as [batch, 1, 1, 1]."""
    lengths = Term(ctx.builder, ctx.input(_LENGTHS)).convert(dtypes.I64)
    return lengths.reshape(lengths.shape[0], 1, 1, 1)


def _gap(ctx: OpContext, queries: DimLike, keys: DimLike) -> Term:
    """How far each key stands before each query, whose position counts the keys that precede the block of queries."""
    places = _places(ctx, queries).expand(1) - _places(ctx, keys)
    if ctx.has(_PAST_KEY):
        return places + number(ctx.builder, ctx.input(_PAST_KEY).shape[2], dtypes.I64)
    if not ctx.has(_LENGTHS):
        return places
    return places + (_lengths(ctx) - number(ctx.builder, queries, dtypes.I64))


def _softmax(ctx: OpContext, scores: _Scores) -> Term:
    """Probabilities over the keys; a row without keys is all zeros."""
    precision = ctx.attr("softmax_precision", None)
    x = scores.x.convert(dtypes.from_onnx(precision)) if precision else scores.x
    top = x.max(3, keepdims=True)
    if not scores.may_be_empty:
        powers = (x - top).map("exp")
        return powers / powers.sum(3, keepdims=True)
    powers = (x - top.equals(-math.inf).where(0.0, top)).map("exp")
    total = powers.sum(3, keepdims=True)
    return powers / total.equals(0).where(1.0, total)
