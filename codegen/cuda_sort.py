"""Sorting rows on a GPU, a block for each row: a bitonic network in shared memory, and merges in memory for rows beyond it.

Pairs (key as an integer that orders as the key, position) are compared as pairs, so equal keys keep their order. Places behind the
row hold the highest pair. Source: Batcher, Sorting networks and their applications (1968).

    runs of 2048 are sorted in shared memory; width = 2048, 4096, ... while width < n:
        each element goes to its place in its own run + the number of elements of the other run that come before it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from tcompile.codegen.access import unravel
from tcompile.codegen.cuda_block import ThreadBlock, thread_block
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_rows import Rows
from tcompile.codegen.lower_sort import key_type, ordered
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import cast, compare, const, highest, index_value, op, select
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import BOOL, I32, I64, DType
from tcompile.ir.graph import Node, TensorType, Value
from tcompile.ir.loops import Access, Barrier, Expr, Load, Op, Space
from tcompile.ir.target import GpuTarget, Target

MOST = 2048  # elements of a row
THREADS = 512
_LONGEST = 1 << 30  # elements of a row of any length


@template("sort", "cuda")
def sort(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """Rows of at most ``MOST`` elements in one network; longer ones, and those of any length, by merges."""
    assert isinstance(target, GpuTarget), target
    key = node.inputs[0]
    rows = Rows(key.shape, (node.attrs["axis"],))
    (extent,) = rows.inner
    most = dims.upper_bound(extent, scope.ranges)
    if not isinstance(most, int) or most > MOST:
        return [_long(node, scope, rows, most)]
    size = max(1 << max(most - 1, 1).bit_length(), 2)
    draft = Draft("sort", node, scope)
    nest, threads = draft.nest, min(max(size // 2, 32), THREADS)
    with thread_block(nest, dims.product(rows.outer), threads) as block:
        row = unravel(block.number, rows.outer, nest.ranges)
        row = tuple(block.named(i, length - 1) for i, length in zip(row, rows.outer, strict=True))
        network = _Network(block, size, threads, key_type(key.dtype))
        with network.each(size) as k:
            inside = compare("lt", k, extent)
            mine = ordered(draft.element(key, rows.indices(row, (k,)), inside), descending=node.attrs["descending"])
            network.put(k, select(inside, mine, highest(network.kind)))
        network.sort()
        with network.each(size) as k, nest.branch(compare("lt", k, extent)):
            position = nest.let_index(cast(Load(network.positions, (k,), I32), I64), Range(0, extent - 1))
            values = [draft.element(source, rows.indices(row, (position,))) for source in node.inputs]
            for output, value in zip(node.outputs, values, strict=True):
                draft.store(output, rows.indices(row, (k,)), value)
    draft.flops = key.type.size
    return [Built(*draft.finish())]


def _long(node: Node, scope: Scope, rows: Rows, most: int | None) -> Built:
    """Rows of any length, as two copies of all pairs: merges go from one to the other."""
    key, (extent,) = node.inputs[0], rows.inner
    draft = Draft("sort_long", node, scope)
    nest, kind, count = draft.nest, key_type(key.dtype), dims.product(rows.outer)
    keys, positions = (Value(name, TensorType(dtype, (2 * key.type.size,))) for name, dtype in (("keys", kind), ("positions", I32)))
    with thread_block(nest, count, THREADS) as block:
        row = unravel(block.number, rows.outer, nest.ranges)
        row = tuple(block.named(i, length - 1) for i, length in zip(row, rows.outer, strict=True))
        pairs = _Pairs(nest, draft.write(keys, Access.INOUT), draft.write(positions, Access.INOUT), kind, extent, count, block.number)
        network = _Network(block, MOST, THREADS, kind)
        with nest.loop(dims.ceildiv(extent, MOST, nest.ranges)) as tile:
            with network.each(MOST) as k:
                place = tile * MOST + k
                inside = compare("lt", place, extent)
                mine = ordered(draft.element(key, rows.indices(row, (place,)), inside), descending=node.attrs["descending"])
                network.put(k, select(inside, mine, highest(kind)))
            network.sort()
            with network.each(MOST) as k, nest.branch(compare("lt", tile * MOST + k, extent)):
                position = op("add", Load(network.positions, (k,), I32), index_value(tile * MOST, I32))
                pairs.put(0, tile * MOST + k, Load(network.keys, (k,), kind), position)
            nest.emit(Barrier())
        side = _merges(block, pairs, _LONGEST if most is None else most)
        with _shared(block, extent) as k:
            position = nest.let_index(cast(pairs.position(side, k), I64), Range(0, extent - 1))
            values = [draft.element(source, rows.indices(row, (position,))) for source in node.inputs]
            for output, value in zip(node.outputs, values, strict=True):
                draft.store(output, rows.indices(row, (k,)), value)
    draft.flops = key.type.size
    return Built(*draft.finish(), scratch=(keys, positions))


def _merges(block: ThreadBlock, pairs: _Pairs, most: int) -> DimLike:
    """Merges until one run is left, in at most so many turns as ``most`` elements take; tells which copy has it."""
    nest, extent = block.nest, pairs.extent
    widths, sides = (nest.alloc(I64, (1,), Space.REGISTER) for _ in range(2))
    nest.store(widths, 0, const(MOST, I64))
    nest.store(sides, 0, const(0, I64))
    turns = ((most - 1) // MOST).bit_length()
    with nest.loop(turns):
        width = nest.let_index(Load(widths, (0,), I64), Range(MOST, MOST << turns))
        side = nest.let_index(Load(sides, (0,), I64), Range(0, 1))
        more = nest.let(compare("lt", width, extent))
        with nest.branch(more), _shared(block, extent) as k:
            pairs.merge(k, width, side, (MOST << turns).bit_length())
        nest.store(sides, 0, select(more, index_value(1 - side), index_value(side)))
        nest.store(widths, 0, index_value(2 * width))
        nest.emit(Barrier())
    return nest.let_index(Load(sides, (0,), I64), Range(0, 1))


@contextmanager
def _shared(block: ThreadBlock, extent: DimLike) -> Iterator[DimLike]:
    """This thread's share of the elements of a row."""
    nest = block.nest
    with nest.loop(dims.ceildiv(extent, THREADS, nest.ranges)) as turn:
        k = turn * THREADS + block.thread
        with nest.branch(compare("lt", k, extent)):
            yield k


