"""Attention of a few queries on a GPU, as when a text is written word by word: the keys are shared out.

cluster of blocks for each of the batch; a few lanes for each key:
    for this group's keys, a few at a time:
        s = q k^T, the lanes' terms added by shuffles;  x = f(s, masks), -inf beyond the keys
        the running softmax of cuda_attention.py, of this group alone;  acc = acc * scale + p v
    the groups of a warp meet by shuffles, each warp leaves its maximum, sum and results in memory;  meet
    the first block: scales of the warps' parts, then their sums in order; epilogue; store
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from tcompile.codegen.access import unravel
from tcompile.codegen.cuda_attention import CudaAttention, larger, none_yet
from tcompile.codegen.cuda_block import GROUP, cluster_thread, lane_terms, meeting
from tcompile.codegen.draft import Draft
from tcompile.codegen.scalar import compare, const, identity, index_value, op, select
from tcompile.codegen.templates import Built
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import TensorType, Value
from tcompile.ir.loops import Access, Barrier, Expr, Load, Op, Shuffle, Space

MOST_ROWS = 4  # of queries
LANES = 32
THREADS = 256
WARPS = THREADS // LANES
AT_ONCE = 4  # keys of a group whose loads are under way together
FULL = 2  # turns of a block, from which another one may share the keys


class FewQueries(CudaAttention):
    """Writes the loops of one attention with up to MOST_ROWS queries for each of the batch."""

    def _tiles(self) -> None:
        widest = max(self.depth, self.columns)
        self.lanes = next(n for n in (4, 8, 16, 32) if n == LANES or n * GROUP >= widest)
        self.groups = THREADS // self.lanes
        self.height, self.row_count, self.distances = self.rows, self.rows, ()
        self.blocks = self._blocks()
        self.parts = self.blocks * WARPS
        self.draft.tags["lanes"] = f"{self.lanes} a key, {self.blocks} blocks"

    def _blocks(self) -> int:
        """How many blocks share the keys: as many as meet, while each has something to do and they run at once."""
        batch, most = dims.product(self.batch), self.target.cluster
        turns = -(-self.keys // (self.groups * AT_ONCE)) if isinstance(self.keys, int) else most * FULL
        blocks = 1
        while blocks * 2 <= most and turns >= blocks * 2 * FULL and isinstance(batch, int) and batch * blocks * 2 <= self.target.sms:
            blocks *= 2
        return blocks

    def write(self) -> Draft:
        """The whole kernel; ``scratch`` are its buffers between the warps."""
        batch, nest = dims.product(self.batch), self.nest
        self.draft.tags["tile"] = f"{self.rows} queries x {self.groups * AT_ONCE} keys"
        shape = (batch, self.parts, self.rows)
        self.tops, self.totals, self.scales = (Value(name, TensorType(F32, shape)) for name in ("tops", "totals", "scales"))
        self.sums = Value("sums", TensorType(F32, (*shape, self.columns)))
        self.scratch = (self.tops, self.totals, self.scales, self.sums)
        with cluster_thread(nest, batch, self.blocks, THREADS) as (self.flat, block, thread):
            places = unravel(self.flat, self.batch, nest.ranges)
            self.here = tuple(self._named(i, extent) for i, extent in zip(places, self.batch, strict=True))
            self.start: DimLike = 0
            self.lane = self._named(dims.mod(thread, self.lanes, nest.ranges), self.lanes)
            group = self._named(dims.floordiv(thread, self.lanes, nest.ranges), self.groups)
            self._keys(block, group)
            self._leave(block * WARPS + dims.floordiv(thread, LANES, nest.ranges), thread)
            nest.emit(meeting(self.blocks))
            if self.blocks == 1:
                self._join(thread)
            else:
                with nest.branch(compare("eq", block, 0)):
                    self._join(thread)
        return self.draft

    def _named(self, value: DimLike, extent: DimLike) -> DimLike:
        return value if isinstance(value, int) else self.nest.let_index(index_value(value), Range(0, extent - 1))

    # Keys ---------------------------------------------------------------------------------------------

    def _share(self, count: int) -> int:
        """How many of so many terms a lane has."""
        return -(-count // self.lanes)

    def _keys(self, block: DimLike, group: DimLike) -> None:
        nest = self.nest
        q = nest.alloc(F32, (self.rows, self._share(self.depth)), Space.REGISTER)
        self.acc = nest.alloc(F32, (self.rows, self._share(self.columns)), Space.REGISTER)
        self._open_rows()
        for r in range(self.rows):
            self._load(q, r, self.depth, partial(self._query, self._query_place(r)))
            with self._unrolled(self._share(self.columns)) as c:
                nest.store(self.acc, (r, c), const(0, F32))
        step = self.blocks * AT_ONCE * self.groups
        with nest.loop(dims.ceildiv(self.keys, step, nest.ranges)) as turn:
            first = turn * step + block * (AT_ONCE * self.groups) + group
            keys = [nest.let_index(index_value(first + u * self.groups), Range(0, None)) for u in range(AT_ONCE)]
            read = [nest.let_index(index_value(dims.minimum(key, self.keys - 1, nest.ranges)), Range(0, self.keys - 1)) for key in keys]
            scores = self._few_scores(q, keys, read)
            self._softmax(scores)
            self._add_values(scores, read)

    def _load(self, held: str, row: DimLike, count: int, element: Callable[[DimLike, Expr | None], Expr]) -> None:
        """This lane's share of a vector, in registers; 0 beyond its end."""
        nest = self.nest

        def load(place: DimLike, term: DimLike, guard: Expr | None) -> None:
            value = element(term, guard)
            nest.store(held, (row, place), value if guard is None else select(guard, value, const(0, F32)))

        lane_terms(nest, count, self.lanes, self.lane, load)

    def _few_scores(self, q: str, keys: list[DimLike], read: list[DimLike]) -> str:
        """x = f(q k^T) of some keys and all rows, the same in all lanes of the group."""
        nest, count = self.nest, self._share(self.depth)
        held = nest.alloc(F32, (AT_ONCE, count), Space.REGISTER)
        for u, key in enumerate(read):
            self._load(held, u, self.depth, partial(self._key, (key,)))
        scores = nest.alloc(F32, (AT_ONCE, self.rows), Space.REGISTER)
        with self._unrolled(AT_ONCE) as u, self._unrolled(self.rows) as r:
            nest.store(scores, (u, r), const(0, F32))
            with self._unrolled(count) as k:
                factors = Load(q, (r, k), F32), Load(held, (u, k), F32)
                nest.store(scores, (u, r), Op("fma", (*factors, Load(scores, (u, r), F32)), F32))
        for distance in self._within_group():
            with self._unrolled(AT_ONCE) as u, self._unrolled(self.rows) as r:
                value = nest.let(Load(scores, (u, r), F32))
                nest.store(scores, (u, r), op("add", value, Shuffle(value, distance)))
        for u, key in enumerate(keys):
            inside = nest.let(compare("lt", key, self.keys))
            for r in range(self.rows):
                self._masked_score(scores, (u, r), self._coordinates(r), read[u], inside)
        return scores

    def _within_group(self) -> list[int]:
        return [n for n in (16, 8, 4, 2, 1) if n < self.lanes]

    def _across_groups(self) -> list[int]:
        return [n for n in (16, 8, 4, 2, 1) if n >= self.lanes]

    def _of_row(self, r: DimLike) -> list[Shape]:
        return [(u, r) for u in range(AT_ONCE)]

    def _add_values(self, weights: str, read: list[DimLike]) -> None:
        """acc = acc * scale + p v"""
        nest, count = self.nest, self._share(self.columns)
        held = nest.alloc(F32, (AT_ONCE, count), Space.REGISTER)
        for u, key in enumerate(read):
            self._load(held, u, self.columns, lambda column, guard, key=key: self._value((column,), key, guard))
        with self._unrolled(self.rows) as r, self._unrolled(count) as c:
            nest.store(self.acc, (r, c), op("mul", Load(self.acc, (r, c), F32), Load(self.scale, (r,), F32)))
            with self._unrolled(AT_ONCE) as u:
                factors = Load(weights, (u, r), F32), Load(held, (u, c), F32)
                nest.store(self.acc, (r, c), Op("fma", (*factors, Load(self.acc, (r, c), F32)), F32))

    # Parts --------------------------------------------------------------------------------------------

    def _scale(self, old: Expr, new: Expr) -> Expr:
        """What sums under one maximum count under a larger one."""
        return op("exp", op("sub", select(none_yet(old), identity("max", F32), self._shift(old)), self._shift(new)))

    def _leave(self, part: DimLike, thread: DimLike) -> None:
        """The groups of a warp together; the first one writes their part."""
        nest = self.nest
        part = self._named(part, self.parts)
        self.distances = tuple(self._across_groups())
        first = compare("lt", dims.mod(thread, LANES, nest.ranges), self.lanes)
        for r in range(self.rows):
            old = nest.let(Load(self.top, (r,), F32))
            top = self._across(larger, old)
            scale = nest.let(self._scale(old, top))
            total = self._across(partial(op, "add"), nest.let(op("mul", Load(self.total, (r,), F32), scale)))
            with self._unrolled(self._share(self.columns)) as c:
                nest.store(self.acc, (r, c), self._across(partial(op, "add"), nest.let(op("mul", Load(self.acc, (r, c), F32), scale))))
            with nest.branch(first):
                self._put(self.tops, (part, r), top)
                self._put(self.totals, (part, r), total)
                lane_terms(nest, self.columns, self.lanes, self.lane, partial(self._put_sum, part, r))

    def _put_sum(self, part: DimLike, r: int, place: DimLike, column: DimLike, guard: Expr | None) -> None:
        buffer = self.draft.write(self.sums, Access.INOUT)
        self.nest.store(buffer, self._position(self.sums, (part, r, column)), Load(self.acc, (r, place), F32), guard)

    def _position(self, value: Value, index: Shape) -> DimLike:
        flat = self.flat
        for i, extent in zip(index, value.shape[1:], strict=True):
            flat = flat * extent + i
        return flat

    def _put(self, value: Value, index: Shape, element: Expr) -> None:
        self.nest.store(self.draft.write(value, Access.INOUT), self._position(value, index), element)

    def _get(self, value: Value, index: Shape) -> Expr:
        return Load(self.draft.write(value, Access.INOUT), (self._position(value, index),), F32)

    def _join(self, thread: DimLike) -> None:
        """The scales of all parts, then each result from the parts in order."""
        nest = self.nest
        for number, inside in self._items(thread, self.parts * self.rows):
            with inside:
                part, r = self._split(number, (self.parts, self.rows))
                self._put(self.scales, (part, r), self._scale(nest.let(self._get(self.tops, (part, r))), self._top(r)))
        nest.emit(Barrier())
        for number, inside in self._items(thread, self.rows * self.columns):
            with inside:
                self._result(*self._split(number, (self.rows, self.columns)))

    def _items(self, thread: DimLike, count: int) -> list[tuple[DimLike, AbstractContextManager[None]]]:
        """(number, the branch where it exists) for each of a thread's items."""
        numbers = [thread + first for first in range(0, count, THREADS)]
        return [(number, self.nest.branch(compare("lt", number, count))) for number in numbers]

    def _split(self, number: DimLike, extents: tuple[int, ...]) -> list[DimLike]:
        places = unravel(number, extents, self.nest.ranges)
        return [self._named(i, extent) for i, extent in zip(places, extents, strict=True)]

    def _top(self, r: DimLike) -> Expr:
        nest = self.nest
        held = nest.alloc(F32, (1,), Space.REGISTER)
        nest.store(held, 0, identity("max", F32))
        with nest.loop(self.parts) as part:
            nest.store(held, 0, larger(Load(held, (0,), F32), nest.let(self._get(self.tops, (part, r)))))
        return nest.let(Load(held, (0,), F32))

    def _result(self, r: DimLike, column: DimLike) -> None:
        nest, held = self.nest, self.nest.alloc(F32, (2,), Space.REGISTER)
        with self._unrolled(2) as k:
            nest.store(held, k, const(0, F32))
        with nest.loop(self.parts) as part:
            scale = nest.let(self._get(self.scales, (part, r)))
            for k, one in enumerate((self._get(self.totals, (part, r)), self._get(self.sums, (part, r, column)))):
                nest.store(held, k, Op("fma", (one, scale, Load(held, (k,), F32)), F32))
        total, top = nest.let(Load(held, (0,), F32)), self._top(r)
        place, finish = self._divided(r, total, top)
        self.epilogue.store((*place, column), finish(Load(held, (1,), F32)))

    def built(self) -> Built:
        """The kernel with its memory between warps."""
        kernel, values = self.write().finish()
        return Built(kernel, values, self.scratch)
