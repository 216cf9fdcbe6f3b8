"""Decision trees as one table of nodes, and what they compute: by sets of leaves where trees are small, else by walking.

The two children of a node are neighbours: a step is ``node = child[node] + (x[feature[node]] <= value[node])``.
A leaf is its own child, and compares with NaN. All trees walk down at once, one comparison per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.onnx_leaf_sets import leaf_sets
from tcompile.ir.onnx_loops import counted_loop
from tcompile.ir.terms import Term, as_term, join

_UNROLLED = 12  # levels that become plain nodes, which fuse, instead of a loop
LEAF, LEQ, LT, GTE, GT, EQ, NEQ = range(7)
# what sends a sample to the right child; a NaN goes to the left one in all of them
LESS_EQUAL, GREATER_EQUAL, EQUAL, UNEQUAL = range(4)
_OPPOSITES = {LEQ: GT, LT: GTE, GTE: LT, GT: LEQ}


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
    """The table of all nodes, with the root of each tree. ``dtype`` is that of weights, ``tested`` that of comparisons."""

    dtype: np.dtype
    tested: np.dtype
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
        mode, value = branch.mode, self.tested.type(branch.value)
        nan_true = branch.nan_true or mode == NEQ
        right, left = (branch.false, branch.true) if nan_true else (branch.true, branch.false)
        if mode in (EQ, NEQ):
            return (UNEQUAL if mode == EQ and nan_true else EQUAL), float(value), right, left
        mode = _OPPOSITES[mode] if nan_true else mode
        if mode in (LT, GT):
            value = _next(value, -np.inf if mode == LT else np.inf)
        return (LESS_EQUAL if mode in (LEQ, LT) else GREATER_EQUAL), float(value), right, left


def _next(value: np.floating, end: float) -> np.floating:
    """x < v is x <= the next smaller number, x > v is x >= the next greater one; NaN where there is none."""
    with np.errstate(over="ignore", under="ignore"):  # the next numbers may be infinite, or subnormal
        return value.dtype.type(np.nan) if value == end else np.nextafter(value, value.dtype.type(end))


def one_test(x: Term, forest: Forest) -> tuple[Term, Forest]:
    """The same forest with tests ``x <= value`` alone, on samples with their negatives beside them: x >= v is -x <= -v.

    A forest that compares for equality stays as it is.
    """
    if GREATER_EQUAL not in forest.kind or not set(forest.kind) <= {LESS_EQUAL, GREATER_EQUAL} or not isinstance(x.shape[1], int):
        return x, forest
    greater, value = np.array(forest.kind) == GREATER_EQUAL, np.array(forest.value, forest.tested)
    value = np.where(greater, -value, value)
    feature = np.array(forest.feature) + np.where(greater, x.shape[1], 0)
    found = replace(forest, feature=feature.tolist(), value=value.tolist(), kind=[LESS_EQUAL] * len(forest.kind))
    return join([x, -x], 1), found


def leaves(x: Term, forest: Forest) -> Term:
    """The leaf that each tree gives each sample: x [n, features] -> i32 [n, trees].

    Tables have one entry more than nodes, which nothing reaches: the child after the last node is then an index too, as far as
    bounds can tell, and no step needs a check.
    """
    b = x.b
    tables = [
        as_term(b, np.array([*forest.feature, 0], np.int32)), as_term(b, np.array([*forest.value, np.nan], forest.tested)),
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
    GREATER_EQUAL: lambda x, value: x >= value,
    EQUAL: lambda x, value: x.equals(value),
    UNEQUAL: lambda x, value: (x < value) | (x > value),
}


def aggregate(x: Term, forest: Forest, targets: int, how: str) -> Term:
    """Scores [n, targets] of samples of the type ``forest.tested``: the SUM, AVERAGE, MIN or MAX of the weights of the leaves."""
    fold, blank = {"MIN": ("min", np.inf), "MAX": ("max", -np.inf)}.get(how, ("add", 0.0))
    table = np.full((len(forest.weights) + 1, targets), blank, forest.dtype)
    for node, pairs in enumerate(forest.weights):
        for target, weight in pairs:
            table[node, target] = forest.dtype.type(weight) + (table[node, target] if fold == "add" else 0)
    x, forest = one_test(x, forest)
    total = _by_sets(x, forest, table, fold)
    if total is None:
        picked = as_term(x.b, table if targets > 1 else table[:, 0]).take(leaves(x, forest), 0)
        total = picked.reduce(fold, [1]).reshape(x.shape[0], targets)
    leaf_pairs = [pairs for node, pairs in enumerate(forest.weights) if forest.child[node] == node]
    if fold != "add" and any(len({target for target, _ in pairs}) < targets for pairs in leaf_pairs):
        total = total.equals(blank).where(0.0, total)  # a target without a leaf that names it is 0, as ONNX Runtime has it
    return total / len(forest.roots) if how == "AVERAGE" else total


def _by_sets(x: Term, forest: Forest, table: np.ndarray, fold: str) -> Term | None:
    """The folded rows of ``table`` [nodes, targets] of the leaves; None where trees must be walked."""
    known = isinstance(x.shape[1], int) and max(forest.feature, default=0) < x.shape[1]
    sets = leaf_sets(forest) if known and set(forest.kind) <= {LESS_EQUAL} else None
    if sets is None:
        return None
    tables = (sets.feature, sets.value, sets.left, sets.first, table[sets.leaves])
    operands = [as_term(x.b, one).value for one in tables]
    return Term(x.b, x.b.emit("tree_scores", x.value, *operands, fn=fold))
