"""Sorting rows on a GPU: a bitonic network in shared memory, a block for each row, for rows of bounded length.

Pairs (key as an integer that orders as the key, position) are compared as pairs, so equal keys keep their order. Places behind the
row hold the highest pair. Source: Batcher, Sorting networks and their applications (1968).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from tcompile.codegen.access import unravel
from tcompile.codegen.cuda_block import ThreadBlock, thread_block
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_rows import Rows
from tcompile.codegen.lower_sort import key_type, ordered
from tcompile.codegen.scalar import cast, compare, highest, index_value, op, select
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import BOOL, I32, I64, DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Barrier, Expr, Load, Op
from tcompile.ir.target import GpuTarget, Target

MOST = 2048  # elements of a row
THREADS = 512


@template("sort", "cuda")
def sort(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """Rows of at most ``MOST`` elements; longer ones get a thread each."""
    assert isinstance(target, GpuTarget), target
    key = node.inputs[0]
    rows = Rows(key.shape, (node.attrs["axis"],))
    (extent,) = rows.inner
    most = dims.upper_bound(extent, scope.ranges)
    if not isinstance(most, int) or most > MOST:
        return None
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
