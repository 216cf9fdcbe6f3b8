"""ONNX operators whose result is an order: TopK, Unique, NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_loops import counted_loop, loop_while
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, full, join, number


def sort(key: Term, *payloads: Term, axis: int, descending: bool = False) -> list[Term]:
    """The key and payloads in the stable order of the key."""
    operands = [key.value, *(payload.value for payload in payloads)]
    results = key.b.emit_all("sort", operands, {"axis": axis, "descending": descending})
    return [Term(key.b, result) for result in results]


def compact(mask: Term, hint: str) -> Term:
    """The positions of the true elements of a vector, in order; their number becomes a symbol."""
    positions, count = mask.b.emit_all("compact", [mask.value])
    found = mask.b.bind_dim(count, hint, 0, mask.shape[0])
    return Term(mask.b, positions).part(0, 0, found)


# TopK -----------------------------------------------------------------------------------------------------------


@onnx_op("TopK")
def top_k(ctx: OpContext) -> tuple[Value, Value]:
    """TopK (opset 1 with an attribute k; 10, 11, 24 with an operand): a stable sort, cut."""
    x = Term(ctx.builder, ctx.input(0))
    axis = ctx.axis(ctx.attr("axis", -1), x.rank)
    (count,) = [ctx.attr("k")] if ctx.has_attr("k") else ctx.shape_operand(1, "k")
    place = Term(ctx.builder, ctx.builder.iota(x.shape, axis))
    values, indices = sort(x, place, axis=axis, descending=bool(ctx.attr("largest", 1)))
    return values.part(axis, 0, count).value, indices.part(axis, 0, count).value


# Unique ---------------------------------------------------------------------------------------------------------


@onnx_op("Unique", since=11)
def unique(ctx: OpContext) -> list[Value]:
    """Unique (opset 11): equal rows stand together after a sort; the first of each group is kept.

    Outputs Y, first indices, inverse indices, counts.
    """
    b, x = ctx.builder, Term(ctx.builder, ctx.input(0))
    axis = ctx.attr("axis", None)
    if axis is None:
        x, axis = x.reshape(dims.product(x.shape)), 0
    axis = ctx.axis(axis, x.rank)
    extent = x.shape[axis]
    rows = x.transpose(axis, *(k for k in range(x.rank) if k != axis)).reshape(extent, _width(x, axis))
    order = _lexicographic(rows)
    starts = _group_starts(rows.take(order, 0))
    group = Term(b, b.emit("cumulative", starts.convert(dtypes.I64).value, fn="add", axis=0, exclusive=False, reverse=False)) - 1
    first = order.take(compact(starts, "unique"), 0)
    ranks = None
    if not ctx.attr("sorted", 1):
        first, ranks = _by_occurrence(first)
    inverse_of_sorted = group if ranks is None else ranks.take(group, 0)
    inverse = _scatter(full(b, (extent,), 0, dtypes.I64), order, inverse_of_sorted, "set")
    counts = _scatter(full(b, first.shape, 0, dtypes.I64), inverse, full(b, (extent,), 1, dtypes.I64), "add")
    return [term.value for term in (x.take(first, axis), first, inverse, counts)][: ctx.output_count]


def _width(x: Term, axis: int) -> DimLike:
    return dims.product(extent for k, extent in enumerate(x.shape) if k != axis)


def _lexicographic(rows: Term) -> Term:
    """The order of the rows [n, m]: stable sorts by each column, the last first."""
    count, width = rows.shape
    start = Term(rows.b, rows.b.iota((count,)))

    def turn(counter: DimLike, carried: list[Term], captures: list[Term]) -> tuple[list[Term], list[Term]]:
        (order,), (table,) = carried, captures
        column = table.at(1, width - 1 - counter).take(order, 0)
        return [sort(column, order, axis=0)[1]], []

    return counted_loop(rows.b, width, [start], [rows], turn)[0][0]


def _group_starts(rows: Term) -> Term:
    """Whether each of the sorted rows [n, m] differs from the one before."""
    place = Term(rows.b, rows.b.iota((rows.shape[0],)))
    before = rows.take((place - 1).map("max", 0), 0)
    differs = rows.map("ne", before)
    both_nan = rows.map("isnan") & before.map("isnan") if rows.dtype.is_float else None
    differs = differs if both_nan is None else differs & ~both_nan
    return differs.reduce("or", [1]) | place.equals(0)


def _by_occurrence(first: Term) -> tuple[Term, Term]:
    """First indices in increasing order, and the new rank of each group."""
    place = Term(first.b, first.b.iota(first.shape))
    first, groups = sort(first, place, axis=0)
    return first, _scatter(full(first.b, first.shape, 0, dtypes.I64), groups, place, "set")


def _scatter(target: Term, indices: Term, updates: Term, combiner: str) -> Term:
    """One-dimensional scatter."""
    return Term(target.b, target.b.emit("scatter_elements", target.value, indices.value, updates.value, axis=0, combiner=combiner))


# NonMaxSuppression ----------------------------------------------------------------------------------------------


@onnx_op("NonMaxSuppression", since=10)
def non_max_suppression(ctx: OpContext) -> Value:
    """NonMaxSuppression (opset 10, 11): each turn takes the best box left of every batch entry and class at once.

    The result [selected, 3] lists (batch, class, box), by batch and class and then in the order of selection.
    """
    b = ctx.builder
    boxes, scores = Term(b, ctx.input(0)), Term(b, ctx.input(1))
    count = boxes.shape[1]
    limit = _scalar(ctx, 2, 0, dtypes.I64).map("max", 0)
    trip = dims.minimum(b.bind_dim(limit.value, "boxes"), count, b.symbols)
    overlap = _scalar(ctx, 3, 0.0, scores.dtype)
    corners = _corners(boxes, centred=bool(ctx.attr("center_point_box", 0)))
    alive = scores > _scalar(ctx, 4, -np.inf, scores.dtype) if ctx.has(4) else full(b, scores.shape, True, dtypes.BOOL)

    def turn(counter: DimLike, carried: list[Term], captures: list[Term]) -> tuple[list[Term], list[Term], Term]:
        (left,), (table, edges, threshold) = carried, captures
        best, there = _best(left, table)
        rest = left & ~_same_place(best, table) & ~(there.expand(2) & (_overlaps(edges, best) > threshold))
        return [rest], [best, there], rest.reduce("or", range(3))

    _, (best, there) = loop_while(b, trip, [alive], [scores, corners, overlap], turn)
    return _selection(best, there)


def _scalar(ctx: OpContext, k: int, default: float, dtype: dtypes.DType) -> Term:
    if not ctx.has(k):
        return number(ctx.builder, default, dtype)
    return Term(ctx.builder, ctx.input(k)).reshape().convert(dtype)


def _corners(boxes: Term, *, centred: bool) -> Term:
    """[batch, count, 4] -> low y, low x, high y, high x, each [batch, count], on a new axis 0."""
    parts = [boxes.at(2, k) for k in range(4)]
    if centred:
        x, y, width, height = parts
        parts = [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
    a, b, c, d = parts
    low_high = [a.map("min", c), b.map("min", d), a.map("max", c), b.map("max", d)]
    return join([part.expand(0) for part in low_high], 0)


def _best(left: Term, scores: Term) -> tuple[Term, Term]:
    """The position of the best score left [batch, classes], and whether any is left."""
    best = Term(left.b, left.b.emit("arg_reduce", left.where(scores, -np.inf).value, fn="max", axis=2, last=False))
    there = left.take_along(best.expand(2), 2).reshape(*best.shape)
    # where all scores left are -inf, position 0 may be a dead one: take the first alive
    first = Term(left.b, left.b.emit("arg_reduce", left.convert(dtypes.I32).value, fn="max", axis=2, last=False))
    return there.where(best, first), left.reduce("or", [2])


def _same_place(best: Term, scores: Term) -> Term:
    place = Term(best.b, best.b.iota(scores.shape, 2))
    return place.equals(best.expand(2))


def _overlaps(edges: Term, best: Term) -> Term:
    """Intersection over union of the chosen boxes [batch, classes] with all: [batch, classes, count]."""
    low_y, low_x, high_y, high_x = (edges.at(0, k) for k in range(4))
    chosen = [edge.take_along(best, 1).expand(2) for edge in (low_y, low_x, high_y, high_x)]
    height = high_y.expand(1).map("min", chosen[2]) - low_y.expand(1).map("max", chosen[0])
    width = high_x.expand(1).map("min", chosen[3]) - low_x.expand(1).map("max", chosen[1])
    shared = height.map("max", 0) * width.map("max", 0)
    area = ((high_y - low_y) * (high_x - low_x)).expand(1)
    union = area + (chosen[2] - chosen[0]) * (chosen[3] - chosen[1]) - shared
    return ((shared > 0) & (union > 0)).where(shared / union, 0)


def _selection(best: Term, there: Term) -> Value:
    """The boxes of all turns [turns, batch, classes] where there was one, as rows (batch, class, box)."""
    turns, batch, classes = best.shape
    size = turns * batch * classes
    found = compact(there.transpose(1, 2, 0).reshape(size), "selected")
    box = best.transpose(1, 2, 0).reshape(size).take(found, 0)
    pair = found // number(found.b, turns, dtypes.I64)
    return join([(pair // classes).expand(1), (pair % classes).expand(1), box.expand(1)], 1).value
