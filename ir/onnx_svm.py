"""Support vector machines of ai.onnx.ml: one kernel matrix of samples and support vectors, then products with constants."""

from __future__ import annotations

import itertools

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_loops import counted_loop, loop_while
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.onnx_scores import best_class, class_labels, floats_of, label_item, post_transform, two_columns
from tcompile.ir.terms import Term, as_term, full, number

_CLIP = 1e-7  # pairwise probabilities stay this far from 0 and 1
_TURNS = 100


def _floats(ctx: OpContext, name: str) -> np.ndarray:
    return np.array(ctx.attr(name, None) or (), np.float32)


def _kernel(ctx: OpContext, x: Term, vectors: np.ndarray) -> Term:
    """k(x, vector) for samples [n, features] and vectors [m, features]: [n, m]."""
    kind = ctx.attr("kernel_type", "LINEAR")
    gamma, offset, degree = (*(ctx.attr("kernel_params", None) or ()), 0.0, 0.0, 0.0)[:3]
    table = as_term(x.b, vectors, x.dtype)
    if kind == "RBF":
        gap = x.expand(1) - table
        return ((gap * gap).sum(2) * -gamma).map("exp")
    product = x.dot(table, contract=((1,), (1,)))
    if kind == "LINEAR":
        return product
    inner = product * gamma + offset
    if kind == "POLY":
        return inner ** float(int(degree))
    if kind == "SIGMOID":
        return inner.map("tanh")
    ctx.fail(f"the kernel {kind} is not known")


@onnx_op("SVMRegressor", domain="ai.onnx.ml")
def svm_regressor(ctx: OpContext) -> Value:
    """SVMRegressor (ai.onnx.ml 1): [n, 1]; with one_class the sign."""
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    coefficients, count = _floats(ctx, "coefficients"), ctx.attr("n_supports", 0)
    scores = _kernel(ctx, x, _floats(ctx, "support_vectors").reshape(count, -1)) if count else x
    total = scores.dot(as_term(x.b, coefficients.reshape(1, -1), x.dtype), contract=((1,), (1,))) + float(_floats(ctx, "rho")[0])
    if ctx.attr("one_class", 0):
        total = (total > 0).where(full(x.b, total.shape, 1, total.dtype), -1)
    return post_transform(ctx, total).convert(dtypes.F32).value


@onnx_op("SVMClassifier", domain="ai.onnx.ml")
def svm_classifier(ctx: OpContext) -> tuple[Item, Value]:
    """SVMClassifier (ai.onnx.ml 1): one score per pair of classes, which vote; or probabilities where prob_a is given."""
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    labels = class_labels(ctx, "classlabels_ints")
    count = 1 if labels is None else len(labels)
    counts = ctx.attr("vectors_per_class", None) or []
    if not counts:
        return _linear(ctx, x, labels, count)
    kernel = _kernel(ctx, x, _floats(ctx, "support_vectors").reshape(sum(counts), -1))
    weights = _pair_weights(_floats(ctx, "coefficients").reshape(-1, sum(counts)), counts)
    scores = kernel.dot(as_term(x.b, weights, x.dtype), contract=((1,), (1,))) + as_term(x.b, _floats(ctx, "rho"), x.dtype)
    label = label_item(ctx, labels, best_class(_votes(scores, count)))
    if len(_floats(ctx, "prob_a")):
        return label, post_transform(ctx, _probabilities(ctx, scores, count)).convert(dtypes.F32).value
    if scores.shape[1] == 1:
        return label, two_columns(scores, ctx, probabilities=False).convert(dtypes.F32).value
    return label, post_transform(ctx, scores).convert(dtypes.F32).value


def _linear(ctx: OpContext, x: Term, labels: np.ndarray | None, count: int) -> tuple[Item, Value]:
    """Without support vectors: one hyperplane per class."""
    planes = as_term(x.b, _floats(ctx, "coefficients").reshape(count, -1), x.dtype)
    scores = x.dot(planes, contract=((1,), (1,))) + float(_floats(ctx, "rho")[0])
    label = label_item(ctx, labels, best_class(scores))
    return label, post_transform(ctx, scores).convert(dtypes.F32).value


