"""Tree ensembles of ai.onnx.ml: all trees walk down at once, one comparison per level.

The nodes of all trees become one table in which the two children of a node are neighbours: a step is
``node = child[node] + (x[feature[node]] <= value[node])``. A leaf is its own child, and compares with NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_loops import counted_loop
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.onnx_scores import best_class, class_labels, floats_of, label_item, post_transform, transform, two_columns
from tcompile.ir.terms import Term, as_term, join

_UNROLLED = 12  # levels that become plain nodes, which fuse, instead of a loop
LEAF, LEQ, LT, GTE, GT, EQ, NEQ = range(7)
_MODES = {"LEAF": LEAF, "BRANCH_LEQ": LEQ, "BRANCH_LT": LT, "BRANCH_GTE": GTE, "BRANCH_GT": GT, "BRANCH_EQ": EQ, "BRANCH_NEQ": NEQ}
# what sends a sample to the right child; a NaN goes to the left one in all of them
LESS_EQUAL, GREATER, EQUAL, UNEQUAL = range(4)


@dataclass(frozen=True)
class Branch:
    """One node as the model has it: (kind, feature, value, child if true, child if false, NaN goes to true, leaf weights)."""

    mode: int
    feature: int = 0
    value: float = 0.0
    true: int = 0
    false: int = 0
    nan_true: bool = False
    weights: tuple[tuple[int, float], ...] = ()  # (target, weight) of a leaf


@dataclass(eq=False)
class Forest:
    """The table of all nodes, with the root of each tree."""

    dtype: np.dtype
    feature: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    child: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    weights: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    depth: int = 0

    def add_tree(self, branches: Sequence[Branch], root: int) -> None:
        """Appends the nodes of one tree, level by level."""
        self.roots.append(self._reserve(1))
        level = [(root, self.roots[-1])]
        depth = 0
        while level:
            level = [pair for source, place in level for pair in self._fill(branches, branches[source], place)]
            depth += bool(level)
        self.depth = max(self.depth, depth)

    def _reserve(self, count: int) -> int:
        start = len(self.feature)
        for column, blank in ((self.feature, 0), (self.value, np.nan), (self.child, 0), (self.kind, LESS_EQUAL), (self.weights, ())):
            column.extend([blank] * count)
        return start

    def _fill(self, branches: Sequence[Branch], branch: Branch, place: int) -> list[tuple[int, int]]:
        """Writes one node; returns its children with their places."""
        if branch.mode == LEAF:
            self.child[place], self.weights[place] = place, branch.weights
            return []
        children = self._reserve(2)
        kind, value, right, left = self._test(branch)
        self.feature[place], self.value[place], self.child[place], self.kind[place] = branch.feature, value, children, kind
        return [(left, children), (right, children + 1)]

    def _test(self, branch: Branch) -> tuple[int, float, int, int]:
        """(kind, value, right child, left child) of a branch, so that a NaN goes left."""
        value = self.dtype.type(branch.value)
        nan_true = branch.nan_true or branch.mode == NEQ
        # x < v is x <= the next smaller number, x >= v is x > it; >, >= and != are the others with branches swapped
        if branch.mode in (LT, GTE):
            value = np.nextafter(value, self.dtype.type(-np.inf))
        true, false = branch.true, branch.false
        if branch.mode in (GT, GTE, NEQ):
            true, false, nan_true = false, true, not nan_true
        equality = branch.mode in (EQ, NEQ)
        if nan_true:
            return (UNEQUAL if equality else GREATER), float(value), false, true
        return (EQUAL if equality else LESS_EQUAL), float(value), true, false


def leaves(x: Term, forest: Forest) -> Term:
    """The leaf that each tree gives each sample: x [n, features] -> i32 [n, trees].

    Tables have one entry more than nodes, which nothing reaches: the child after the last node is then an index too, as far as
    bounds can tell, and no step needs a check.
    """
    b = x.b
    wide = dtypes.from_numpy(forest.dtype)
    x = x.convert(wide) if x.dtype.bits < wide.bits else x
    tables = [
        as_term(b, np.array([*forest.feature, 0], np.int32)), as_term(b, np.array([*forest.value, np.nan], forest.dtype), x.dtype),
        as_term(b, np.array([*forest.child, 0], np.int32)), _kinds(b, forest),
    ]  # fmt: skip
    roots = as_term(b, np.array(forest.roots, np.int32)).broadcast(x.shape[0], len(forest.roots))

    def turn(counter: DimLike, carried: list[Term], captures: list[Term | None]) -> tuple[list[Term], list[Term]]:
        (node,), (samples, feature, value, child, kinds) = carried, captures
        seen, bound = samples.take_along(feature.take(node, 0), 1), value.take(node, 0)
        right = _goes_right(seen, bound, None if kinds is None else kinds.take(node, 0), forest)
        return [child.take(node, 0) + right.convert(dtypes.I32)], []

    if forest.depth > _UNROLLED:
        return counted_loop(b, forest.depth, [roots], [x, *tables], turn)[0][0]
    for level in range(forest.depth):
        ((roots,), _) = turn(level, [roots], [x, *tables])
    return roots


def _kinds(b, forest: Forest) -> Term | None:
    return as_term(b, np.array([*forest.kind, LESS_EQUAL], np.uint8)) if len(set(forest.kind)) > 1 else None


def _goes_right(x: Term, value: Term, kind: Term | None, forest: Forest) -> Term:
    present = sorted(set(forest.kind))
    result = _TESTS[present[0]](x, value)
    for one in present[1:]:
        assert kind is not None
        result = (kind.equals(one) & _TESTS[one](x, value)) | (~kind.equals(one) & result)
    return result


_TESTS = {
    LESS_EQUAL: lambda x, value: x <= value,
    GREATER: lambda x, value: x > value,
    EQUAL: lambda x, value: x.equals(value),
    UNEQUAL: lambda x, value: (x < value) | (x > value),
}


def aggregate(x: Term, forest: Forest, targets: int, how: str) -> Term:
    """Scores [n, targets]: the SUM, AVERAGE, MIN or MAX of the weights of the leaves."""
    fold, blank = {"MIN": ("min", np.inf), "MAX": ("max", -np.inf)}.get(how, ("add", 0.0))
    table = np.full((len(forest.weights) + 1, targets), blank, forest.dtype)
    for node, pairs in enumerate(forest.weights):
        for target, weight in pairs:
            table[node, target] = forest.dtype.type(weight) + (table[node, target] if fold == "add" else 0)
    found = leaves(x, forest)
    picked = as_term(x.b, table if targets > 1 else table[:, 0]).take(found, 0)
    total = picked.reduce(fold, [1]).reshape(x.shape[0], targets)
    return total / len(forest.roots) if how == "AVERAGE" else total


# Reading nodes --------------------------------------------------------------------------------------------------


def _numbers(ctx: OpContext, name: str) -> np.ndarray | None:
    """A float attribute that may come as a list or, for f64, as a tensor."""
    tensor, listed = ctx.attr(f"{name}_as_tensor", None), ctx.attr(name, None)
    if tensor is not None:
        return tensor
    return None if listed is None else np.array(listed, np.float32)


def read_forest(ctx: OpContext, prefix: str) -> Forest:
    """The nodes_* attributes of TreeEnsembleClassifier and Regressor; ``prefix`` (class, target) names the weights."""
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
    forest = Forest(np.dtype(np.float64 if values.dtype == np.float64 else np.float32))
    for root in _roots(branches, trees):
        forest.add_tree(branches, root)
    return forest


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
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    targets = ctx.attr("n_targets", 1)
    scores = aggregate(x, read_forest(ctx, "target"), targets, ctx.attr("aggregate_function", "SUM"))
    base = _numbers(ctx, "base_values")
    scores = scores if base is None or not len(base) else scores + as_term(ctx.builder, base, scores.dtype)
    return post_transform(ctx, scores).convert(dtypes.F32).value


@onnx_op("TreeEnsembleClassifier", domain="ai.onnx.ml")
def tree_ensemble_classifier(ctx: OpContext) -> tuple[Item, Value]:
    """TreeEnsembleClassifier (ai.onnx.ml 1, 3): the label of the best class, and the scores [n, classes].

    With two classes and weights for one of them only, those weights speak for the second class: as its
    probability where none is negative, else as a decision value.
    """
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    labels = class_labels(ctx, "classlabels_int64s")
    count = 1 if labels is None else len(labels)
    base = _numbers(ctx, "base_values")
    scores = aggregate(x, read_forest(ctx, "class"), count, "SUM")
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
    x = Term(ctx.builder, ctx.input(0))
    how = ("AVERAGE", "SUM", "MIN", "MAX")[ctx.attr("aggregate_function", 1)]
    scores = aggregate(floats_of(x), _read_forest_5(ctx), ctx.attr("n_targets", 1), how)
    name = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[ctx.attr("post_transform", 0)]
    return transform(ctx, scores, name).convert(x.dtype).value


def _read_forest_5(ctx: OpContext) -> Forest:
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
    forest = Forest(np.dtype(np.float64 if splits.dtype == np.float64 else np.float32))
    for root in ctx.attr("tree_roots"):
        branch = branches[root]
        forest.add_tree(branches, branch.true if branch.true == branch.false and branches[branch.true].mode == LEAF else root)
    return forest


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
