"""Sums over positions of a function of gathered rows: over the rows of the table, each times the number of positions that have it.

    %x = reshape(gather(table, %rows))                                       counts[n, j, v] = positions of n whose j-th row is v
    %d = map(%x, broadcast(%mean)) {sub}; %q = map(%d, %d) {mul}     -->     %q' = the same of the table, [N, J, D, V]
    %y = reduce(%q) {add} over positions                                     %y = reduce(%q' * counts) {add} over V

A normalisation over the positions of an embedding needs two such sums. Counts are exact in f32 below 2**24.
"""

from __future__ import annotations

from tcompile.ir.build import Builder
from tcompile.ir.dims import Shape
from tcompile.ir.dtypes import F32, I64
from tcompile.ir.graph import Node, Value
from tcompile.passes.gathered_forms import POSITIONS, Factor, Rows, factor_of, rows_of
from tcompile.passes.rewrite import Context, Patch, patch, rule

_MOST_COUNTED = 1 << 24
_TIMES = 2  # positions for each row of the table that make up for counting them


@rule("reduce")
def sum_of_gathered(node: Node, context: Context) -> Patch | None:
    # sum over p of f(table[rows[p]]) == sum over v of count[v] * f(table[v]), in another order
    (x,) = node.inputs
    if node.attrs["fn"] != "add" or x.rank != 3 or node.attrs["axes"] != (POSITIONS,) or x.dtype != F32:
        return None
    function = _Function(context)
    if not function.read(x, x.shape) or function.source is None:
        return None
    source, positions = function.source, x.shape[POSITIONS]
    entries = source.table.shape[0]
    if not isinstance(positions, int) or not _TIMES * entries <= positions < _MOST_COUNTED:
        return None
    b = context.build(node)
    shape = (x.shape[0], source.parts, source.table.shape[1], entries)
    counts = b.emit("broadcast", _counts(b, source, x.shape, entries), shape=shape, axes=(0, 1, 3))
    zero = b.scalar_like(0, counts)
    weighted = b.map("mul", function.again(b, x, shape), counts)
    # a row that no position has may be infinite
    total = b.reduce("add", b.map("where", b.map("gt", counts, zero), weighted, zero), (3,))
    return patch("sum over a table's rows", b, b.reshape(total, node.output.shape))


def _counts(b: Builder, source: Rows, shape: Shape, entries: int) -> Value:
    """How many positions have a row, [N, J, V]."""
    images, positions, _ = shape
    rows = b.transpose(b.convert(b.reshape(source.rows, (images, positions, source.parts)), I64), (0, 2, 1))
    zeros = b.broadcast_to(b.constant(0, F32), (images, source.parts, entries))
    ones = b.broadcast_to(b.constant(1, F32), rows.shape)
    return b.emit("scatter_elements", zeros, rows, ones, axis=2, combiner="add")


class _Function:
    """An elementwise function of gathered rows and of factors without positions."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.leaf: Value | None = None
        self.source: Rows | None = None
        self.nodes: dict[Value, Node] = {}
        self.factors: dict[Value, Factor] = {}

    def read(self, value: Value, shape: Shape) -> bool:
        """Takes a value [N, P, C] apart; tells whether it is such a function."""
        if value in self.nodes or value in self.factors or value is self.leaf:
            return True
        made = self.context.producer(value, "map", "broadcast")
        if made is not None and made.op == "broadcast":
            factor = factor_of(made, shape, self.context)
            if factor is not None:
                self.factors[value] = factor
            return factor is not None
        if made is not None:
            self.nodes[value] = made
            same = all(operand.dtype == F32 for operand in made.inputs) and value.dtype == F32
            return same and all(self.read(operand, shape) for operand in made.inputs)
        if self.leaf is None:
            self.source = rows_of(value, self.context)
            self.leaf = value if self.source is not None else None
        return value is self.leaf

    def again(self, b: Builder, value: Value, shape: Shape) -> Value:
        """The function of all rows of the table, [N, J, D, V]."""
        images, parts, depth, _ = shape
        if value is self.leaf:
            assert self.source is not None
            return b.emit("broadcast", b.constant(self.source.table.T.copy()), shape=shape, axes=(2, 3))
        if value in self.factors:
            factor = self.factors[value]
            if factor.value is None:
                return b.broadcast_to(b.constant(factor.number, F32), shape)
            whole = b.reshape(factor.make(b, (images, parts * depth)), (images, parts, depth))
            return b.emit("broadcast", whole, shape=shape, axes=(0, 1, 2))
        made = self.nodes[value]
        operands = [self.again(b, operand, shape) for operand in made.inputs]
        return b.map(made.attrs["fn"], *operands)
