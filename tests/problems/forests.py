"""Problems of tree_scores: random trees of a few leaves, among them trees of one leaf, and samples with NaN."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dtypes import DType
from tcompile.ir.ops_trees import FOLDS
from tests.problems.problem import Case, problem
from tests.problems.values import awkward, numbers


@problem("tree_scores", (dtypes.F32, dtypes.F64), fn=FOLDS, bits=(dtypes.U32, dtypes.U64), targets=(1, 2, 3, 9))
def tree_scores(case: Case, dtype: DType, fn: str, bits: DType, targets: int) -> None:
    """One forest; the thresholds are among the samples' values."""
    features, trees = case.integer(1, 6), case.integer(1, 5)
    made = [_tree(case, features, case.choice((1, 2, 3, 9, bits.bits)), bits) for _ in range(trees)]
    nodes = max(1, *(len(tree) for tree, _ in made))
    feature, value, left = (
        np.zeros((trees, nodes), np.int32),
        np.full((trees, nodes), np.nan, dtype.numpy),
        np.zeros((trees, nodes), bits.numpy),
    )
    for number, (tree, _) in enumerate(made):
        for k, (tested, out) in enumerate(tree):
            feature[number, k], left[number, k] = tested, out
            value[number, k] = awkward(case.rng, dtype, ())
    counts = [leaves for _, leaves in made]
    first = np.cumsum([0, *counts[:-1]]).astype(np.int32)
    weights = numbers(case.rng, case.choice((dtypes.F32, dtype)), (sum(counts), targets))
    x = case.operand(dtype, (case.extent(among=(0, 1, 5, 16, 17, 40)), features), awkward)
    tables = [case.builder.constant(table) for table in (feature, value, left, first, weights)]
    case.emit("tree_scores", x, *tables, fn=fn)


def _tree(case: Case, features: int, leaves: int, bits: DType) -> tuple[list[tuple[int, int]], int]:
    """(feature, leaves ruled out) of each node of a random tree, and its number of leaves."""
    nodes: list[tuple[int, int]] = []

    def grow(low: int, high: int) -> None:
        if high - low < 2:
            return
        middle = case.integer(low + 1, high - 1)
        nodes.append((case.integer(0, features - 1), ((1 << middle) - (1 << low))))
        grow(low, middle)
        grow(middle, high)

    grow(0, leaves)
    return nodes, leaves