@dataclass(frozen=True)
class _Pairs:
    """Two copies of the pairs of all rows, of which this block has one."""

    nest: Nest
    keys: str
    positions: str
    kind: DType
    extent: DimLike
    count: DimLike
    row: DimLike

    def place(self, side: DimLike, k: DimLike) -> DimLike:
        return (side * self.count + self.row) * self.extent + k

    def key(self, side: DimLike, k: DimLike, mask: Expr | None = None) -> Expr:
        return Load(self.keys, (self.place(side, k),), self.kind, mask)

    def position(self, side: DimLike, k: DimLike) -> Expr:
        return Load(self.positions, (self.place(side, k),), I32)

    def put(self, side: DimLike, k: DimLike, key: Expr, position: Expr) -> None:
        self.nest.store(self.keys, self.place(side, k), key)
        self.nest.store(self.positions, self.place(side, k), position)

    def merge(self, k: DimLike, width: DimLike, side: DimLike, steps: int) -> None:
        """Element k of a run of ``width`` to its place among those of the run and its neighbour, in the other copy.

        ``steps``: halvings that leave one of as many elements as a run may have.
        """
        nest, ranges = self.nest, self.nest.ranges
        start = nest.let_index(index_value(dims.floordiv(k, 2 * width, ranges) * (2 * width)), Range(0, self.extent - 1))
        middle, end = (self._within(start + width), self._within(start + 2 * width))
        left = nest.let(compare("lt", k, middle))
        mine = nest.let(self.key(side, k))
        first = nest.let_index(select(left, index_value(middle), index_value(start)), Range(0, self.extent))
        last = nest.let_index(select(left, index_value(end), index_value(middle)), Range(0, self.extent))
        before = self._before(mine, left, side, first, last, steps)
        own = nest.let_index(select(left, index_value(start), index_value(middle)), Range(0, self.extent))
        target = nest.let_index(index_value(start + (k - own) + (before - first)), Range(0, self.extent - 1))
        self.put(1 - side, target, mine, self.position(side, k))

    def _before(self, mine: Expr, left: Expr, side: DimLike, low: DimLike, high: DimLike, steps: int) -> DimLike:
        """Where an element would stand in the other run: behind equal ones where its own run is the right one."""
        nest = self.nest
        ends = [nest.alloc(I64, (1,), Space.REGISTER) for _ in range(2)]
        for buffer, end in zip(ends, (low, high), strict=True):
            nest.store(buffer, 0, index_value(end))
        with nest.loop(steps):
            lower, upper = (nest.let_index(Load(buffer, (0,), I64), Range(0, self.extent)) for buffer in ends)
            open_ = nest.let(compare("lt", lower, upper))
            middle = nest.let_index(index_value(dims.floordiv(lower + upper, 2, nest.ranges)), Range(0, self.extent))
            theirs = nest.let(self.key(side, middle, open_))
            comes = Op("or", (op("lt", theirs, mine), Op("and", (op("not", left), op("eq", theirs, mine)), BOOL)), BOOL)
            comes = nest.let(Op("and", (open_, comes), BOOL))
            stays = nest.let(Op("and", (open_, op("not", comes)), BOOL))
            nest.store(ends[0], 0, select(comes, index_value(middle + 1), index_value(lower)))
            nest.store(ends[1], 0, select(stays, index_value(middle), index_value(upper)))
        return nest.let_index(Load(ends[0], (0,), I64), Range(0, self.extent))

    def _within(self, k: DimLike) -> DimLike:
        return self.nest.let_index(op("min", index_value(k), index_value(self.extent)), Range(0, self.extent))


