"""Attention on a GPU: softmax(f(q k^T)) v in one kernel; scores never leave the multiprocessor.

    block for (batch, rows of queries):
        for each tile of keys, copied while the tile before is used:
            s = q k^T;  x = f(s, masks), -inf beyond the keys
            top' = max(top, max x);  scale = exp(t - t') (t: what the softmax subtracts, a function of top)
            p = exp(x - t');  total = total * scale + sum p;  acc = acc * scale + p v
        acc times or divided by what its row needs; epilogue; store

A row of 64 keys belongs to 16 neighbouring threads, which exchange maxima and sums by shuffles. The order of the sums depends on
the extents alone. Source: Dao et al., FlashAttention (2022); Milakov and Gimelshein, Online normalizer calculation for softmax (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_epilogue import Epilogue
from tcompile.codegen.cuda_block import ThreadBlock, thread_block
from tcompile.codegen.cuda_stage import Reader, Side, Stage
from tcompile.codegen.cuda_tile import MANY, BlockTile
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare, const, identity, op, select
from tcompile.codegen.templates import Built
from tcompile.ir import dims
from tcompile.ir.attention import Attention
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import BOOL, F32
from tcompile.ir.graph import Node
from tcompile.ir.loops import Barrier, CommitAsync, Expr, Load, LoopKind, Op, Select, Shuffle, Space, WaitAsync
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.target import GpuTarget

Fragment = Callable[[DimLike], Reader]
GROUP = 4
ACROSS = 16  # threads of a row
DOWN = 8
KEYS = 64  # of a tile


class CudaAttention:
    """Writes the loops of one attention."""

    def __init__(self, node: Node, found: Attention, scope: Scope, target: GpuTarget) -> None:
        self.node, self.found, self.target = node, found, target
        self.draft = Draft("attention", node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, found.second)
        self.batch, self.rows, self.keys, self.depth, self.columns = sizes(found)
        self._tiles()
        self.draft.flops = 2 * found.first.output.type.size * (self.depth + self.columns)
        self.draft.tags["tile"] = f"{self.height} queries x {KEYS} keys"

    def _tiles(self) -> None:
        """Decides which part of the block's rows and keys a thread has."""
        self.height = height = self._height()
        self.first = BlockTile(height, KEYS, height // DOWN, KEYS // ACROSS, terms=-(-self.depth // GROUP) * GROUP)
        width = -(-self.columns // ACROSS) * ACROSS
        self.second = BlockTile(height, width, height // DOWN, width // ACROSS, terms=KEYS)
        self.threads, self.row_count, self.distances = self.first.threads, self.first.thread_rows, (8, 4, 2, 1)

    def _height(self) -> int:
        """Rows of a block: the most that leave every multiprocessor something to do."""
        rows = self.rows if isinstance(self.rows, int) else MANY // 4
        batch = dims.product(self.batch)
        repeats = batch if isinstance(batch, int) else MANY // 64
        fitting = [height for height in (64, 32, 16) if _shared_bytes(height, self.depth, self.columns) <= self.target.shared_bytes]
        return next((height for height in fitting if repeats * -(-rows // height) >= self.target.sms), fitting[-1])

    def built(self) -> Built:
        """The kernel."""
        return Built(*self.write().finish())

    def write(self) -> Draft:
        """The whole kernel."""
        nest, ranges = self.nest, self.nest.ranges
        blocks = dims.ceildiv(self.rows, self.height, ranges)
        with thread_block(nest, dims.product(self.batch) * blocks, self.threads) as block:
            number = block.named(dims.mod(block.number, blocks, ranges), blocks - 1)
            flat = block.named(dims.floordiv(block.number, blocks, ranges), dims.product(self.batch) - 1)
            places = unravel(flat, self.batch, ranges)
            self.here = tuple(block.named(i, extent - 1) for i, extent in zip(places, self.batch, strict=True))
            self.start = number * self.height
            self._block(block)
        return self.draft

    def _block(self, block: ThreadBlock) -> None:
        nest, first, second, ranges = self.nest, self.first, self.second, self.nest.ranges
        down = block.named(dims.floordiv(block.thread, ACROSS, ranges), DOWN - 1)
        across = block.named(dims.mod(block.thread, ACROSS, ranges), ACROSS - 1)
        q = Stage(block, Side(self._query, self.start, self.rows, first.rows, self._query_place), first, self.depth, 1)
        k = Stage(block, Side(self._key, 0, self.keys, KEYS), first, self.depth, 1)
        v = Stage(block, Side(self._value, 0, self.columns, second.columns), second, self.keys, 1)
        weights = block.alloc(F32, (first.rows, KEYS + GROUP))
        self.acc = nest.alloc(F32, (second.thread_rows, second.thread_columns), Space.REGISTER)
        self._open_rows()
        with self._unrolled(second.thread_rows) as r, self._unrolled(second.thread_columns) as c:
            nest.store(self.acc, (r, c), const(0, F32))
        q.fill(0, 0)
        k.fill(0, 0)
        nest.emit(CommitAsync())
        v.fill(0, 0)
        nest.emit(CommitAsync())
        turns = dims.ceildiv(self.keys, KEYS, nest.ranges)
        with nest.loop(turns) as turn:
            nest.emit(WaitAsync(1))
            nest.emit(Barrier())
            scores = self._scores(q, k, turn * KEYS, down, across)
            self._softmax(scores)
            nest.emit(Barrier())
            with nest.branch(compare("lt", turn + 1, turns)):
                k.fill(0, 0, (turn + 1) * KEYS)
            nest.emit(CommitAsync())
            with self._unrolled(first.thread_rows) as r, self._unrolled(first.thread_columns) as c:
                place = q.owned(r, down, first.thread_rows), k.owned(c, across, first.thread_columns)
                nest.store(weights, place, Load(scores, (r, c), F32))
            nest.emit(WaitAsync(1))
            nest.emit(Barrier())
            self._accumulate(weights, q, v, down, across)
            nest.emit(Barrier())
            with nest.branch(compare("lt", turn + 1, turns)):
                v.fill(0, (turn + 1) * KEYS)
            nest.emit(CommitAsync())
        self._results(q, v, down, across)

    def _unrolled(self, count: int) -> AbstractContextManager[DimLike]:
        return self.nest.loop(count, LoopKind.UNROLLED)

    def _open_rows(self) -> None:
        """What the softmax keeps of a thread's rows."""
        self.top, self.total, self.scale = (self.nest.alloc(F32, (self.row_count,), Space.REGISTER) for _ in range(3))
        with self._unrolled(self.row_count) as r:
            self.nest.store(self.top, r, identity("max", F32))
            self.nest.store(self.total, r, const(0, F32))

    # Operands -----------------------------------------------------------------------------------------

    def _coordinates(self, row: DimLike) -> Shape:
        """The first product's index, without the key, of a row; rows beyond the last are the last."""
        flat = row
        if dims.mod(self.rows, self.height, self.nest.ranges) != 0:
            flat = dims.minimum(row, self.rows - 1, self.nest.ranges)
        axes = self.found.first.output.shape[len(self.batch) : -1]
        return (*self.here, *unravel(flat, axes, self.nest.ranges))

    def _query_place(self, row: DimLike) -> Shape:
        axes = self.found.first.output.shape[len(self.batch) : -1]
        return unravel(row, axes, self.nest.ranges)

    def _query(self, row: Shape, term: DimLike, guard: Expr | None) -> Expr:
        value = self.found.first.inputs[0]
        (batch, _), ((axis,), _) = self.found.first.attrs["batch"], self.found.first.attrs["contract"]
        index = dict(zip((*batch, *self.found.query_axes()), (*self.here, *row), strict=True)) | {axis: term}
        return self.draft.element(value, tuple(index[k] for k in range(value.rank)), guard)

    def _key(self, key: Shape, term: DimLike, guard: Expr | None) -> Expr:
        value = self.found.first.inputs[1]
        (axis,) = self.found.first.attrs["contract"][1]
        index = dict(zip(self.found.first.attrs["batch"][1], self.here, strict=True)) | {self.found.key_axis(): key[0], axis: term}
        return self.draft.element(value, tuple(index[k] for k in range(value.rank)), guard)

    def _value(self, column: Shape, key: DimLike, guard: Expr | None) -> Expr:
        value = self.found.second.inputs[1]
        rows = len(self.found.first.output.shape) - len(self.batch) - 1
        weights = self.found.places((*self.here, *(0,) * rows, 0), self.nest.ranges)[self.found.weights]
        key_axis, column_axis = self.found.value_axes()
        index = self.found.value_batch(weights) | {key_axis: key, column_axis: column[0]}
        return self.draft.element(value, tuple(index[k] for k in range(value.rank)), guard)

    # Scores -------------------------------------------------------------------------------------------

    def _scores(self, q: Stage, k: Stage, first_key: DimLike, down: DimLike, across: DimLike) -> str:
        """x = f(q k^T) of a thread's rows and keys, in registers."""
        nest, tile = self.nest, self.first
        scores = nest.alloc(F32, (tile.thread_rows, tile.thread_columns), Space.REGISTER)
        with self._unrolled(tile.thread_rows) as r, self._unrolled(tile.thread_columns) as c:
            nest.store(scores, (r, c), const(0, F32))
        with nest.loop(tile.terms // GROUP, LoopKind.UNROLLED if tile.terms <= 64 else LoopKind.SERIAL) as group:
            a = q.fragment(0, group * GROUP, down, tile.thread_rows, F32)
            b = k.fragment(0, group * GROUP, across, tile.thread_columns, F32)
            self._multiply(scores, a, b, tile)
        with q.each(tile.thread_rows) as r:
            coordinates = self._coordinates(self.start + q.owned(r, down, tile.thread_rows))
            with k.each(tile.thread_columns) as c:
                self._score(scores, (r, c), coordinates, first_key + k.owned(c, across, tile.thread_columns))
        return scores

    def _score(self, scores: str, place: Shape, coordinates: Shape, key: DimLike) -> None:
        """x = f(q k^T) of one element; -inf beyond the keys."""
        nest = self.nest
        whole = dims.mod(self.keys, KEYS, nest.ranges) == 0
        self._masked_score(scores, place, coordinates, key, None if whole else nest.let(compare("lt", key, self.keys)))

    def _masked_score(self, scores: str, place: Shape, coordinates: Shape, key: DimLike, inside: Expr | None) -> None:
        nest, found = self.nest, self.found
        value = Load(scores, place, F32)
        self.draft.bind(found.first.output, lambda at, guard: value)
        element = self.draft.element(found.scores, found.places((*coordinates, key), nest.ranges)[found.scores], inside)
        nest.store(scores, place, element if inside is None else select(inside, element, identity("max", F32)))

    def _of_row(self, r: DimLike) -> list[Shape]:
        """Where a thread's scores of its ``r``-th row are."""
        return [(r, c) for c in range(self.first.thread_columns)]

    def _multiply(self, acc: str, a: Fragment, b: Fragment, tile: BlockTile) -> None:
        with self._unrolled(GROUP) as k:
            rows, columns = a(k), b(k)
            with self._unrolled(tile.thread_rows) as r, self._unrolled(tile.thread_columns) as c:
                self.nest.store(acc, (r, c), Op("fma", (rows(r), columns(c), Load(acc, (r, c), F32)), F32))

    def _softmax(self, scores: str) -> None:
        """Scores become exponentials; the rows' maxima, sums and scales follow."""
        nest = self.nest
        with self._unrolled(self.row_count) as r:
            old = nest.let(Load(self.top, (r,), F32))
            top: Expr = old
            for place in self._of_row(r):
                top = larger(top, Load(scores, place, F32))
            top = self._across(larger, nest.let(top))
            nest.store(self.top, r, top)
            # exp(x - t'), where t' = -inf says that there is no key yet: -inf - 0
            shift = self._shift(top)
            total: Expr = const(0, F32)
            for place in self._of_row(r):
                value = nest.let(op("exp", op("sub", Load(scores, place, F32), shift)))
                nest.store(scores, place, value)
                total = op("add", total, value)
            scale = nest.let(op("exp", op("sub", select(none_yet(old), identity("max", F32), self._shift(old)), shift)))
            nest.store(self.scale, r, scale)
            part = op("add", op("mul", Load(self.total, (r,), F32), scale), nest.let(total))
            nest.store(self.total, r, part)

    def _shift(self, top: Expr) -> Expr:
        """What the softmax subtracts from the scores of a row with this maximum; 0 where all of them are -inf so far."""
        found = self.found
        producers = {node.output: node for node in found.members}
        value = producers[found.exponents].inputs[1]
        self.draft.bind(found.top.output, lambda at, guard: top)
        self.draft.inliner.forget()
        shift = self.draft.element(value, (0,) * value.rank)
        return self.nest.let(select(none_yet(top), const(0, F32), shift))

    def _across(self, combine: Callable[[Expr, Expr], Expr], value: Expr) -> Expr:
        for distance in self.distances:
            value = self.nest.let(combine(value, Shuffle(value, distance)))
        return value

    # Results ------------------------------------------------------------------------------------------

    def _accumulate(self, weights: str, q: Stage, v: Stage, down: DimLike, across: DimLike) -> None:
        nest, tile = self.nest, self.second
        with self._unrolled(tile.thread_rows) as r, self._unrolled(tile.thread_columns) as c:
            nest.store(self.acc, (r, c), op("mul", Load(self.acc, (r, c), F32), Load(self.scale, (r,), F32)))
        with nest.loop(KEYS // GROUP) as group:
            rows = nest.alloc(F32, (tile.thread_rows, GROUP), Space.REGISTER)
            with self._unrolled(tile.thread_rows) as r, nest.loop(GROUP, LoopKind.VECTOR, GROUP) as lane:
                place = q.owned(r, down, tile.thread_rows), group * GROUP + lane
                nest.store(rows, (r, lane), Load(weights, place, F32))
            b = v.fragment(0, group * GROUP, across, tile.thread_columns, F32)
            self._multiply(self.acc, lambda k: lambda r: Load(rows, (r, k), F32), b, tile)

    def _results(self, q: Stage, v: Stage, down: DimLike, across: DimLike) -> None:
        nest, tile = self.nest, self.second
        with q.each(tile.thread_rows) as r:
            row = self.start + q.owned(r, down, tile.thread_rows)
            place, finish = self._finished(r, row)
            with nest.branch(compare("lt", row, self.rows)), v.each(tile.thread_columns) as c:
                column = v.owned(c, across, tile.thread_columns)
                with nullcontext() if self.columns == tile.columns else nest.branch(compare("lt", column, self.columns)):
                    self.epilogue.store((*place, column), finish(Load(self.acc, (r, c), F32)))

    def _finished(self, r: DimLike, row: DimLike) -> tuple[Shape, Callable[[Expr], Expr]]:
        """Where the results of a thread's ``r``-th row go, and what makes them of its sums."""
        nest = self.nest
        total = self._across(partial(op, "add"), nest.let(Load(self.total, (r,), F32)))
        return self._divided(row, total, nest.let(Load(self.top, (r,), F32)))

    def _divided(self, row: DimLike, total: Expr, top: Expr) -> tuple[Shape, Callable[[Expr], Expr]]:
        """The same of a row whose sum of exponentials and largest score are given."""
        nest, found = self.nest, self.found
        divisor = found.divisor()
        assert divisor is not None
        fn, value = divisor
        places = found.places((*self._coordinates(row), 0), nest.ranges)
        self.draft.bind(found.top.output, lambda at, guard: top)
        self.draft.bind(found.total.output, lambda at, guard: total)
        self.draft.inliner.forget()
        factor = nest.let(self.draft.element(value, places[found.powers]))
        return found.result_place(places[found.weights]), lambda value: Op(fn, (value, factor), F32)


def _shared_bytes(height: int, depth: int, columns: int) -> int:
    """Queries, keys, values and weights of one block; rows are padded."""
    pad = 2 * GROUP
    return 4 * (height * (depth + pad) + KEYS * (depth + pad) + KEYS * (columns + ACROSS + pad) + height * (KEYS + pad))


def larger(a: Expr, b: Expr) -> Expr:
    """max without regard to NaN: a row with one has a NaN for its sum anyway."""
    return Select(Op("gt", (b, a), BOOL), b, a)


def none_yet(top: Expr) -> Expr:
    """Whether a row has met no key but masked ones."""
    return op("eq", top, identity("max", F32))


def sizes(found: Attention) -> tuple[Shape, DimLike, DimLike, DimLike, DimLike]:
    """(batch, rows, keys, depth, columns)."""
    first, second = found.first, found.second
    q, k = first.inputs
    batch, contract = first.attrs["batch"], first.attrs["contract"]
    rows = dims.product(q.shape[axis] for axis in free_axes(q.rank, batch[0], contract[0]))
    columns = second.inputs[1].shape[found.value_axes()[1]]
    return first.output.shape[: len(batch[0])], rows, k.shape[found.key_axis()], q.shape[contract[0][0]], columns
