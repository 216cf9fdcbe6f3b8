"""Attention operators of com.microsoft: RotaryEmbedding, MultiHeadAttention, GroupQueryAttention, Attention.

Source: ContribOperators.md of onnxruntime. Heads stand as [batch, heads, sequence, size]; query heads that share a key
head stand beside it as one more axis, so that keys and values are not repeated.
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

_MS = "com.microsoft"
_MASKED = -10000.0  # what a mask adds to a score unless the node says otherwise


# Rotation -------------------------------------------------------------------------------------------------------


def rotated(x: Term, cosines: Term, sines: Term, *, interleaved: bool) -> Term:
    """Pairs of elements of x [batch, heads, sequence, size] turned by angles [batch or 1, sequence, half].

    The pairs are neighbours where ``interleaved``, else the elements of two halves; what is behind the last pair stays.
    """
    half = cosines.shape[-1]
    c, s = cosines.expand(1), sines.expand(1)
    turning, rest = x.part(3, 0, 2 * half), x.part(3, 2 * half, x.shape[3] - 2 * half)
    if interleaved:
        pairs = turning.reshape(*x.shape[:3], half, 2)
        a, b = pairs.at(4, 0), pairs.at(4, 1)
        turned = join([(a * c - b * s).expand(4), (a * s + b * c).expand(4)], 4).reshape(*x.shape[:3], 2 * half)
    else:
        a, b = turning.part(3, 0, half), turning.part(3, half, half)
        turned = join([a * c - b * s, a * s + b * c], 3)
    return turned if rest.shape[3] == 0 else join([turned, rest], 3)


@onnx_op("RotaryEmbedding", domain=_MS)
def rotary_embedding(ctx: OpContext) -> Value:
    """RotaryEmbedding: input [batch, sequence, width] or [batch, heads, sequence, size], position_ids, cos_cache, sin_cache."""
    if ctx.attr("is_packed_batching", 0):
        ctx.fail("packed batches are not supported", hint="pad the sequences")
    b, x = ctx.builder, Term(ctx.builder, ctx.input(0))
    cosines, sines = (Term(b, ctx.input(k)) for k in (2, 3))
    flat = x.rank == 3
    heads = _split(x, _head_count(ctx, x, cosines)) if flat else x
    places = Term(b, ctx.input(1)).convert(dtypes.I64)
    if places.rank < 2:  # where the sequence starts
        places = (places.reshape() + Term(b, b.iota((heads.shape[2],)))).expand(0)
    turned = rotated(heads, cosines.take(places, 0), sines.take(places, 0), interleaved=bool(ctx.attr("interleaved", 0)))
    turned = turned * ctx.attr("scale", 1.0) if ctx.attr("scale", 1.0) != 1.0 else turned
    return (_joined(turned) if flat else turned).value


def _head_count(ctx: OpContext, x: Term, cosines: Term) -> DimLike:
    if ctx.attr("num_heads", 0):
        return ctx.attr("num_heads")
    if ctx.attr("rotary_embedding_dim", 0):
        ctx.invalid("rotary_embedding_dim needs num_heads")
    return dims.floordiv(x.shape[2], 2 * cosines.shape[1])


def _split(x: Term, count: DimLike) -> Term:
    """[batch, sequence, heads * size] -> [batch, heads, sequence, size]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, count, dims.floordiv(width, count)).transpose(0, 2, 1, 3)


def _joined(x: Term) -> Term:
    """[batch, heads, sequence, size] -> [batch, sequence, heads * size]."""
    batch, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


# Scores ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Softmax:
    """What changes scores on their way to probabilities. ``sink``: a score per head of a key that has no value."""

    scale: float
    cap: float = 0.0
    sink: Term | None = None