def _pair_weights(coefficients: np.ndarray, counts: list[int]) -> np.ndarray:
    """[pairs, vectors]: for classes i < j, row j-1 over i's vectors and row i over j's."""
    ends = np.cumsum([0, *counts])
    pairs = list(itertools.combinations(range(len(counts)), 2))
    weights = np.zeros((len(pairs), ends[-1]), np.float32)
    for row, (i, j) in zip(weights, pairs, strict=True):
        mine, other = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
        row[mine], row[other] = coefficients[j - 1, mine], coefficients[i, other]
    return weights


def _votes(scores: Term, count: int) -> Term:
    """How many pairs each class wins: [n, classes]."""
    pairs = list(itertools.combinations(range(count), 2))
    first, second = (np.array([[k == pair[side] for k in range(count)] for pair in pairs], np.float32) for side in (0, 1))
    won = (scores > 0).convert(dtypes.F32)
    return won.dot(as_term(scores.b, first - second), contract=((1,), (0,))) + as_term(scores.b, second.sum(0))


# Probabilities (Wu, Lin, Weng 2004, method 2, as in libsvm) -----------------------------------------------------


def _probabilities(ctx: OpContext, scores: Term, count: int) -> Term:
    """Class probabilities [n, classes] that agree best with the pairwise ones."""
    b = scores.b
    slope, offset = as_term(b, _floats(ctx, "prob_a"), scores.dtype), as_term(b, _floats(ctx, "prob_b"), scores.dtype)
    pairwise = (-(scores * slope + offset)).map("sigmoid").map("max", _CLIP).map("min", 1 - _CLIP)
    quadratic = _quadratic(pairwise, count)  # [n, classes, classes]
    start = full(b, (scores.shape[0], count), 1.0 / count, scores.dtype)
    going = full(b, (scores.shape[0], 1), True, dtypes.BOOL)

    def turn(counter: DimLike, carried: list[Term], captures: list[Term]) -> tuple[list[Term], list[Term], Term]:
        (p, active), (q,) = carried, captures
        gradient = (q * p.expand(1)).sum(2)
        value = (p * gradient).sum(1, keepdims=True)
        error = (gradient - value).map("abs").max(1, keepdims=True)
        active = active & (error >= 0.005 / count)
        updated = _sweep(p, q, gradient, value, count)
        return [active.where(updated, p), active], [], active.reduce("or", [0, 1])

    (p, _), _ = loop_while(b, max(_TURNS, count), [start, going], [quadratic], turn)
    return p


def _quadratic(pairwise: Term, count: int) -> Term:
    """Q[t, t] = sum over j != t of r[j, t]^2, Q[t, j] = -r[j, t] r[t, j], of pairwise probabilities [n, pairs]."""
    b, rows = pairwise.b, pairwise.shape[0]
    place = np.zeros((count, count), np.int64)
    upper = np.triu_indices(count, 1)
    place[upper] = np.arange(len(upper[0]))
    known = pairwise.take((place + place.T).reshape(-1), 1).reshape(rows, count, count)
    below, unit = np.tril(np.ones((count, count), np.float32), -1), np.eye(count, dtype=np.float32)
    # r below the diagonal is 1 - r above it; 0 on it
    r = known * as_term(b, 1 - unit - 2 * below, known.dtype) + as_term(b, below, known.dtype)
    return as_term(b, unit, r.dtype) * (r * r).sum(1, keepdims=True) - r * r.transpose(0, 2, 1)


def _sweep(p: Term, q: Term, gradient: Term, value: Term, count: int) -> Term:
    """One Gauss-Seidel sweep over the classes."""

    def step(t: DimLike, carried: list[Term], captures: list[Term]) -> tuple[list[Term], list[Term]]:
        (p, gradient, value), (q,) = carried, captures
        row, slope = q.at(1, t), gradient.part(1, t, 1)
        diagonal = row.part(1, t, 1)
        diff = (value - slope) / diagonal
        scale = diff + 1
        unit = Term(p.b, p.b.iota((count,))).equals(number(p.b, t, dtypes.I64)).convert(p.dtype)
        value = (value + diff * (diff * diagonal + slope * 2)) / (scale * scale)
        return [(p + unit * diff) / scale, (gradient + row * diff) / scale, value], []

    return counted_loop(p.b, count, [p, gradient, value], [q], step)[0][0]
