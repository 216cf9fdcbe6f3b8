"""Stable merge sort of rows, bottom up, on integers that order as the keys do.

A key becomes an integer: floats by their bits with the negative half mirrored, -0 as 0, NaN above all;
descending order flips the bits, so that equal keys keep their order. The sort moves (key, position) pairs between the
halves of two row buffers; every output is then read through the positions.
"""

from __future__ import annotations

from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_rows import Rows
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import both, cast, compare, const, highest, index_value, op, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import BOOL, F32, I32, I64, U64, DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Bitcast, Const, Expr, Load, Op, Space


def lower_sort(node: Node, scope: Scope) -> list[Draft]:
    """Rows along the axis, each on its own."""
    key = node.inputs[0]
    rows = Rows(key.shape, (node.attrs["axis"],))
    (extent,) = rows.inner
    draft = Draft("sort", node, scope)
    with draft.nest.loops(rows.outer, independent=True) as row:
        sorter = _RowSort(draft.nest, extent, key_type(key.dtype))
        with draft.nest.loop(extent, independent=True) as k:
            sorter.put(k, ordered(draft.element(key, rows.indices(row, (k,))), descending=node.attrs["descending"]))
        sorter.sort()
        with draft.nest.loop(extent) as k:
            position = sorter.position(k)
            for source, output in zip(node.inputs, node.outputs, strict=True):
                draft.store(output, rows.indices(row, (k,)), draft.element(source, rows.indices(row, (position,))))
    draft.flops = key.type.size
    return [draft]


def key_type(dtype: DType) -> DType:
    """The signed integer that holds ordered keys of a dtype."""
    if dtype.is_float:
        return I64 if dtype.bits == 64 else I32
    return I64 if dtype.bits > 32 or dtype.name == "u32" else I32


def ordered(key: Expr, *, descending: bool) -> Expr:
    """An integer that compares as the key."""
    dtype, kind = key.dtype, key_type(key.dtype)
    if dtype.is_float:
        found = _ordered_float(cast(key, F32 if kind == I32 else dtype), kind)
    elif dtype == U64:
        found = op("xor", Bitcast(key, I64), Const(-(1 << 63), I64))
    else:
        found = cast(key, kind)
    return op("not", found) if descending else found


def _ordered_float(key: Expr, kind: DType) -> Expr:
    bits = Bitcast(select(op("eq", key, const(0, key.dtype)), const(0, key.dtype), key), kind)
    mirrored = op("xor", bits, highest(kind))
    ordered = select(op("lt", bits, const(0, kind)), mirrored, bits)
    return select(op("isnan", key), highest(kind), ordered)


class _RowSort:
    """The row buffers: two halves of (key, position) pairs, and the loop state of the merges."""

    def __init__(self, nest: Nest, extent: DimLike, kind: DType) -> None:
        self.nest, self.extent, self.kind = nest, extent, kind
        self.keys = nest.alloc(kind, (2 * extent,), Space.STACK)
        self.positions = nest.alloc(I64, (2 * extent,), Space.STACK)
        self.width, self.side, self.left, self.right = (nest.alloc(I64, (1,), Space.REGISTER) for _ in range(4))

    def put(self, k: DimLike, key: Expr) -> None:
        """Element k of the unsorted row."""
        self.nest.store(self.keys, k, key)
        self.nest.store(self.positions, k, index_value(k))

    def position(self, k: DimLike) -> DimLike:
        """Which element comes k-th (after ``sort``)."""
        side = self._read(self.side, 1)
        return self.nest.let_index(Load(self.positions, (side * self.extent + k,), I64), Range(0, self.extent - 1))

    def sort(self) -> None:
        """Doubles the length of sorted runs until one is left."""
        nest = self.nest
        nest.store(self.width, 0, const(1, I64))
        nest.store(self.side, 0, const(0, I64))
        with nest.while_(Op("lt", (Load(self.width, (0,), I64), index_value(self.extent)), BOOL)):
            width, side = self._read(self.width, None), self._read(self.side, 1)
            with nest.loop(dims.ceildiv(self.extent, 2 * width, nest.ranges)) as run:
                self._merge(run * width * 2, width, side)
            nest.store(self.width, 0, index_value(width * 2))
            nest.store(self.side, 0, index_value(1 - side))

    def _merge(self, start: DimLike, width: DimLike, side: DimLike) -> None:
        """Two runs from ``start`` on, of one half, into the other half."""
        nest = self.nest
        middle = self._bound(start + width)
        end = self._bound(start + width * 2)
        nest.store(self.left, 0, index_value(start))
        nest.store(self.right, 0, index_value(middle))
        with nest.loop(end - start) as k:
            left, right = self._read(self.left, None), self._read(self.right, None)
            has_left, has_right = compare("lt", left, middle), compare("lt", right, end)
            ours = Load(self.keys, (side * self.extent + left,), self.kind, has_left)
            theirs = Load(self.keys, (side * self.extent + right,), self.kind, has_right)
            in_order = Op("or", (op("not", has_right), op("le", ours, theirs)), BOOL)
            takes_left = nest.let(both(has_left, in_order))
            source = nest.let_index(select(takes_left, index_value(left), index_value(right)), Range(0, self.extent - 1))
            target = (1 - side) * self.extent + start + k
            nest.store(self.keys, target, Load(self.keys, (side * self.extent + source,), self.kind))
            nest.store(self.positions, target, Load(self.positions, (side * self.extent + source,), I64))
            nest.store(self.left, 0, op("add", index_value(left), cast(takes_left, I64)))
            nest.store(self.right, 0, op("add", index_value(right), cast(op("not", takes_left), I64)))

    def _bound(self, expr: DimLike) -> DimLike:
        return self.nest.let_index(op("min", index_value(expr), index_value(self.extent)), Range(0, self.extent))

    def _read(self, buffer: str, high: int | None) -> DimLike:
        return self.nest.let_index(Load(buffer, (0,), I64), Range(0, self.extent if high is None else high))