class _Network:
    """The pairs of one row, and the steps that sort them."""

    def __init__(self, block: ThreadBlock, size: int, threads: int, kind: DType) -> None:
        self.block, self.nest, self.size, self.threads, self.kind = block, block.nest, size, threads, kind
        self.keys = block.alloc(kind, (size,))
        self.positions = block.alloc(I32, (size,))

    @contextmanager
    def each(self, count: int) -> Iterator[DimLike]:
        """This thread's share of ``count`` things, ``threads`` apart."""
        with self.nest.loop(-(-count // self.threads)) as turn:
            number = turn * self.threads + self.block.thread
            with self.nest.branch(compare("lt", number, count)) if count % self.threads else nullcontext():
                yield number

    def put(self, k: DimLike, key: Expr) -> None:
        """Element k of the unsorted row."""
        self.nest.store(self.keys, k, key)
        self.nest.store(self.positions, k, index_value(k, I32))

    def sort(self) -> None:
        """Doubles the length of sorted runs: in each, halves the distance of what is compared."""
        run = 2
        while run <= self.size:
            distance = run // 2
            while distance:
                self.nest.emit(Barrier())
                with self.each(self.size // 2) as pair:
                    self._compare(pair, run, distance)
                distance //= 2
            run *= 2
        self.nest.emit(Barrier())

    def _compare(self, pair: DimLike, run: int, distance: int) -> None:
        nest, ranges = self.nest, self.nest.ranges
        low = dims.floordiv(pair, distance, ranges) * (2 * distance) + dims.mod(pair, distance, ranges)
        low = self.block.named(low, self.size - 1)
        high = low + distance
        a, b = (nest.let(Load(self.keys, (k,), self.kind)) for k in (low, high))
        i, j = (nest.let(Load(self.positions, (k,), I32)) for k in (low, high))
        later = Op("or", (op("gt", a, b), Op("and", (op("eq", a, b), op("gt", i, j)), BOOL)), BOOL)
        falls = compare("eq", dims.mod(dims.floordiv(low, run, ranges), 2, ranges), 1)
        with nest.branch(op("ne", later, falls)):
            for buffer, first, second in ((self.keys, b, a), (self.positions, j, i)):
                nest.store(buffer, low, first)
                nest.store(buffer, high, second)
