"""ONNX TfIdfVectorizer over integers: counts of n-grams, by comparing every window with every n-gram of the pool."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, as_term, full, join


@onnx_op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(ctx: OpContext) -> Value:
    """TfIdfVectorizer (opset 9) of [tokens] or [batch, tokens]; modes TF, IDF, TFIDF; skips between the tokens of a gram."""
    if ctx.attr("pool_strings", None):
        ctx.fail("n-grams of strings are not supported")
    x = Term(ctx.builder, ctx.input(0)).convert(dtypes.I64)
    rows = x.expand(0) if x.rank == 1 else x
    counts = [_count(ctx, rows, grams) for grams in _pool(ctx)]
    total = join([*counts, full(x.b, (rows.shape[0], 1), 0, dtypes.I64)], 1)
    places = ctx.attr("ngram_indexes")
    columns = np.full(max(places) + 1, len(places))  # an output that no gram feeds is the zero at the end
    columns[places] = np.arange(len(places))
    y = _weighted(ctx, total.take(columns, 1), columns)
    return (y.reshape(y.shape[1]) if x.rank == 1 else y).value


def _pool(ctx: OpContext) -> list[np.ndarray]:
    """The grams [count, n] of each length n = 1, 2, ..."""
    pool, starts = ctx.attr("pool_int64s"), ctx.attr("ngram_counts")
    ends = [*starts[1:], len(pool)]
    return [np.array(pool[a:b], np.int64).reshape(-1, n) for n, (a, b) in enumerate(zip(starts, ends, strict=True), 1)]


def _count(ctx: OpContext, rows: Term, grams: np.ndarray) -> Term:
    """How often each gram stands in each row [batch, grams], over all skips."""
    size = grams.shape[1]
    blank = full(rows.b, (rows.shape[0], len(grams)), 0, dtypes.I64)
    if not ctx.attr("min_gram_length") <= size <= ctx.attr("max_gram_length") or not len(grams):
        return blank
    total = blank
    for step in range(1, 2 if size == 1 else ctx.attr("max_skip_count") + 2):
        found = dims.maximum(rows.shape[1] - step * (size - 1), 0)
        same = None
        for k in range(size):
            token = rows.part(1, dims.minimum(k * step, rows.shape[1]), found).expand(2).equals(as_term(rows.b, grams[:, k]))
            same = token if same is None else same & token
        total = total + same.convert(dtypes.I64).sum(1)
    return total


def _weighted(ctx: OpContext, counts: Term, columns: np.ndarray) -> Term:
    mode, weights = ctx.attr("mode"), ctx.attr("weights", None)
    value = (counts > 0).convert(dtypes.F32) if mode == "IDF" else counts.convert(dtypes.F32)
    if mode == "TF" or not weights:
        return value
    return value * as_term(counts.b, np.array([*weights, 0.0], np.float32)[columns])
