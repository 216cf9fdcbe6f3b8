"""tree_scores as plain loops, and the leaf that a set of ruled-out leaves leaves over.

for each row: for each tree: out = 0; for each node: out |= left[node] if x[feature] <= value; total += weights[first + lowest zero of out]
"""

from __future__ import annotations

from tcompile.codegen.access import ravel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import cast, const, op, select
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import F32, F64, I32, I64
from tcompile.ir.graph import Node
from tcompile.ir.loops import Bitcast, Expr, Load, Op, Space


def lower_tree_scores(node: Node, scope: Scope) -> list[Draft]:
    """Rows are independent; the trees of one are folded in order."""
    x, feature, _, left, _, weights = node.inputs
    draft = Draft("trees", node, scope)
    nest, (trees, nodes), targets = draft.nest, feature.shape, weights.shape[1]
    with nest.loop(x.shape[0], independent=True) as row:
        totals = nest.alloc(weights.dtype, (targets,))
        with nest.loop(targets, independent=True) as target:
            nest.store(totals, target, start(node))
        with nest.loop(trees) as tree:
            out = nest.alloc(left.dtype, (1,), Space.REGISTER)
            nest.store(out, 0, const(0, left.dtype))
            with nest.loop(nodes) as k:
                at = ravel((tree, k), feature.shape)
                seen = draft.element(x, (row, column(draft, node, at)))
                nest.store(out, 0, op("or", Load(out, (0,), left.dtype), ruled_out(draft, node, at, seen)))
            leaf = first_leaf(draft, node, tree) + remaining(nest, Load(out, (0,), left.dtype))
            with nest.loop(targets, independent=True) as target:
                weight = Load(draft.read(weights), (leaf * targets + target,), weights.dtype)
                nest.store(totals, target, op(node.attrs["fn"], Load(totals, (target,), weights.dtype), weight))
        with nest.loop(targets, independent=True) as target:
            draft.store(node.output, (row, target), Load(totals, (target,), weights.dtype))
    draft.flops = x.shape[0] * trees * (nodes + targets)
    return [draft]


def start(node: Node) -> Expr:
    """What a fold begins with; -0 leaves every sum as it is."""
    return const({"add": -0.0, "min": float("inf"), "max": float("-inf")}[node.attrs["fn"]], node.output.dtype)


def column(draft: Draft, node: Node, at: DimLike) -> DimLike:
    """The feature that a node tests."""
    x, feature = node.inputs[:2]
    found = Load(draft.read(feature), (at,), I32)
    return draft.nest.let_index(cast(found, I64), Range(0, x.shape[1] - 1))


def ruled_out(draft: Draft, node: Node, at: DimLike, seen: Expr) -> Expr:
    """The leaves that a node rules out for a sample with this value of its feature; NaN rules out none."""
    _, _, value, left = node.inputs[:4]
    right = op("le", seen, Load(draft.read(value), (at,), value.dtype))
    return select(right, Load(draft.read(left), (at,), left.dtype), const(0, left.dtype))


def first_leaf(draft: Draft, node: Node, tree: DimLike) -> DimLike:
    """The row of weights that a tree's leaves start at."""
    _, _, _, _, first, weights = node.inputs
    return draft.nest.let_index(cast(Load(draft.read(first), (tree,), I32), I64), Range(0, weights.shape[0] - 1))


def remaining(nest: Nest, out: Expr) -> DimLike:
    """The number of the lowest bit that is not set: alone, it is a power of two, which a float holds in its exponent."""
    wide, signed, mantissa, bias = (F32, I32, 23, 127) if out.dtype.bits == 32 else (F64, I64, 52, 1023)
    out = nest.let(out)
    lowest = op("and", op("not", out), op("add", out, const(1, out.dtype)))
    bits = Bitcast(cast(Bitcast(lowest, signed), wide), signed)
    exponent = op("and", op("shr", bits, const(mantissa, signed)), const(2 * bias + 1, signed))
    return nest.let_index(cast(Op("sub", (exponent, const(bias, signed)), signed), I64), Range(0, out.dtype.bits - 1))
