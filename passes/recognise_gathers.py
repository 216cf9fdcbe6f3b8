"""One-hot vectors and small tables; part of ``passes/recognise.py``.

    %h = where(eq(%i, 0 1 2 ...), 1, 0)
    %y = dot_general(%h, %w)                       -->     %y = gather(gelu(%w + %b), %i)
    %z = gelu(%y + %b)

A product of a one-hot vector and a matrix is a row of the matrix, and what is done to every row alike can be done to the matrix.
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir import elementwise
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import BOOL
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context, Patch, patch, rule

SMALL_TABLE = 1 << 16  # elements: a table that an elementwise function may be applied to whoever reads it otherwise


@rule("dot_general")
def one_hot_product(node: Node, context: Context) -> Patch | None:
    """one_hot(i) . w == w[i], or 0 where i is not a row: exact for a finite w (a sum that starts from 0.0 has no -0.0)."""
    hot, w = node.inputs
    (contract, axes), (batch, _) = node.attrs["contract"], node.attrs["batch"]
    array = context.constant(w)
    if array is None or batch or len(axes) != 1 or contract != (hot.rank - 1,) or not node.attrs["dtype"] == w.dtype == hot.dtype:
        return None
    if not w.dtype.is_float or not np.isfinite(array.astype(np.float64)).all():
        return None
    b = context.build(node)
    rows = _hot_positions(hot, context, b)
    if rows is None:
        return None
    (axis,) = axes
    depth = array.shape[axis]
    table = np.moveaxis(array, axis, 0) + array.dtype.type(0)
    table = np.concatenate([table, np.zeros((1, *table.shape[1:]), table.dtype)])
    rows = b.reshape(rows, hot.shape[:-1])
    inside = b.map("and", b.map("ge", rows, b.scalar_like(0, rows)), b.map("lt", rows, b.scalar_like(depth, rows)))
    rows = b.map("where", inside, rows, b.scalar_like(depth, rows))
    return patch("product with one-hot vectors", b, b.emit("gather", b.constant(table), rows, axis=0))


def _hot_positions(value: Value, context: Context, b: Builder) -> Value | None:
    """The integers i, one for each row of a value whose rows are 1 at position i and 0 elsewhere."""
    node = context.producer(value, "reshape", "map", "convert")
    if node is None:
        return None
    if node.op == "reshape":
        inner = node.inputs[0]
        return _hot_positions(inner, context, b) if inner.rank and inner.shape[-1] == value.shape[-1] else None
    selects = node.op == "map" and node.attrs["fn"] == "where" and [context.scalar(branch) for branch in node.inputs[1:]] == [1, 0]
    if node.op != "convert" and not selects:
        return None
    equal = node.inputs[0]
    made = context.producer(equal, "map") if equal.dtype == BOOL else None
    if made is None or made.attrs["fn"] != "eq":
        return None
    for positions, counted in (made.inputs, made.inputs[::-1]):
        if _counts(counted, context):
            return _of_row(positions, context, b)
    return None


def _counts(value: Value, context: Context) -> bool:
    """Whether every row of a value is 0, 1, 2, ..."""
    made = context.producer(value, "broadcast")
    if made is None or made.attrs["axes"] != (value.rank - 1,):
        return False
    array = context.constant(made.inputs[0])
    return array is not None and array.shape == value.shape[-1:] and bool((array == np.arange(array.size)).all())


def _of_row(value: Value, context: Context, b: Builder) -> Value | None:
    """The integers that a value repeats along its last axis."""
    made = context.producer(value, "broadcast")
    if made is None or value.rank - 1 in made.attrs["axes"] or not value.dtype.is_integer or value.dtype.bits < 16:
        return None
    return b.emit("broadcast", made.inputs[0], shape=value.shape[:-1], axes=made.attrs["axes"])


@rule("reshape")
def reshape_of_gather(node: Node, context: Context) -> Patch | None:
    # reshape(gather(t, i)) == gather(t, reshape(i)) where only the axes of i change
    made = _table_gather(node.inputs[0], context)
    if made is None or not context.used_once(made.output):
        return None
    table, rows = made.inputs
    kept = table.shape[1:]
    cut = len(node.output.shape) - len(kept)
    if cut < 0 or node.output.shape[cut:] != kept or 0 in kept:
        return None
    b = context.build(node)
    return patch("reshape of a gather", b, b.emit("gather", table, b.reshape(rows, node.output.shape[:cut]), axis=0))


@rule("map")
def map_of_gather(node: Node, context: Context) -> Patch | None:
    """f(t[i], c) == f(t, c)[i] for an elementwise f and constants c that are the same for all i."""
    gathers = [made for made in (_table_gather(value, context) for value in node.inputs) if made is not None]
    if not gathers or any(made.inputs[1] is not gathers[0].inputs[1] for made in gathers):
        return None
    table, rows = gathers[0].inputs
    parts = [_by_table_row(value, rows, table.shape, context) for value in node.inputs]
    if any(part is None for part in parts):
        return None
    b = context.build(node)
    made = b.constant(np.ascontiguousarray(elementwise.apply(node.attrs["fn"], parts)))
    return patch("function of a table", b, b.emit("gather", made, rows, axis=0))


def _table_gather(value: Value, context: Context) -> Node | None:
    """The gather of rows of a small constant that makes a value."""
    made = context.producer(value, "gather")
    if made is None or made.attrs["axis"] != 0 or context.producer(made.inputs[0], "constant") is None:
        return None
    return made if made.inputs[0].rank > 1 and math.prod(made.inputs[0].shape) <= SMALL_TABLE else None


def _by_table_row(value: Value, rows: Value, shape: tuple[int, ...], context: Context) -> np.ndarray | None:
    """An operand of ``map_of_gather`` as an array of the table's shape."""
    made = _table_gather(value, context)
    if made is not None:
        return context.constant(made.inputs[0]) if made.inputs[0].shape == shape else None
    number = context.scalar(value)
    if number is not None:
        return np.broadcast_to(np.asarray(number, value.dtype.numpy), shape)
    spread = context.producer(value, "broadcast")
    source = context.producer(spread.inputs[0], "constant") if spread else None
    if source is None or any(axis < rows.rank for axis in spread.attrs["axes"]):
        return None
    aligned = [1] * (len(shape) - 1)
    for extent, axis in zip(source.output.shape, spread.attrs["axes"], strict=True):
        aligned[axis - rows.rank] = extent
    return np.broadcast_to(source.attrs["value"].reshape(aligned), shape)


RULES = (one_hot_product, reshape_of_gather, map_of_gather)
