"""Running folds on a GPU: cumulative, and compact (whose places are running counts), a block for each row.

    carry = identity
    for each 256 elements of the row: x = the thread's element
        for d in 1, 2, 4, 8, 16: other = sum of the lane d away; before += other where the lane has bit d; sum += other
        warps' sums meet in shared memory: before = carry + sums of the warps in front + before; carry += all of them

Elements are combined in one order, which depends on the extent alone.
"""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.access import unravel
from tcompile.codegen.cuda_block import ThreadBlock, thread_block
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_rows import Rows
from tcompile.codegen.scalar import accumulator, cast, compare, const, identity, index_value, op, rounded, select
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import I64, DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Barrier, Expr, Load, Shuffle, Space
from tcompile.ir.target import GpuTarget, Target

LANES = 32
THREADS = 256
_SHORT = 64  # elements up to which a thread takes a row of its own


class RowScan:
    """Scans one row after the other by one block each."""

    def __init__(self, draft: Draft, block: ThreadBlock, fn: str, dtype: DType) -> None:
        self.draft, self.nest, self.block, self.fn, self.dtype = draft, draft.nest, block, fn, dtype
        ranges = self.nest.ranges
        self.lane = block.named(dims.mod(block.thread, LANES, ranges), LANES - 1)
        self.warp = block.named(dims.floordiv(block.thread, LANES, ranges), THREADS // LANES - 1)
        self.sums = block.alloc(dtype, (THREADS // LANES,))
        self.carry = self.nest.alloc(dtype, (1,), Space.REGISTER)
        self.nest.store(self.carry, 0, identity(fn, dtype))

    def run(self, extent: DimLike, element: Callable[[DimLike, Expr], Expr], put: Callable[[DimLike, Expr, Expr, Expr], None]) -> Expr:
        """Calls ``put(k, before, after, inside)`` in every thread for its elements; returns the fold of all."""
        nest = self.nest
        with nest.loop(dims.ceildiv(extent, THREADS, nest.ranges)) as turn:
            k = turn * THREADS + self.block.thread
            inside = nest.let(compare("lt", k, extent))
            mine = nest.let(select(inside, cast(element(k, inside), self.dtype), identity(self.fn, self.dtype)))
            before, total = self._warp(mine)
            with nest.branch(compare("eq", self.lane, 0)):
                nest.store(self.sums, self.warp, total)
            nest.emit(Barrier())
            carry = nest.let(Load(self.carry, (0,), self.dtype))
            front, everything = self._warps(carry)
            before = nest.let(op(self.fn, front, before))
            put(k, before, nest.let(op(self.fn, before, mine)), inside)
            nest.store(self.carry, 0, everything)
            nest.emit(Barrier())
        return nest.let(Load(self.carry, (0,), self.dtype))

    def _warp(self, mine: Expr) -> tuple[Expr, Expr]:
        """The fold of the lanes in front, and of all lanes."""
        nest = self.nest
        before: Expr = identity(self.fn, self.dtype)
        total = mine
        for distance in (1, 2, 4, 8, 16):
            other = nest.let(Shuffle(total, distance))
            upper = compare("ge", dims.mod(self.lane, 2 * distance, nest.ranges), distance)
            before = nest.let(select(upper, op(self.fn, other, before), before))
            total = nest.let(select(upper, op(self.fn, other, total), op(self.fn, total, other)))
        return before, total

    def _warps(self, carry: Expr) -> tuple[Expr, Expr]:
        """The carry with the sums of the warps in front, and with those of all."""
        front, total = carry, carry
        for k in range(THREADS // LANES):
            part = Load(self.sums, (k,), self.dtype)
            front = select(compare("lt", k, self.warp), op(self.fn, front, part), front)
            total = op(self.fn, total, part)
        return self.nest.let(front), self.nest.let(total)


@template("cumulative", "cuda")
def cumulative(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """out[k] = the fold of x[0..k] (or up to k - 1); rows of few elements, or very many rows, get a thread each."""
    assert isinstance(target, GpuTarget), target
    (source,) = node.inputs
    attrs, fn, axis = node.attrs, node.attrs["fn"], node.attrs["axis"]
    rows, extent = Rows(source.shape, (axis,)), source.shape[axis]
    count = dims.product(rows.outer)
    if (isinstance(extent, int) and extent <= _SHORT) or (isinstance(count, int) and count >= target.sms * target.threads_per_sm):
        return None
    draft = Draft(f"cumulative_{fn}", node, scope)
    nest = draft.nest
    with thread_block(nest, count, THREADS) as block:
        row = unravel(block.number, rows.outer, nest.ranges)
        row = tuple(block.named(i, length - 1) for i, length in zip(row, rows.outer, strict=True))

        def place(k: DimLike) -> tuple[DimLike, ...]:
            return rows.indices(row, (extent - 1 - k if attrs["reverse"] else k,))

        def put(k: DimLike, before: Expr, after: Expr, inside: Expr) -> None:
            with nest.branch(inside):
                draft.store(node.output, place(k), rounded(before if attrs["exclusive"] else after, node.output.dtype))

        scan = RowScan(draft, block, fn, accumulator(source.dtype))
        scan.run(extent, lambda k, inside: draft.element(source, place(k), inside), put)
    draft.flops = source.type.size
    return [Built(*draft.finish())]


@template("compact", "cuda")
def compact(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """Indices of the true elements in front, zeros behind, and their number: places are counts of the true elements before."""
    (mask,) = node.inputs
    indices, count = node.outputs
    draft = Draft("compact", node, scope)
    nest, extent = draft.nest, mask.shape[0]
    with thread_block(nest, 1, THREADS) as block:
        scan = RowScan(draft, block, "add", I64)

        def element(k: DimLike, inside: Expr) -> Expr:
            return cast(draft.element(mask, (k,), inside), I64)

        def put(k: DimLike, before: Expr, after: Expr, inside: Expr) -> None:
            place = nest.let_index(before, Range(0, extent - 1))
            with nest.branch(op("ne", before, after)):
                nest.store(draft.write(indices), place, index_value(k))

        total = nest.let_index(scan.run(extent, element, put), Range(0, extent))
        with nest.branch(compare("eq", block.thread, 0)):
            nest.store(draft.write(count), 0, index_value(total))
        with nest.loop(dims.ceildiv(extent - total, THREADS, nest.ranges)) as turn:
            k = total + turn * THREADS + block.thread
            with nest.branch(compare("lt", k, extent)):
                nest.store(draft.write(indices), k, const(0, I64))
    return [Built(*draft.finish())]
