"""Forests on the CPU: rows on vector lanes, two vectors of them at a time, and every node one comparison of all.

for each block of rows:  columns = transposed block of x
                         for each tree: out = 0; for each node: out |= columns[feature] <= value ? left : 0
                                        total += weights of the lowest zero of out

With one target the weights are gathered on lanes; with several each row adds its leaf's, which are neighbours.
"""

from __future__ import annotations

from tcompile.codegen.access import ravel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_trees import column, first_leaf, remaining, ruled_out, start
from tcompile.codegen.scalar import cast, compare, const, index_value, op
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import I32, I64
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Space
from tcompile.ir.target import Target

VECTORS = 2  # of rows: what a node's loads are shared by
SERIAL_WORK = 1 << 15  # tests below which threads cannot pay for their start


@template("tree_scores")
def trees(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of a forest."""
    draft = _Forest(node, scope, target).write()
    draft.tags["template"] = "trees"
    return [Built(*draft.finish())]


class _Forest:
    def __init__(self, node: Node, scope: Scope, target: Target) -> None:
        self.node, self.draft = node, Draft("trees", node, scope)
        self.nest = self.draft.nest
        self.x, self.feature, _, self.left, _, self.weights = node.inputs
        self.targets = self.weights.shape[1]
        self.lanes = VECTORS * max(1, target.vector_bytes // self.x.dtype.bytes)

    def write(self) -> Draft:
        """All rows, a block of them a turn."""
        count, (trees, nodes) = self.x.shape[0], self.feature.shape
        blocks = dims.ceildiv(count, self.lanes, self.nest.ranges)
        most = dims.upper_bound(blocks, self.nest.ranges)
        parallel = most is None or (most > 1 and most * self.lanes * trees * nodes > SERIAL_WORK)
        with self.nest.loop(blocks, LoopKind.PARALLEL if parallel else LoopKind.SERIAL) as block:
            self._block(block * self.lanes)
        self.draft.flops = count * trees * (nodes + self.targets)
        return self.draft

    def _block(self, row: DimLike) -> None:
        nest, dtype = self.nest, self.weights.dtype
        columns = self._columns(row)
        totals = nest.alloc(dtype, (self.targets * self.lanes,))
        with nest.loop(self.targets) as target, self._vector() as lane:
            nest.store(totals, target * self.lanes + lane, start(self.node))
        with nest.loop(self.feature.shape[0]) as tree:
            out = self._ruled_out(columns, tree)
            first = first_leaf(self.draft, self.node, tree)
            (self._by_lanes if self.targets == 1 else self._by_rows)(totals, out, first)
        self._store(row, totals)

    def _by_lanes(self, totals: str, out: str, first: DimLike) -> None:
        with self._vector() as lane:
            self._add(totals, lane, first + remaining(self.nest, Load(out, (lane,), self.left.dtype)))

    def _by_rows(self, totals: str, out: str, first: DimLike) -> None:
        nest = self.nest
        leaves = nest.alloc(I32, (self.lanes,))
        with self._vector() as lane:
            leaf = first + remaining(nest, Load(out, (lane,), self.left.dtype))
            nest.store(leaves, lane, cast(index_value(leaf), I32))
        with nest.loop(self.lanes) as lane:
            leaf = nest.let_index(cast(Load(leaves, (lane,), I32), I64), Range(0, self.weights.shape[0] - 1))
            with nest.loop(self.targets, LoopKind.VECTOR, self._width()) as target:
                self._add(totals, lane * self.targets + target, leaf * self.targets + target)

    def _vector(self):
        return self.nest.loop(self.lanes, LoopKind.VECTOR, self.lanes)

    def _width(self) -> int:
        """Lanes of the weights of one leaf: no more than there are."""
        return min(self.lanes // VECTORS, 1 << (self.targets - 1).bit_length())

    def _columns(self, row: DimLike) -> str:
        """The block's samples [features, lanes]; rows behind the last are zeros."""
        nest, features = self.nest, self.x.shape[1]
        columns = nest.alloc(self.x.dtype, (features * self.lanes,))
        with nest.loop(features) as k, self._vector() as lane:
            value = self.draft.element(self.x, (row + lane, k), self._present(row, lane))
            nest.store(columns, k * self.lanes + lane, value)
        return columns

    def _present(self, row: DimLike, lane: DimLike) -> Expr | None:
        count = self.x.shape[0]
        return None if isinstance(count, int) and count % self.lanes == 0 else compare("lt", row + lane, count)

    def _ruled_out(self, columns: str, tree: DimLike) -> str:
        """The leaves of a tree that are ruled out, for each row."""
        nest, dtype = self.nest, self.left.dtype
        out = nest.alloc(dtype, (self.lanes,), Space.REGISTER)
        with self._vector() as lane:
            nest.store(out, lane, const(0, dtype))
        with nest.loop(self.feature.shape[1]) as k:
            at = ravel((tree, k), self.feature.shape)
            place = column(self.draft, self.node, at) * self.lanes
            with self._vector() as lane:
                seen = Load(columns, (place + lane,), self.x.dtype)
                nest.store(out, lane, op("or", Load(out, (lane,), dtype), ruled_out(self.draft, self.node, at, seen)))
        return out

    def _add(self, totals: str, place: DimLike, weight: DimLike) -> None:
        dtype = self.weights.dtype
        value = Load(self.draft.read(self.weights), (weight,), dtype)
        self.nest.store(totals, place, op(self.node.attrs["fn"], Load(totals, (place,), dtype), value))

    def _store(self, row: DimLike, totals: str) -> None:
        """The totals of the rows that there are."""
        nest, dtype, output = self.nest, self.weights.dtype, self.draft.write(self.node.output)
        if self.targets == 1:
            with self._vector() as lane:
                nest.store(output, row + lane, Load(totals, (lane,), dtype), self._present(row, lane))
            return
        left = dims.minimum(self.x.shape[0] - row, self.lanes, nest.ranges)
        size = nest.let_index(index_value(left * self.targets), Range(0, self.lanes * self.targets))
        with nest.loop(size, LoopKind.VECTOR, self.lanes // VECTORS) as k:
            nest.store(output, row * self.targets + k, Load(totals, (k,), dtype))
