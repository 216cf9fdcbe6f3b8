"""The core op of a forest of small decision trees: every node is tested, and none is walked (QuickScorer, Lucchese et al. 2015).

A tree numbers its leaves from left to right, a bit each. A test that sends a sample to the right rules out the leaves
on its left: the lowest bit that no test ruled out is the sample's leaf. No test depends on another.
"""

from __future__ import annotations

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import dtypes
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, Tolerance, Types, need, need_choice, register, shapes_differ

FOLDS = {"add": np.add, "min": np.minimum, "max": np.maximum}


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, feature, value, left, first, weights = types
    need_choice(attrs["fn"], tuple(FOLDS))
    need(x.rank == 2 and x.dtype in (dtypes.F32, dtypes.F64), "x [n, features] of f32 or f64", x)
    need(feature.rank == 2 and feature.dtype == dtypes.I32 and feature.is_static, "features i32 [trees, nodes]", feature)
    need(value.dtype == x.dtype and not shapes_differ(value.shape, feature.shape), f"values {x.dtype} {feature.shape}", value)
    need(left.dtype in (dtypes.U32, dtypes.U64) and not shapes_differ(left.shape, feature.shape), f"sets of leaves {feature.shape}", left)
    need(first.dtype == dtypes.I32 and not shapes_differ(first.shape, feature.shape[:1]), f"first leaves i32 {feature.shape[:1]}", first)
    need(weights.rank == 2 and weights.dtype in (dtypes.F32, dtypes.F64) and weights.is_static, "weights [leaves, targets]", weights)
    return (TensorType(weights.dtype, (x.shape[0], weights.shape[1])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, feature, value, left, first, weights = arrays
    if feature.size and not 0 <= feature.min() <= feature.max() < x.shape[1]:
        raise ExecutionError(f"tree_scores: a node tests a feature outside [0, {x.shape[1]})")
    right = x[:, feature] <= value
    out = np.bitwise_or.reduce(np.where(right, left, left.dtype.type(0)), axis=2)
    places = np.arange(left.dtype.itemsize * 8, dtype=left.dtype)
    leaf = first + np.argmin((out[..., None] >> places) & left.dtype.type(1), axis=-1)
    total = np.zeros((x.shape[0], weights.shape[1]), weights.dtype)
    for number, found in enumerate(leaf.T):
        total = FOLDS[attrs["fn"]](total, weights[found]) if number else weights[found]
    return (total,)


register(
    OpSpec(
        "tree_scores",
        "tree_scores(x, feature, value, left, first, weights) {fn}: the weights of the leaves that the trees give each row of x,"
        " folded by fn in the order of the trees. Node m of tree t goes right where x[feature[t, m]] <= value[t, m], which rules"
        " out the leaves left[t, m]; leaf k of tree t is row first[t] + k of weights. Features and leaves are in range:"
        " no code checks them.",
        operands=(6, 6),
        attrs={"fn": "str"},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(),
    )
)
