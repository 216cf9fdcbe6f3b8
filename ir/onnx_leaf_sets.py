"""Trees of few leaves as sets of leaves that each test rules out: the tables of ``tree_scores`` (``ir/ops_trees.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tcompile.ir.onnx_forest import Forest

_MOST = 64  # leaves of a tree: the bits of a word
_PADDING = 8  # times as many places for nodes as there are nodes pay, where trees differ in size


@dataclass(frozen=True, eq=False)
class LeafSets:
    """``feature``, ``value``, ``left`` [trees, nodes], ``first`` [trees], and the node of each leaf in the order of rows of weights."""

    feature: np.ndarray
    value: np.ndarray
    left: np.ndarray
    first: np.ndarray
    leaves: list[int]


@dataclass(eq=False)
class _Tree:
    """One tree being read, left before right."""

    forest: Forest
    tests: list[tuple[int, int]] = field(default_factory=list)  # (node, leaves it rules out)
    leaves: list[int] = field(default_factory=list)

    def read(self, node: int) -> _Tree:
        """Adds a node with all below it."""
        left = self.forest.child[node]
        if left == node:
            self.leaves.append(node)
            return self
        place, low = len(self.tests), len(self.leaves)
        self.tests.append((node, 0))
        self.read(left)
        self.tests[place] = (node, (1 << len(self.leaves)) - (1 << low))
        return self.read(left + 1)


def leaf_sets(forest: Forest) -> LeafSets | None:
    """The tables of a forest whose nodes all test ``x <= value``; None where a tree has too many leaves."""
    ends = [*forest.roots[1:], len(forest.feature)]
    sizes = [end - root for root, end in zip(forest.roots, ends, strict=True)]  # nodes of a tree are neighbours
    most = max(sizes, default=0) // 2
    if not sizes or most + 1 > _MOST or most * len(sizes) > _PADDING * sum(sizes):
        return None
    trees = [_Tree(forest).read(root) for root in forest.roots]
    shape = (len(trees), max(1, most))
    feature, value = np.zeros(shape, np.int32), np.full(shape, np.nan, forest.tested)
    left = np.zeros(shape, np.uint32 if most < 32 else np.uint64)
    for number, tree in enumerate(trees):
        for k, (node, out) in enumerate(tree.tests):
            feature[number, k], value[number, k], left[number, k] = forest.feature[node], forest.value[node], out
    first = np.cumsum([0, *(len(tree.leaves) for tree in trees[:-1])]).astype(np.int32)
    return LeafSets(feature, value, left, first, [leaf for tree in trees for leaf in tree.leaves])
