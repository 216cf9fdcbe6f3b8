"""What the classifiers and regressors of ai.onnx.ml share: post transforms of scores, and class labels."""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.onnx_context import CodedStrings, Item, OpContext
from tcompile.ir.terms import Term, join

_ZERO = 1e-7  # SOFTMAX_ZERO takes scores below it for zeros


def post_transform(ctx: OpContext, scores: Term) -> Term:
    """The attribute post_transform applied to scores [n, classes]: NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT."""
    return transform(ctx, scores, ctx.attr("post_transform", "NONE") or "NONE")


def transform(ctx: OpContext, scores: Term, name: str) -> Term:
    """A post transform by name."""
    if name not in _TRANSFORMS:
        ctx.invalid(f"the post_transform {name} is not one of {', '.join(_TRANSFORMS)}")
    return _TRANSFORMS[name](scores)


def _softmax(scores: Term) -> Term:
    powers = (scores - scores.max(1, keepdims=True)).map("exp")
    return powers / powers.sum(1, keepdims=True)


def _softmax_zero(scores: Term) -> Term:
    """A softmax in which zeros stay small: exp(s - max), but s * exp(-max) for s near 0."""
    top = scores.max(1, keepdims=True)
    powers = (scores.map("abs") > _ZERO).where((scores - top).map("exp"), scores * (-top).map("exp"))
    total = powers.sum(1, keepdims=True)
    return total.equals(0).where(0.5, powers / total)


def _probit(scores: Term) -> Term:
    """sqrt(2) * erfinv(2 s - 1), by Winitzki's approximation with a = 0.147, which ONNX's runtimes use."""
    x = scores * 2 - 1
    log = ((1 - x) * (1 + x)).map("log")
    v = log * 0.5 + 2 / (math.pi * 0.147)
    root = ((v * v - log / 0.147).map("sqrt") - v).map("sqrt")
    return (x < 0).where(-root, root) * 1.41421356


_TRANSFORMS = {
    "NONE": lambda scores: scores,
    "LOGISTIC": lambda scores: scores.map("sigmoid"),
    "SOFTMAX": _softmax,
    "SOFTMAX_ZERO": _softmax_zero,
    "PROBIT": _probit,
}


def two_columns(scores: Term, ctx: OpContext, *, probabilities: bool) -> Term:
    """The scores [n, 2] of both classes from the one score s [n, 1] of the second, as ONNX Runtime completes them.

    LOGISTIC gives the logistic of [-s, s] whatever s is; else a probability gives [1 - s, s], and a decision value
    the transform of [-s, s].
    """
    if ctx.attr("post_transform", "NONE") == "LOGISTIC" or not probabilities:
        return post_transform(ctx, join([-scores, scores], 1))
    return join([1 - scores, scores], 1)


def class_labels(ctx: OpContext, ints: str, strings: str = "classlabels_strings") -> np.ndarray | None:
    """The labels of the classes: i64, or an object array of strings; None where the node names none."""
    numbers, texts = ctx.attr(ints, None), ctx.attr(strings, None)
    if texts:
        return np.array([text.decode() if isinstance(text, bytes) else text for text in texts], object)
    return np.array(numbers, np.int64) if numbers else None


def label_item(ctx: OpContext, labels: np.ndarray | None, index: Term) -> Item:
    """The labels at class indices: numbers by a gather, strings as codes."""
    if labels is None:
        return index.value
    if labels.dtype == object:
        return CodedStrings(tuple(labels), index.value)
    if np.array_equal(labels, np.arange(len(labels))):
        return index.value
    return Term(ctx.builder, ctx.builder.constant(labels)).take(index, 0).value


def best_class(scores: Term) -> Term:
    """The index of the first largest score of each row."""
    return Term(scores.b, scores.b.emit("arg_reduce", scores.value, fn="max", axis=1, last=False))


def floats_of(x: Term) -> Term:
    """Features as floats: integers become f32."""
    return x if x.dtype.is_float and x.dtype.bits >= 32 else x.convert(dtypes.F32)