def _attend(q: Term, k: Term, v: Term, form: _Softmax, bias: Term | None, allowed: Term | None) -> Term:
    """softmax(scale q k^T + bias, where allowed) v, as [batch, sequence, heads * size].

    ``bias`` and ``allowed`` broadcast to [batch, heads, queries, keys]; a query that is allowed no key gets zeros.
    """
    wide = q.dtype.compute
    groups = k.shape[1]
    shared = q.reshape(q.shape[0], groups, dims.floordiv(q.shape[1], groups), *q.shape[2:]) * form.scale
    scores = shared.convert(wide).dot(k.convert(wide), batch=((0, 1), (0, 1)), contract=((4,), (3,)))
    scores = scores.reshape(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    scores = (scores / form.cap).map("tanh") * form.cap if form.cap else scores
    scores = scores if bias is None else scores + bias.convert(wide)
    scores = scores if allowed is None else allowed.where(scores, -math.inf)
    weights = _probabilities(scores, form.sink, may_be_empty=allowed is not None).convert(v.dtype)
    weights = weights.reshape(*shared.shape[:4], k.shape[2])
    y = weights.dot(v, batch=((0, 1), (0, 1)), contract=((4,), (2,)))
    return _joined(y.reshape(q.shape[0], q.shape[1], q.shape[2], v.shape[3]))


def _probabilities(scores: Term, sink: Term | None, *, may_be_empty: bool) -> Term:
    top = scores.max(3, keepdims=True)
    if sink is not None:
        top = top.map("max", sink)
    if may_be_empty:
        top = top.equals(-math.inf).where(0.0, top)
    powers = (scores - top).map("exp")
    total = powers.sum(3, keepdims=True)
    total = total if sink is None else total + (sink - top).map("exp")
    return powers / (total.equals(0).where(1.0, total) if may_be_empty else total)


def _scale(ctx: OpContext, size: DimLike) -> float:
    given = ctx.attr("scale", 0.0)
    if given:
        return given
    if not isinstance(size, int):
        ctx.fail("the size of the heads is symbolic", hint="give the attribute scale")
    return 1 / math.sqrt(size)


def _places(ctx: OpContext, count: DimLike) -> Term:
    return Term(ctx.builder, ctx.builder.iota((count,)))


# Full attention -------------------------------------------------------------------------------------------------


@onnx_op("MultiHeadAttention", domain=_MS)
def multi_head_attention(ctx: OpContext) -> list[Value | None]:
    """MultiHeadAttention: query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value.

    Outputs: the result, present_key, present_value. Operands may be packed: [batch, sequence, heads, 3, size] in the query, or
    [batch, sequence, heads, 2, size] in the key.
    """
    if ctx.has(8) or ctx.has(9) or ctx.wants(3):
        ctx.fail("past_sequence_length, cache_indirection and the output qk are not supported")
    b, count = ctx.builder, ctx.attr("num_heads")
    q, k, v = _projected(ctx, count)
    past = 0
    if ctx.has(6):
        past_key, past_value = Term(b, ctx.input(6)), Term(b, ctx.input(7))
        past = past_key.shape[2]
        k, v = join([past_key, k], 2), join([past_value, v], 2)
    mask = Term(b, ctx.input(4)) if ctx.has(4) else None
    bias = _padding_bias(ctx, mask, k.shape[2]) if mask is not None else None
    if ctx.has(5):
        given = Term(b, ctx.input(5))
        bias = given if bias is None else given + bias.convert(given.dtype)
    y = _attend(q, k, v, _Softmax(_scale(ctx, q.shape[3])), bias, _no_later(ctx, q, k.shape[2], past))
    return [y.value, k.value if ctx.wants(1) else None, v.value if ctx.wants(2) else None][: ctx.output_count]


def _projected(ctx: OpContext, count: int) -> tuple[Term, Term, Term]:
    """Query, key and value as heads, with their parts of the bias."""
    b = ctx.builder
    parts = [Term(b, ctx.input(k)) if ctx.has(k) else None for k in range(3)]
    if parts[0].rank == 5:
        return tuple(parts[0].at(3, k).transpose(0, 2, 1, 3) for k in range(3))
    if parts[1] is None:
        ctx.fail("MultiHeadAttention without a key")
    if parts[1].rank == 5:
        pair = parts[1]
        parts[1:] = [pair.at(3, k).transpose(0, 2, 1, 3) for k in range(2)]
    biases = [None] * 3
    if ctx.has(3):
        bias, start = Term(b, ctx.input(3)), 0
        for k, part in enumerate(parts):
            width = part.shape[2] if part.rank == 3 else part.shape[1] * part.shape[3]
            biases[k], start = bias.part(0, start, width), start + width
    return tuple(_with_bias(part, bias, count) for part, bias in zip(parts, biases, strict=True))


def _with_bias(x: Term, bias: Term | None, count: int) -> Term:
    """Heads of an operand; one that has heads already takes its bias there."""
    if x.rank == 3:
        return _split(x if bias is None else x + bias, count)
    return x if bias is None else x + bias.reshape(1, x.shape[1], 1, x.shape[3])


def _padding_bias(ctx: OpContext, mask: Term, keys: DimLike) -> Term:
    """What a mask adds to scores, [batch, 1, 1 or queries, keys]: of lengths [batch], of flags [batch, keys] or one more axis."""
    if mask.rank == 1:
        kept = _places(ctx, keys) < mask.convert(dtypes.I64).reshape(mask.shape[0], 1)
        kept = kept.expand(1, 2)
    elif mask.rank == 2:
        kept = mask.convert(dtypes.BOOL).expand(1, 2)
    elif mask.rank == 3:
        kept = mask.convert(dtypes.BOOL).expand(1)
    else:
        ctx.fail(f"masks of rank {mask.rank} are not supported")
    zero = number(ctx.builder, 0.0, dtypes.F32)
    return kept.where(zero, ctx.attr("mask_filter_value", _MASKED))


def _no_later(ctx: OpContext, q: Term, keys: DimLike, past: DimLike) -> Term | None:
    """Which keys come no later than a query [queries, keys], where the node is unidirectional."""
    if not ctx.attr("unidirectional", 0):
        return None
    return _places(ctx, keys) <= _places(ctx, q.shape[2]).expand(1) + number(ctx.builder, past, dtypes.I64)


@onnx_op("Attention", domain=_MS)
def attention(ctx: OpContext) -> list[Value | None]:
    """Attention: input [batch, sequence, width], weights, bias, mask_index, past [2, batch, heads, length, size], attention_bias.

    Outputs: the result, and present, which is past with the new keys and values.
    """
    b = ctx.builder
    if ctx.has(6) or ctx.attr("do_rotary", 0) or ctx.attr("past_present_share_buffer", 0):
        ctx.fail("do_rotary and buffers that past and present share are not supported")
    x, weights, count = Term(b, ctx.input(0)), Term(b, ctx.input(1)), ctx.attr("num_heads")
    projected = x.dot(weights, contract=((2,), (0,)))
    projected = projected + Term(b, ctx.input(2)) if ctx.has(2) else projected
    widths = ctx.attr("qkv_hidden_sizes", None) or [dims.floordiv(weights.shape[1], 3)] * 3
    starts = (0, widths[0], widths[0] + widths[1])
    q, k, v = (_split(projected.part(2, start, width), count) for start, width in zip(starts, widths, strict=True))
    past = 0
    if ctx.has(4):
        before = Term(b, ctx.input(4))
        past = before.shape[3]
        k, v = join([before.at(0, 0), k], 2), join([before.at(0, 1), v], 2)
    mask = Term(b, ctx.input(3)) if ctx.has(3) else None
    if mask is not None and mask.rank == 1 and mask.shape != x.shape[:1]:
        ctx.fail("a mask of starts and ends is not supported", hint="give a mask of flags")
    bias = None if mask is None else _padding_bias(ctx, mask, k.shape[2])
    if ctx.has(5):
        given = Term(b, ctx.input(5))
        bias = given if bias is None else given.convert(dtypes.F32) + bias
    y = _attend(q, k, v, _Softmax(_scale(ctx, q.shape[3])), bias, _no_later(ctx, q, k.shape[2], past))
    present = join([k.expand(0), v.expand(0)], 0).value if ctx.wants(1) else None
    return [y.value, present][: ctx.output_count]


# Grouped queries with a cache -----------------------------------------------------------------------------------


@onnx_op("GroupQueryAttention", domain=_MS)
def group_query_attention(ctx: OpContext) -> list[Value | None]:
    """GroupQueryAttention: query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache,
    position_ids, attention_bias, head_sink. Outputs: the result, present_key, present_value.

    Entry n of the batch has seqlens_k[n] + 1 keys in all; the new ones follow those of the past. The cache is as long as
    the past or as the longest entry, whichever is longer; its rows behind an entry's last key are 0.
    """
    _refuse_other_forms(ctx)
    b = ctx.builder
    q, k, v = _grouped_heads(ctx)
    lengths = Term(b, ctx.input(5)).convert(dtypes.I64).reshape(q.shape[0]) + 1
    before = (lengths - number(b, q.shape[2], dtypes.I64)).map("max", 0)  # keys of the past, [batch]
    places = before.reshape(q.shape[0], 1) + _places(ctx, q.shape[2])  # of the queries, [batch, sequence]
    if ctx.attr("do_rotary", 0):
        turns = Term(b, ctx.input(9)).convert(dtypes.I64) if ctx.has(9) else _rotary_places(ctx, places)
        cosines, sines = (Term(b, ctx.input(n)).take(turns, 0) for n in (7, 8))
        q, k = (rotated(x, cosines, sines, interleaved=bool(ctx.attr("rotary_interleaved", 0))) for x in (q, k))
    (total,) = ctx.shape_operand(6, "total_sequence_length")
    k, v = (_cached(ctx, operand, x, before, total) for operand, x in ((3, k), (4, v)))
    bias = _bias_of_keys(ctx, k.shape[2]) if ctx.has(10) else None
    form = _Softmax(_scale(ctx, q.shape[3]), ctx.attr("softcap", 0.0), _sink(ctx))
    y = _attend(q, k, v, form, bias, _visible(ctx, places, lengths, k.shape[2]))
    return [y.value, k.value, v.value][: ctx.output_count]


def _refuse_other_forms(ctx: OpContext) -> None:
    for name, plain in (("k_quant_type", "NONE"), ("v_quant_type", "NONE"), ("kv_cache_bit_width", 0), ("sliding_window_cache", 0)):
        if ctx.attr(name, plain) not in (plain, None):
            ctx.fail(f"GroupQueryAttention with {name} {ctx.attr(name)} is not supported", hint="export with a cache that is not quantised")
    if any(ctx.has(n) for n in (12, 13, 14, 15)) or ctx.attr("qk_output", 0):
        ctx.fail("scales of a quantised cache, norms of queries and keys, and the output of scores are not supported")


def _grouped_heads(ctx: OpContext) -> tuple[Term, Term, Term]:
    """Query, key and value as heads; all three may stand side by side in the query."""
    b, heads, shared = ctx.builder, ctx.attr("num_heads"), ctx.attr("kv_num_heads")
    q = Term(b, ctx.input(0))
    if ctx.has(1):
        return _split(q, heads), _split(Term(b, ctx.input(1)), shared), _split(Term(b, ctx.input(2)), shared)
    every = _split(q, heads + 2 * shared)
    return every.part(1, 0, heads), every.part(1, heads, shared), every.part(1, heads + shared, shared)


def _rotary_places(ctx: OpContext, places: Term) -> Term:
    """The angles' rows: those behind an entry's end have none of their own in a short table."""
    rows = ctx.input(7).shape[0]
    return places.map("min", number(ctx.builder, rows, dtypes.I64) - 1)


def _cached(ctx: OpContext, operand: int, new: Term, before: Term, total: DimLike) -> Term:
    """The cache with the new rows [batch, heads, sequence, size] behind the ``before`` rows of the past."""
    b, (batch, heads, fresh, size) = ctx.builder, new.shape
    held = ctx.input(operand).shape[2] if ctx.has(operand) else 0
    if not ctx.has(operand) and total == fresh:
        return new
    length = dims.maximum(held, total, b.symbols)
    both = join([Term(b, ctx.input(operand)), new], 2) if ctx.has(operand) else new
    row, first = _places(ctx, length), before.reshape(batch, 1)
    end, old = first + number(b, fresh, dtypes.I64), number(b, held, dtypes.I64)
    source = (row >= first).where(row - first + old, row)
    there = row < end
    source = there.where(source, 0).reshape(batch, 1, length, 1).broadcast(batch, heads, length, size)
    return there.reshape(batch, 1, length, 1).where(both.take_along(source, 2), 0.0)


def _visible(ctx: OpContext, places: Term, lengths: Term, keys: DimLike) -> Term:
    """Which keys [batch, 1, queries, keys] a query sees: of its entry, not after it, and within the window."""
    key = _places(ctx, keys)
    query = places.reshape(*places.shape, 1)
    seen = key < lengths.reshape(lengths.shape[0], 1, 1)
    if ctx.attr("causal", 1):
        seen = seen & (key <= query)
    window = ctx.attr("local_window_size", -1)
    if window >= 0:
        seen = seen & (key > query - window)
    return seen.expand(1)


def _bias_of_keys(ctx: OpContext, keys: DimLike) -> Term:
    """The attention bias [.., .., queries, total], padded for keys that the cache has room for."""
    bias = Term(ctx.builder, ctx.input(10))
    missing = keys - bias.shape[3]
    if missing == 0:
        return bias
    fill = ctx.builder.constant(0.0, bias.dtype)
    high = (0, 0, 0, dims.maximum(missing, 0))
    padded = ctx.builder.emit("pad", bias.value, fill, low=(0,) * 4, high=high, mode="constant")
    return Term(ctx.builder, padded).part(3, 0, keys)


def _sink(ctx: OpContext) -> Term | None:
    """The score [heads, 1, 1] of a key without a value: head_sink, or 0 for a smooth softmax."""
    if ctx.has(11):
        sink = Term(ctx.builder, ctx.input(11))
        return sink.convert(sink.dtype.compute).reshape(sink.shape[0], 1, 1)
    return number(ctx.builder, 0.0, dtypes.F32) if ctx.attr("smooth_softmax", 0) == 1 else None
