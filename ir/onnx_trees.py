"""Tree ensembles of ai.onnx.ml: their attributes read into a ``Forest``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_forest import EQ, GT, GTE, LEAF, LEQ, LT, NEQ, Branch, Forest, aggregate
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.onnx_scores import best_class, class_labels, floats_of, label_item, post_transform, transform, two_columns
from tcompile.ir.terms import Term, as_term, join

_MODES = {"LEAF": LEAF, "BRANCH_LEQ": LEQ, "BRANCH_LT": LT, "BRANCH_GTE": GTE, "BRANCH_GT": GT, "BRANCH_EQ": EQ, "BRANCH_NEQ": NEQ}

# Reading nodes --------------------------------------------------------------------------------------------------


def _numbers(ctx: OpContext, name: str) -> np.ndarray | None:
    """A float attribute that may come as a list or, for f64, as a tensor."""
    tensor, listed = ctx.attr(f"{name}_as_tensor", None), ctx.attr(name, None)
    if tensor is not None:
        return tensor
    return None if listed is None else np.array(listed, np.float32)


def _samples(ctx: OpContext, values: np.ndarray) -> tuple[Term, Forest]:
    """The features, and a forest without trees for them: what compares is the wider type of the two."""
    x, dtype = floats_of(Term(ctx.builder, ctx.input(0))), np.dtype(np.float64 if values.dtype == np.float64 else np.float32)
    if dtypes.from_numpy(dtype).bits > x.dtype.bits:
        x = x.convert(dtypes.from_numpy(dtype))
    return x, Forest(dtype, np.dtype(x.dtype.numpy))


def read_forest(ctx: OpContext, prefix: str) -> tuple[Term, Forest]:
    """The nodes_* attributes of TreeEnsembleClassifier and Regressor, with the features; ``prefix`` (class, target) names the weights."""
    trees, nodes = ctx.attr("nodes_treeids"), ctx.attr("nodes_nodeids")
    values = _numbers(ctx, "nodes_values")
    place = {pair: k for k, pair in enumerate(zip(trees, nodes, strict=True))}
    weights = _leaf_weights(ctx, prefix, place)
    missing = ctx.attr("nodes_missing_value_tracks_true", None) or [0] * len(nodes)
    columns = (ctx.attr("nodes_modes"), ctx.attr("nodes_featureids"), ctx.attr("nodes_truenodeids"), ctx.attr("nodes_falsenodeids"))
    branches = []
    for k, (tree, mode, feature, true, false) in enumerate(zip(trees, *columns, strict=True)):
        code = _mode(ctx, mode)
        children = (0, 0) if code == LEAF else (place[tree, true], place[tree, false])
        branches.append(Branch(code, feature, float(values[k]), *children, bool(missing[k]), tuple(weights.get(k, ()))))
    x, forest = _samples(ctx, values)
    for root in _roots(branches, trees):
        forest.add_tree(branches, root)
    return x, forest


def _mode(ctx: OpContext, mode: str | bytes) -> int:
    text = mode.decode() if isinstance(mode, bytes) else mode
    if text not in _MODES:
        ctx.fail(f"the node mode {text} is not supported")
    return _MODES[text]


def _leaf_weights(ctx: OpContext, prefix: str, place: dict) -> dict[int, list[tuple[int, float]]]:
    found: dict[int, list[tuple[int, float]]] = {}
    columns = [ctx.attr(f"{prefix}_{name}") for name in ("treeids", "nodeids", "ids")]
    for tree, node, target, weight in zip(*columns, _numbers(ctx, f"{prefix}_weights"), strict=True):
        found.setdefault(place[tree, node], []).append((target, float(weight)))
    return found


def _roots(branches: Sequence[Branch], trees: Sequence[int]) -> list[int]:
    """The node of each tree that is nobody's child."""
    inner = {child for branch in branches if branch.mode != LEAF for child in (branch.true, branch.false)}
    roots: dict[int, int] = {}
    for k, tree in enumerate(trees):
        if k not in inner:
            roots.setdefault(tree, k)
    return list(roots.values())


# Operators ------------------------------------------------------------------------------------------------------


@onnx_op("TreeEnsembleRegressor", domain="ai.onnx.ml")
def tree_ensemble_regressor(ctx: OpContext) -> Value:
    """TreeEnsembleRegressor (ai.onnx.ml 1, 3): base values join after the aggregation."""
    targets = ctx.attr("n_targets", 1)
    scores = aggregate(*read_forest(ctx, "target"), targets, ctx.attr("aggregate_function", "SUM"))
    base = _numbers(ctx, "base_values")
    scores = scores if base is None or not len(base) else scores + as_term(ctx.builder, base, scores.dtype)
    return post_transform(ctx, scores).convert(dtypes.F32).value


