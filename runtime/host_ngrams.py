"""TfIdfVectorizer on strings: how often each n-gram of a pool stands in a row, with skips between its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcompile.runtime.host_ops import HostNode, host_op


@host_op("TfIdfVectorizer")
def tf_idf_vectorizer(inputs: list[Any], node: HostNode) -> np.ndarray:
    """TfIdfVectorizer (opset 9) of [tokens] or [batch, tokens]: f32 [batch, outputs]; modes TF, IDF, TFIDF."""
    x, places = inputs[0], node.get("ngram_indexes")
    grams = _grams(node)
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    counts = np.zeros((len(rows), len(places)), np.float32)
    for row, tokens in zip(counts, rows.tolist(), strict=True):
        _count(row, tokens, grams, node)
    mode, weights = node.get("mode"), node.get("weights")
    if mode == "IDF":
        counts = np.minimum(counts, 1)
    if mode != "TF" and weights:
        counts = counts * np.asarray(weights, np.float32)
    result = np.zeros((len(rows), max(places) + 1), np.float32)
    result[:, places] = counts
    return result.reshape(-1) if x.ndim == 1 else result


def _grams(node: HostNode) -> dict[tuple[Any, ...], int]:
    """Each n-gram of the pool with its position."""
    pool, starts = node.get("pool_strings") or node.get("pool_int64s"), node.get("ngram_counts")
    ends = [*starts[1:], len(pool)]
    listed = [tuple(pool[at : at + n]) for n, (start, end) in enumerate(zip(starts, ends, strict=True), 1) for at in range(start, end, n)]
    return {gram: place for place, gram in enumerate(listed)}


def _count(row: np.ndarray, tokens: list[Any], grams: dict[tuple[Any, ...], int], node: HostNode) -> None:
    for size in range(node.get("min_gram_length"), node.get("max_gram_length") + 1):
        for step in range(1, 2 if size == 1 else node.get("max_skip_count") + 2):
            for start in range(len(tokens) - step * (size - 1)):
                place = grams.get(tuple(tokens[start : start + step * (size - 1) + 1 : step]))
                if place is not None:
                    row[place] += 1
