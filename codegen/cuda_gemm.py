"""Matrix products through shared memory: the loops of GEMMs and of convolutions as implicit GEMMs.

    block for (batch, part of the sum, rows x columns of results):
        for stages ahead: start copying A rows x terms and B terms x columns into shared memory
        for each step of terms:
            wait for this step's copies; barrier; start those of the step after the others
            for groups of 4 terms: registers a, b = shared; acc[r, c] += a[r] * b[c]
        epilogue; store

Subclasses say where the elements are. A sum that is split for want of blocks leaves its parts in memory; they are added in order
before the epilogue: by the blocks of a cluster, one for each part, after they have met, or by a second kernel where there are more
parts than a cluster has blocks. The order of every sum depends on the extents alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.cuda_block import ThreadBlock, meeting, thread_block
from tcompile.codegen.cuda_stage import Reader, Side, Stage
from tcompile.codegen.cuda_tile import choose
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_contraction import accumulation_type
from tcompile.codegen.scalar import both, compare, const, index_value, op
from tcompile.codegen.templates import Built
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node, TensorType, Value
from tcompile.ir.loops import Access, Barrier, CommitAsync, Expr, Load, LoopKind, Op, Space, WaitAsync
from tcompile.ir.target import GpuTarget

STAGES = 3
SWATH = 16  # tiles of rows that all columns are gone through for before the next
GROUP = 4  # terms, rows or columns that are one access of shared memory


@dataclass(frozen=True)
class Extents:
    """One product of matrices, for each of ``batch``: rows x terms times terms x columns, summed in ``dtype``."""

    rows: DimLike
    columns: DimLike
    terms: DimLike
    dtype: DType
    batch: DimLike = 1


class Product:
    """Writes the loops of one kernel. Subclasses say where the operands are."""

    name = "gemm"
    sides_of = 0, 1  # which of the contraction's operands are left and right

    def __init__(self, node: Node, scope: Scope, target: GpuTarget) -> None:
        self.node, self.scope, self.target = node, scope, target
        found = anchor(node)
        assert found is not None, node.op
        self.core = found
        self._open()
        self.extents = self._extents()
        self.partial: Value | None = None
        self.parts = 1
        self._choose()

    def _choose(self) -> None:
        """Decides the tile, and into how many parts the sum is split."""
        e = self.extents
        self.tile, self.parts = choose(self.target, e.rows, e.columns, e.terms, e.batch)

    def _sizes(self) -> tuple[int, int, int, int]:
        """(rows, columns, terms, threads) of a block."""
        return self.tile.rows, self.tile.columns, self.tile.terms, self.tile.threads

    def _open(self) -> None:
        self.draft = Draft(self.name, self.node, self.scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, self.node, self.core)

    # To be given by subclasses ------------------------------------------------------------------------

    def _extents(self) -> Extents:
        raise NotImplementedError

    def row_place(self, row: DimLike) -> Shape:
        """What ``left`` needs to know of a row."""
        return (row,)

    def column_place(self, column: DimLike) -> Shape:
        """What ``right`` needs to know of a column."""
        return (column,)

    def left(self, batch: DimLike, row: Shape, term: DimLike, guard: Expr | None) -> Expr:
        """A[row, term], needed under a guard."""
        raise NotImplementedError

    def right(self, batch: DimLike, column: Shape, term: DimLike, guard: Expr | None) -> Expr:
        """B[term, column], needed under a guard."""
        raise NotImplementedError

    def named(self, places: Shape, extents: Sequence[DimLike]) -> Shape:
        """Indices as scalars, where there are several: none is taken apart again. A plain position stays an expression."""
        if sum(i != 0 for i in places) < 2:
            return places
        pairs = zip(places, extents, strict=True)
        return tuple(i if isinstance(i, int) else self.nest.let_index(index_value(i), Range(0, extent - 1)) for i, extent in pairs)

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        """The index of a result in the contraction's value."""
        raise NotImplementedError

    # Kernels ------------------------------------------------------------------------------------------

    def built(self) -> list[Draft | Built]:
        """One kernel, or two where the sum is split."""
        e = self.extents
        if self.parts > 1:
            shape = (self.parts, e.batch, e.rows, e.columns)
            self.partial = Value("partial", TensorType(e.dtype, shape))
        self._main()
        self.draft.flops = 2 * e.batch * e.rows * e.columns * e.terms
        self.draft.tags["tile"] = "x".join(map(str, self._sizes()[:3]))
        if self.partial is None:
            return [_built(self.draft, ())]
        self.draft.tags["parts"] = str(self.parts)
        if self.meets:
            return [_built(self.draft, (self.partial,))]
        first = _built(self.draft, (self.partial,))
        self._open()
        self._join()
        return [first, *_scheduled(self.draft, self.target, (self.partial,))]

    @property
    def meets(self) -> bool:
        """Whether the blocks that share a sum are a cluster."""
        return 1 < self.parts <= self.target.cluster

    def _main(self) -> None:
        e, ranges = self.extents, self.nest.ranges
        rows, columns, _, threads = self._sizes()
        tiles = dims.ceildiv(e.rows, rows, ranges), dims.ceildiv(e.columns, columns, ranges)
        cluster = self.parts if self.meets else 1
        with thread_block(self.nest, e.batch * (self.parts // cluster) * tiles[1] * tiles[0], threads, cluster) as block:
            row, column, rest = self._order(block, block.number, tiles)
            part, batch = (block.part, rest) if self.meets else self._digit(block, rest, self.parts)
            self._tile(block, batch, part, row * rows, column * columns)
            if self.meets:
                self.nest.emit(meeting(cluster))
                self._join_tile(block, block.named(batch, e.batch - 1), row * rows, column * columns)

    def _order(self, block: ThreadBlock, number: DimLike, tiles: tuple[DimLike, DimLike]) -> tuple[DimLike, DimLike, DimLike]:
        """(row, column, rest) of a tile: blocks that run at once share rows and columns, which then come out of the L2 cache."""
        down, across = tiles
        if not (isinstance(down, int) and down > SWATH and down % SWATH == 0):
            row, rest = self._digit(block, number, down)
            column, rest = self._digit(block, rest, across)
            return row, column, rest
        inner, rest = self._digit(block, number, SWATH)
        column, rest = self._digit(block, rest, across)
        swath, rest = self._digit(block, rest, down // SWATH)
        return block.named(swath * SWATH + inner, down - 1), column, rest

    def _digit(self, block: ThreadBlock, number: DimLike, extent: DimLike) -> tuple[DimLike, DimLike]:
        ranges = self.nest.ranges
        return block.named(dims.mod(number, extent, ranges), extent - 1), dims.floordiv(number, extent, ranges)

    def _tile(self, block: ThreadBlock, batch: DimLike, part: DimLike, row: DimLike, column: DimLike) -> None:
        nest, tile, e = self.nest, self.tile, self.extents
        batch, start, turns = self._share(block, batch, part)
        left, right = self._sides(batch, row, column)
        stages = [Stage(block, side, tile, e.terms, STAGES) for side in (left, right)]
        acc = nest.alloc(e.dtype, (tile.thread_rows, tile.thread_columns), Space.REGISTER)
        with nest.loop(tile.thread_rows, LoopKind.UNROLLED) as r, nest.loop(tile.thread_columns, LoopKind.UNROLLED) as c:
            nest.store(acc, (r, c), const(0, e.dtype))
        columns = tile.columns // tile.thread_columns
        place = dims.floordiv(block.thread, columns, nest.ranges), dims.mod(block.thread, columns, nest.ranges)
        at = [block.named(index, count - 1) for index, count in zip(place, (tile.rows // tile.thread_rows, columns), strict=True)]
        self._sum(block, stages, acc, start, turns, at)
        self._results(acc, stages, at, batch, part, row, column)

    def _share(self, block: ThreadBlock, batch: DimLike, part: DimLike) -> tuple[DimLike, DimLike, DimLike]:
        """(batch, first term, steps) of this block's part of the sum."""
        e, terms, ranges = self.extents, self._sizes()[2], self.nest.ranges
        batch = block.named(batch, e.batch - 1)
        share = dims.ceildiv(dims.ceildiv(e.terms, self.parts), terms) * terms
        start = part * share
        end = e.terms if self.parts == 1 else dims.minimum(e.terms, start + share, ranges)
        return batch, start, dims.ceildiv(end - start, terms, ranges)

    def _sides(self, batch: DimLike, row: DimLike, column: DimLike) -> tuple[Side, Side]:
        """The operands as the block sees them."""
        return self.sides(batch, row, column, self._sizes()[:2])

    def sides(self, batch: DimLike, row: DimLike, column: DimLike, sizes: tuple[int, int]) -> tuple[Side, Side]:
        """The operands as a block of so many rows and columns sees them."""
        e = self.extents
        left = Side(partial(self.left, batch), row, e.rows, sizes[0], self.row_place)
        return left, Side(partial(self.right, batch), column, e.columns, sizes[1], self.column_place)

    def _sum(self, block: ThreadBlock, stages: list[Stage], acc: str, start: DimLike, turns: DimLike, at: list[DimLike]) -> None:
        nest, tile = self.nest, self.tile
        for ahead in range(STAGES - 1):
            with self._where_below(ahead, turns):
                for stage in stages:
                    stage.fill(ahead, start + ahead * tile.terms)
            nest.emit(CommitAsync())
        with nest.loop(turns) as turn:
            nest.emit(WaitAsync(STAGES - 2))
            nest.emit(Barrier())
            following = turn + (STAGES - 1)
            with nest.branch(compare("lt", following, turns)):
                for stage in stages:
                    stage.fill(dims.mod(following, STAGES), start + following * tile.terms)
            nest.emit(CommitAsync())
            slot = block.named(dims.mod(turn, STAGES), STAGES - 1)
            with nest.loop(tile.terms // GROUP, LoopKind.UNROLLED) as group:
                self._multiply(stages, acc, slot, group, at)

    def _where_below(self, index: DimLike, extent: DimLike) -> AbstractContextManager[object]:
        """Statements under index < extent, where that is not certain."""
        certain = dims.nonnegative(extent - 1 - index, self.nest.ranges)
        return nullcontext() if certain else self.nest.branch(compare("lt", index, extent))

    def _multiply(self, stages: list[Stage], acc: str, slot: DimLike, group: DimLike, at: list[DimLike]) -> None:
        nest, tile, dtype = self.nest, self.tile, self.extents.dtype
        a, b = (
            stage.fragment(slot, group * GROUP, place, count, dtype)
            for stage, place, count in zip(stages, at, (tile.thread_rows, tile.thread_columns), strict=True)
        )
        with nest.loop(GROUP, LoopKind.UNROLLED) as k:
            self._outer_product(acc, a(k), b(k))

    def _outer_product(self, acc: str, a: Reader, b: Reader) -> None:
        """acc[r, c] += a[r] * b[c]"""
        nest, tile, dtype = self.nest, self.tile, self.extents.dtype
        with nest.loop(tile.thread_rows, LoopKind.UNROLLED) as r, nest.loop(tile.thread_columns, LoopKind.UNROLLED) as c:
            total, x, y = Load(acc, (r, c), dtype), a(r), b(c)
            value = Op("fma", (x, y, total), dtype) if dtype.is_float else op("add", total, op("mul", x, y))
            nest.store(acc, (r, c), value)

    # Results ------------------------------------------------------------------------------------------

    def _results(
        self, acc: str, stages: list[Stage], at: list[DimLike], batch: DimLike, part: DimLike, row: DimLike, column: DimLike
    ) -> None:
        tile, e = self.tile, self.extents
        left, right = stages
        grouped = right.grouped(tile.thread_columns)
        wide = grouped and dims.mod(e.columns, GROUP) == 0
        with left.each(tile.thread_rows) as r:
            here = row + left.owned(r, at[0], tile.thread_rows)
            with self._below(here, e.rows, tile.rows):
                if not wide:
                    with right.each(tile.thread_columns) as c:
                        there = column + right.owned(c, at[1], tile.thread_columns)
                        with self._below(there, e.columns, tile.columns):
                            self._store(acc, r, c, batch, part, here, there)
                    return
                with self.nest.loop(tile.thread_columns // GROUP, LoopKind.UNROLLED) as g:
                    there = column + right.owned(g * GROUP, at[1], tile.thread_columns, group=g)
                    with self._below(there, e.columns, tile.columns), self.nest.loop(GROUP, LoopKind.VECTOR, GROUP) as lane:
                        self._store(acc, r, g * GROUP + lane, batch, part, here, there + lane)

    def _below(self, index: DimLike, extent: DimLike, step: int) -> AbstractContextManager[None]:
        return nullcontext() if dims.mod(extent, step) == 0 else self.nest.branch(compare("lt", index, extent))

    def _store(self, acc: str, r: DimLike, c: DimLike, batch: DimLike, part: DimLike, row: DimLike, column: DimLike) -> None:
        self._put(Load(acc, (r, c), self.extents.dtype), batch, part, row, column)

    def _put(self, value: Expr, batch: DimLike, part: DimLike, row: DimLike, column: DimLike) -> None:
        """One result, or one part of it, leaves the kernel."""
        e = self.extents
        if self.partial is None:
            self.epilogue.store(self.place(batch, row, column), value)
            return
        position = ((part * e.batch + batch) * e.rows + row) * e.columns + column
        self.nest.store(self.draft.write(self.partial, Access.INOUT if self.meets else Access.OUT), position, value)

    def _join_tile(self, block: ThreadBlock, batch: DimLike, row: DimLike, column: DimLike) -> None:
        """The parts of the tile's sums, in order; each block of the cluster adds its share of them."""
        e, nest, (rows, columns, _, threads) = self.extents, self.nest, self._sizes()
        width = GROUP if dims.mod(e.columns, GROUP) == 0 else 1
        across, share = columns // width, -(-rows * columns // width // self.parts)
        with nest.loop(-(-share // threads)) as turn:
            mine = turn * threads + block.thread
            number = block.part * share + mine
            down = block.named(dims.floordiv(number, across, nest.ranges), -(-self.parts * share // across) - 1)
            here, there = row + down, column + dims.mod(number, across, nest.ranges) * width
            inside = None if share % threads == 0 else compare("lt", mine, share)
            inside = both(inside, None if rows * columns // width % self.parts == 0 else compare("lt", down, rows))
            for index, extent, step in ((here, e.rows, rows), (there, e.columns, columns)):
                inside = both(inside, None if dims.mod(extent, step) == 0 else compare("lt", index, extent))
            with nullcontext() if inside is None else nest.branch(inside), nest.loop(width, LoopKind.VECTOR, width) as lane:
                self._add_parts(batch, here, there + lane)

    def _join(self) -> None:
        """The parts of every sum, in order."""
        e = self.extents
        with self.nest.loops((e.batch, e.rows, e.columns), independent=True) as (batch, row, column):
            self._add_parts(batch, row, column)

    def _add_parts(self, batch: DimLike, row: DimLike, column: DimLike) -> None:
        """One result of all its parts."""
        e = self.extents
        assert self.partial is not None
        buffer, size = self.draft.write(self.partial, Access.INOUT if self.meets else Access.IN), e.batch * e.rows * e.columns
        position = (batch * e.rows + row) * e.columns + column
        total: Expr = Load(buffer, (position,), e.dtype)
        for part in range(1, self.parts):
            total = op("add", total, Load(buffer, (part * size + position,), e.dtype))
        self.epilogue.store(self.place(batch, row, column), total)


def _built(draft: Draft, scratch: tuple[Value, ...]) -> Built:
    kernel, values = draft.finish()
    return Built(kernel, values, scratch)


def _scheduled(draft: Draft, target: GpuTarget, scratch: tuple[Value, ...]) -> list[Built]:
    from tcompile.codegen.cuda_schedule import scheduled

    return [Built(one.kernel, one.values, (*one.scratch, *scratch)) for one in scheduled(draft, target)]


def sums_in(node: Node) -> DType:
    """The type that a contraction sums in."""
    return accumulation_type(node)
