"""Indices that are known to be in range carry no check; run with the constant folding after layouts.

    %y = gather(%x, %i) {axis = 0}     -->     %y = gather(%x, %i) {axis = 0, proved = true}

where bounds follow for %i: from constants, what is gathered from them, clamps, counts, and integer arithmetic that cannot wrap.
Walks through constant trees and tables of positions need no checks then.
"""

from __future__ import annotations

from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import BOOL
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context, Patch, patch, rule

Bounds = tuple[int, int]
_DEPTH = 12
_SAME = frozenset(
    {"broadcast", "reshape", "transpose", "slice", "gather", "gather_nd", "gather_elements"}
)  # elements of their first operand


@rule("gather", "gather_elements", "gather_nd")
def indices_in_range(node: Node, context: Context) -> Patch | None:
    if node.attrs.get("proved", False):
        return None
    low, high = bounds(node.inputs[1], context)
    extents = _extents(node)
    if low < 0 or not all(isinstance(extent, int) and high < extent for extent in extents):
        return None
    b = context.build(node)
    return patch("indices in range", b, b.emit(node.op, *node.inputs, **{**node.attrs, "proved": True}))


def _extents(node: Node) -> tuple:
    """The extents of the axes that are indexed."""
    x, indices = node.inputs
    if node.op == "gather_nd":
        batch = node.attrs.get("batch", 0)
        return x.shape[batch : batch + indices.shape[-1]]
    return (x.shape[node.attrs["axis"]],)


def bounds(value: Value, context: Context, depth: int = _DEPTH) -> Bounds:
    """The least and the greatest value that elements of an integer or bool tensor may have."""
    limits = (0, 1) if value.dtype == BOOL else integer_limits(value.dtype) if value.dtype.is_integer else None
    node = context.producer(value)
    if limits is None or node is None or depth == 0:
        return limits or (-(1 << 64), 1 << 64)
    found = _of_node(node, context, depth - 1)
    # what may leave the type may wrap to anything
    return found if found is not None and limits[0] <= found[0] and found[1] <= limits[1] else limits


def _of_node(node: Node, context: Context, depth: int) -> Bounds | None:
    inputs, op = node.inputs, node.op
    if op == "constant":
        array = node.attrs["value"]
        return (int(array.min()), int(array.max())) if array.size else None
    if op in _SAME:
        return bounds(inputs[0], context, depth)
    if op == "concat":
        return _union([bounds(operand, context, depth) for operand in inputs])
    if op == "convert":
        source = inputs[0].dtype
        return bounds(inputs[0], context, depth) if source == BOOL or source.is_integer else None
    if op in ("iota", "arg_reduce"):
        shape = node.output.shape if op == "iota" else inputs[0].shape
        extent = shape[node.attrs["axis"]]
        return (0, extent - 1) if isinstance(extent, int) and extent else None
    return _of_map(node, context, depth) if op == "map" and node.output.dtype != BOOL else None


def _of_map(node: Node, context: Context, depth: int) -> Bounds | None:
    fn = node.attrs["fn"]
    if fn not in ("where", "add", "sub", "mul", "min", "max"):
        return None
    (a, b), (c, d) = (bounds(operand, context, depth) for operand in node.inputs[-2:])
    products = (a * c, a * d, b * c, b * d)
    return {
        "where": (min(a, c), max(b, d)),
        "add": (a + c, b + d),
        "sub": (a - d, b - c),
        "mul": (min(products), max(products)),
        "min": (min(a, c), min(b, d)),
        "max": (max(a, c), max(b, d)),
    }[fn]


def _union(parts: list[Bounds]) -> Bounds:
    return min(low for low, _ in parts), max(high for _, high in parts)


RULES = (indices_in_range,)