@onnx_op("TreeEnsembleClassifier", domain="ai.onnx.ml")
def tree_ensemble_classifier(ctx: OpContext) -> tuple[Item, Value]:
    """TreeEnsembleClassifier (ai.onnx.ml 1, 3): the label of the best class, and the scores [n, classes].

    With two classes and weights for one of them only, those weights speak for the second class: as its
    probability where none is negative, else as a decision value.
    """
    labels = class_labels(ctx, "classlabels_int64s")
    count = 1 if labels is None else len(labels)
    base = _numbers(ctx, "base_values")
    scores = aggregate(*read_forest(ctx, "class"), count, "SUM")
    named = set(ctx.attr("class_ids"))
    if count == 2 and len(named) == 1:
        return _binary(ctx, scores, labels, base, named.pop())
    if base is not None and len(base):
        scores = scores + as_term(ctx.builder, base, scores.dtype)
    return label_item(ctx, labels, best_class(scores)), post_transform(ctx, scores).convert(dtypes.F32).value


def _binary(ctx: OpContext, scores: Term, labels: np.ndarray | None, base: np.ndarray | None, named: int) -> tuple[Item, Value]:
    """Label and scores of two classes from the weights of the class ``named``.

    ONNX Runtime completes the scores of weights named 0, and leaves those named 1 beside a zero.
    """
    score = scores.part(1, named, 1)
    if base is not None and len(base):
        score = score + float(base[-1])
    positive = bool((_numbers(ctx, "class_weights") >= 0).all())
    second = (score > (0.5 if positive else 0.0)).reshape(score.shape[0]).convert(dtypes.I64)
    label = label_item(ctx, labels, second)
    if named == 1:
        return label, post_transform(ctx, join([scores.part(1, 0, 1), score], 1)).convert(dtypes.F32).value
    return label, two_columns(score, ctx, probabilities=positive).convert(dtypes.F32).value


@onnx_op("TreeEnsemble", domain="ai.onnx.ml", since=5)
def tree_ensemble(ctx: OpContext) -> Value:
    """TreeEnsemble (ai.onnx.ml 5)."""
    how = ("AVERAGE", "SUM", "MIN", "MAX")[ctx.attr("aggregate_function", 1)]
    scores = aggregate(*_read_forest_5(ctx), ctx.attr("n_targets", 1), how)
    name = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[ctx.attr("post_transform", 0)]
    return transform(ctx, scores, name).convert(ctx.input(0).dtype).value


def _read_forest_5(ctx: OpContext) -> tuple[Term, Forest]:
    """Inner nodes and leaves are numbered apart; a set membership becomes a chain of equalities."""
    splits, weights = ctx.attr("nodes_splits"), ctx.attr("leaf_weights")
    features, count = ctx.attr("nodes_featureids"), len(ctx.attr("nodes_featureids"))
    modes = [int(mode) for mode in ctx.attr("nodes_modes")]
    missing = ctx.attr("nodes_missing_value_tracks_true", None) or [0] * count
    sides = [
        [k + count * bool(leaf) for k, leaf in zip(ctx.attr(f"nodes_{side}nodeids"), ctx.attr(f"nodes_{side}leafs"), strict=True)]
        for side in ("true", "false")
    ]
    targets = zip(ctx.attr("leaf_targetids"), weights, strict=True)
    branches = [
        Branch((LEQ, LT, GTE, GT, EQ, NEQ, EQ)[mode], feature, float(split), true, false, bool(nan))
        for mode, feature, split, true, false, nan in zip(modes, features, splits, *sides, missing, strict=True)
    ]
    branches += [Branch(LEAF, weights=((target, float(weight)),)) for target, weight in targets]
    _expand_members(ctx, branches, modes)
    x, forest = _samples(ctx, splits)
    for root in ctx.attr("tree_roots"):
        branch = branches[root]
        forest.add_tree(branches, branch.true if branch.true == branch.false and branches[branch.true].mode == LEAF else root)
    return x, forest


def _expand_members(ctx: OpContext, branches: list[Branch], modes: Sequence[int]) -> None:
    """Replaces each member node: x in {a, b} is x == a, else x == b. The sets stand in the order in which trees are walked."""
    if 6 not in modes:
        return
    values = iter(np.asarray(ctx.attr("membership_values")).reshape(-1).tolist())
    for k in _walk(branches, ctx.attr("tree_roots"), len(modes)):
        if modes[k] != 6:
            continue
        members = []
        while not np.isnan(value := next(values)):
            members.append(value)
        old = branches[k]
        rest = old.false
        for value in reversed(members[1:]):
            branches.append(Branch(EQ, old.feature, value, old.true, rest, old.nan_true))
            rest = len(branches) - 1
        branches[k] = Branch(EQ, old.feature, members[0], old.true, rest, old.nan_true)


def _walk(branches: Sequence[Branch], roots: Sequence[int], count: int) -> list[int]:
    """Inner nodes of all trees in preorder, true branch first."""
    order, stack = [], list(reversed(roots))
    while stack:
        k = stack.pop()
        if k < count and k not in order:
            order.append(k)
            stack += [branches[k].false, branches[k].true]
    return order
