"""Attention: softmax(f(q k^T)) v in one kernel, with the scores of a few rows at a time in scratch.

    parallel for (batch, chunk of query rows):
        pack k in panels of keys (transposed through registers), v in panels of columns
        for each block of rows:
            copy q                                                  any expression of q is evaluated once
            for each panel of keys: for each tile of rows:  s = q k^T;  x = f(s, masks); store x
            for each row:  t = max x;  e = exp(x - t);  n = sum e   e takes the place of x
            for each panel of columns: for each tile of rows:  e v, times or divided by what the row needs; epilogue; store

Where the rows are one block, a panel of keys is packed when its turn comes; where they are one tile, which reads v once,
v stays where it is.

Sums run over keys in order by one thread. Rows that fill no tile repeat the last row, columns that fill no panel of keys
hold -inf: so there is one copy of the code for all sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_epilogue import UNROLLED_WORK, Epilogue, node_work, store_tile
from tcompile.codegen.cpu_pack import in_rows, pack_columns, pack_panel, pack_rows, wide
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_tile import Accumulator, micro_kernel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.math_exp import exp_of_negative
from tcompile.codegen.math_term import Term
from tcompile.codegen.scalar import compare, identity, index_value, op
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.attention import Attention, find_attention
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import BOOL, F32
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Op, Select, Space
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.target import Target
from tcompile.ir.tiles import MANY_ROWS, Tile, attention_tiles, lanes

CHUNK_ROWS = 768  # rows of one task: packing k and v again for each costs about one percent
BLOCK_TILES = 4  # tiles of rows that use a panel of keys while it is in the L1 cache
UNROLL = 4  # terms written out in the loops of the products
_PAGE = 4096  # rows this far apart fall into one set of the L1 cache


@dataclass(frozen=True)
class Sizes:
    """Extents of one attention; ``rows`` are queries of all free axes of q, ``depth`` the terms of the first product."""

    batch: Shape
    rows: DimLike
    keys: DimLike
    depth: int
    columns: DimLike


@dataclass(frozen=True)
class Panels:
    """A matrix in scratch, [panel][term][column of the panel]."""

    buffer: str
    terms: DimLike
    width: int

    def at(self, panel: DimLike, term: DimLike, column: DimLike) -> Expr:
        return Load(self.buffer, ((panel * self.terms + term) * self.width + column,), F32)


Element = Callable[[DimLike, DimLike], Expr]  # (term, column of the panel)
Ready = Callable[[DimLike], Element]  # makes a panel ready to be read


class AttentionKernel:
    """Writes the loops of one attention."""

    def __init__(self, node: Node, found: Attention, scope: Scope, target: Target) -> None:
        self.node, self.found = node, found
        self.draft = Draft("attention", node, scope)
        self.nest = self.draft.nest
        self.sizes = _sizes(found)
        self.epilogue = Epilogue(self.draft, node, found.second)
        self.draft.written_once.discard(self.epilogue.output)  # the last row may be stored several times
        self.lanes = lanes(target, F32)
        self.first, self.second = _tiles(target, self.sizes)
        self.panels = dims.ceildiv(self.sizes.keys, self.first.columns, self.nest.ranges)
        self.stride = _stride(self.panels * self.first.columns)
        self.draft.flops = 2 * found.first.output.type.size * (self.sizes.depth + self.sizes.columns)
        self.draft.tags["tile"] = f"{self.first.rows}x{self.first.vectors} {self.second.rows}x{self.second.vectors} x{self.lanes}"
        self.scores = ""  # the buffer of a block's scores, then exponentials
        self.factors = ""  # what each row's results are multiplied with, or divided by

    # Loops --------------------------------------------------------------------------------------------

    def write(self) -> Draft:
        """The whole kernel."""
        nest, ranges = self.nest, self.nest.ranges
        tiles = dims.ceildiv(self.sizes.rows, self.first.rows, ranges)
        chunks = dims.ceildiv(tiles, CHUNK_ROWS // self.first.rows, ranges)
        per_chunk = dims.ceildiv(tiles, dims.maximum(chunks, 1, ranges), ranges)
        with nest.loop(dims.product(self.sizes.batch) * chunks, LoopKind.PARALLEL) as task:
            *batch, chunk = split_task(nest, task, (*self.sizes.batch, chunks))
            keys, values = self._pack_keys(tuple(batch)), self._pack_values(tuple(batch))
            block_rows = self.first.rows * BLOCK_TILES
            self.scores = nest.alloc(F32, (block_rows * self.stride,))
            self.factors = nest.alloc(F32, (block_rows,))
            queries = nest.alloc(F32, (block_rows * self.sizes.depth,))
            here = dims.minimum(per_chunk, tiles - chunk * per_chunk, ranges)
            with nest.loop(dims.ceildiv(here, BLOCK_TILES, ranges)) as block:
                count = self._named(dims.minimum(BLOCK_TILES, here - block * BLOCK_TILES, ranges), Range(1, BLOCK_TILES))
                start = (chunk * per_chunk + block * BLOCK_TILES) * self.first.rows
                rows = partial(self._coordinates, tuple(batch), start)
                self._copy_queries(queries, count, rows)
                self._first_product(queries, keys, count, rows)
                with nest.loop(count * self.first.rows) as row:
                    self._softmax(row, rows(row))
                self._second_product(values, count, rows)
        return self.draft

    def _named(self, value: DimLike, known: Range) -> DimLike:
        return value if isinstance(value, int) else self.nest.let_index(index_value(value), known)

    def _coordinates(self, batch: Shape, start: DimLike, row: DimLike) -> Shape:
        """The first product's index, without the key, of a row of the block; rows beyond the last are the last."""
        rows, ranges = self.sizes.rows, self.nest.ranges
        flat = start + row
        if dims.mod(rows, self.first.rows, ranges) != 0:
            flat = dims.minimum(flat, rows - 1, ranges)
        axes = self.found.first.output.shape[len(batch) : -1]
        places = unravel(self._named(flat, Range(0, rows - 1)), axes, ranges)
        if len([extent for extent in axes if extent != 1]) > 1:
            places = tuple(self._named(i, Range(0, extent - 1)) for i, extent in zip(places, axes, strict=True))
        return (*batch, *places)

    # Operands -----------------------------------------------------------------------------------------

    @property
    def _rows_in_a_block(self) -> bool:
        return isinstance(self.sizes.rows, int) and self.sizes.rows <= self.first.rows * BLOCK_TILES

    def _pack_keys(self, batch: Shape) -> Ready:
        """k in panels of keys."""
        value, width, depth = self.found.first.inputs[1], self.first.columns, self.sizes.depth
        (axis,) = self.found.first.attrs["contract"][1]
        index = _index(value.rank, dict(zip(self.found.first.attrs["batch"][1], batch, strict=True)))

        def element(key: DimLike, term: DimLike) -> Expr:
            return self.draft.element(value, index({self.found.key_axis(): key, axis: term}))

        if not self._rows_in_a_block:
            packed = Panels(pack_columns(self.nest, element, self.sizes.keys, depth, width, self.lanes), depth, width)
            return lambda panel: partial(packed.at, panel)
        single = Panels(self.nest.alloc(F32, (depth * width,)), depth, width)

        def ready(panel: DimLike) -> Element:
            pack_panel(self.nest, single.buffer, panel, element, self.sizes.keys, depth, width, self.lanes)
            return partial(single.at, 0)

        return ready

    def _pack_values(self, batch: Shape) -> Ready:
        """v in panels of columns."""
        value, width, keys = self.found.second.inputs[1], self.second.columns, self.sizes.keys
        rows = len(self.found.first.output.shape) - len(batch) - 1
        weights = self.found.places((*batch, *(0,) * rows, 0), self.nest.ranges)[self.found.weights]
        index = _index(value.rank, self.found.value_batch(weights))
        key_axis, column_axis = self.found.value_axes()

        def element(key: DimLike, column: DimLike) -> Expr:
            return self.draft.element(value, index({key_axis: key, column_axis: column}))

        once = isinstance(self.sizes.rows, int) and self.sizes.rows <= self.second.rows
        whole = dims.mod(self.sizes.columns, width, self.nest.ranges) == 0
        if once and whole and in_rows(self.nest, element, keys, self.sizes.columns):
            return lambda panel: lambda key, column: element(key, panel * width + column)
        packed = Panels(pack_rows(self.nest, element, keys, self.sizes.columns, width, self.lanes), keys, width)
        return lambda panel: partial(packed.at, panel)

    def _copy_queries(self, buffer: str, count: DimLike, rows: Callable[[DimLike], Shape]) -> None:
        value, depth = self.found.first.inputs[0], self.sizes.depth
        batch_axes, (axis,) = self.found.first.attrs["batch"][0], self.found.first.attrs["contract"][0]
        axes = (*batch_axes, *self.found.query_axes())
        with self.nest.loop(count * self.first.rows) as row:
            index = _index(value.rank, dict(zip(axes, rows(row), strict=True)))
            with self.nest.loop(depth, LoopKind.VECTOR, wide(depth, self.lanes)) as term:
                self.nest.store(buffer, row * depth + term, self.draft.element(value, index({axis: term})))

    # Products -----------------------------------------------------------------------------------------

    def _first_product(self, queries: str, keys: Ready, count: DimLike, rows: Callable[[DimLike], Shape]) -> None:
        tile, depth = self.first, self.sizes.depth
        with self.nest.loop(self.panels) as panel:
            key = keys(panel)
            with self.nest.loop(count) as number:
                acc = micro_kernel(
                    self.nest,
                    tile,
                    F32,
                    terms=lambda: self._terms(depth),
                    a=lambda row, term: Load(queries, ((number * tile.rows + row) * depth + term,), F32),
                    b=lambda vector, lane, term: key(term, vector * tile.lanes + lane),
                )
                target = _Scores(self, number * tile.rows, panel * tile.columns, rows)
                self._by_width(panel, tile, self.sizes.keys, self.panels, lambda columns: target.store_tile(acc, columns))

    def _second_product(self, values: Ready, count: DimLike, rows: Callable[[DimLike], Shape]) -> None:
        tile = self.second
        panels = dims.ceildiv(self.sizes.columns, tile.columns, self.nest.ranges)
        with self.nest.loop(panels) as panel, self.nest.loop(count) as number:
            value = values(panel)
            acc = micro_kernel(
                self.nest,
                tile,
                F32,
                terms=lambda: self._terms(self.sizes.keys),
                a=lambda row, key: Load(self.scores, ((number * tile.rows + row) * self.stride + key,), F32),
                b=lambda vector, lane, key: value(key, vector * tile.lanes + lane),
            )
            self._scale(acc, number)
            cached = _Rows(rows, number * tile.rows, tile.rows)

            def place(row: DimLike, part: DimLike, column: DimLike, cached: _Rows = cached, panel: DimLike = panel) -> Shape:
                weights = self.found.places((*cached.at(row), 0), self.nest.ranges)[self.found.weights]
                return (*self.found.result_place(weights), panel * tile.columns + column)

            self._by_width(panel, tile, self.sizes.columns, panels, partial(store_tile, self.epilogue, acc, place, tile.columns))

    @contextmanager
    def _terms(self, terms: DimLike) -> Iterator[DimLike]:
        if not isinstance(terms, int) or terms % UNROLL:
            with self.nest.loop(terms) as term:
                yield term
            return
        with self.nest.loop(terms // UNROLL) as step, self.nest.loop(UNROLL, LoopKind.UNROLLED) as term:
            yield step * UNROLL + term

    def _by_width(self, panel: DimLike, tile: Tile, extent: DimLike, panels: DimLike, emit: Callable[[DimLike | None], None]) -> None:
        """Runs ``emit`` for a full panel (None), and for the last one with its number of columns where it may be narrower."""
        rest = dims.mod(extent, tile.columns, self.nest.ranges)
        if rest == 0:
            emit(None)
            return
        left = extent - panel * tile.columns
        if panels == 1:
            emit(left)
            return
        with self.nest.branch(compare("ge", left, tile.columns)):
            emit(None)
        with self.nest.otherwise():
            emit(rest if isinstance(rest, int) else left)

    def _scale(self, acc: Accumulator, number: DimLike) -> None:
        """Multiplies (or divides) a tile by what its rows need."""
        divisor = self.found.divisor()
        if divisor is None:
            return
        tile = acc.tile
        factors = [self.nest.let(Load(self.factors, (number * tile.rows + row,), F32)) for row in range(tile.rows)]
        with self.nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            for row, factor in enumerate(factors):
                for vector in range(tile.vectors):
                    self.nest.store(acc.buffer, (row, vector, lane), Op(divisor[0], (acc.at(row, vector, lane), factor), F32))

    # Softmax ------------------------------------------------------------------------------------------

    def _softmax(self, row: DimLike, coordinates: Shape) -> None:
        """One row of scores becomes exponentials, or weights where they are more than exponentials by a value of the row."""
        found, draft = self.found, self.draft
        places = found.places((*coordinates, 0), self.nest.ranges)
        self._bind_row(found.scores, row)
        top = self._fold("max", lambda column: self._score(row, column))
        draft.bind(found.top.output, lambda at, guard: top)

        def power(column: DimLike) -> Expr:
            exponent = draft.element(found.exponents, (*places[found.powers][:-1], column))
            value = self.nest.let(exp_of_negative(Term(exponent)).expr, "e")
            self.nest.store(self.scores, row * self.stride + column, value)
            return value

        total = self._fold("add", power)
        draft.bind(found.total.output, lambda at, guard: total)
        divisor = found.divisor()
        if divisor is not None:
            factor = draft.element(divisor[1], places[found.powers])
            self.nest.store(self.factors, row, factor)
            return
        self._bind_row(found.powers, row)
        with self.nest.loop(self.sizes.keys, LoopKind.VECTOR, self.lanes) as column:
            at = found.places((*coordinates, column), self.nest.ranges)[found.weights]
            self.nest.store(self.scores, row * self.stride + column, draft.element(found.weights, at))

    def _bind_row(self, value: object, row: DimLike) -> None:
        """Elements of a value of the size of the scores are in the buffer, those of a row."""
        self.draft.bind(value, lambda at, guard: Load(self.scores, (row * self.stride + at[-1],), F32, guard))

    def _score(self, row: DimLike, column: DimLike) -> Expr:
        return Load(self.scores, (row * self.stride + column,), F32)

    def _fold(self, fn: str, element: Callable[[DimLike], Expr]) -> Expr:
        """Reduces a row on lanes, pads included, and joins them in order."""
        nest, vectors = self.nest, self.first.vectors
        partial_results = nest.alloc(F32, (vectors, self.lanes), Space.REGISTER)
        with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for vector in range(vectors):
                nest.store(partial_results, (vector, lane), identity(fn, F32))
        with nest.loop(self.panels) as panel, nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for vector in range(vectors):
                before = Load(partial_results, (vector, lane), F32)
                value = element(panel * self.first.columns + vector * self.lanes + lane)
                nest.store(partial_results, (vector, lane), _combined(fn, before, value))
        joined = nest.alloc(F32, (self.lanes,))
        with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            total: Expr = Load(partial_results, (0, lane), F32)
            for vector in range(1, vectors):
                total = _combined(fn, total, Load(partial_results, (vector, lane), F32))
            nest.store(joined, lane, total)
        return nest.let(_tree(fn, [nest.let(Load(joined, (k,), F32)) for k in range(self.lanes)]))


class _Scores:
    """Where a tile of the first product goes: f(s) into the block's scores. An epilogue for ``store_tile``."""

    def __init__(self, kernel: AttentionKernel, first: DimLike, start: DimLike, rows: Callable[[DimLike], Shape]) -> None:
        self.kernel, self.draft, self.first, self.start = kernel, kernel.draft, first, start
        self.rows = _Rows(rows, first, kernel.first.rows)
        reached = set(kernel.found.places((0,) * kernel.found.first.output.rank, {}))
        self.small = sum(node_work(node) for node in _upto(kernel.found, reached)) <= UNROLLED_WORK

    def store_tile(self, acc: Accumulator, columns: DimLike | None) -> None:
        tile, nest, kernel = acc.tile, self.draft.nest, self.kernel
        if columns is not None:  # what lies behind the last key takes no part in the softmax
            with nest.loop(tile.rows) as row, nest.loop(tile.columns, LoopKind.VECTOR, tile.lanes) as lane:
                nest.store(kernel.scores, (self.first + row) * kernel.stride + self.start + lane, identity("max", F32))
        store_tile(self, acc, lambda row, part, column: (row, column), tile.columns, columns)

    def store(self, index: Shape, value: Expr) -> None:
        """Stores f of one element of the product."""
        row, column = index
        found, kernel = self.kernel.found, self.kernel
        self.draft.bind(found.first.output, lambda at, guard: value)
        place = found.places((*self.rows.at(row), self.start + column), self.draft.nest.ranges)[found.scores]
        element = self.draft.element(found.scores, place)
        self.draft.nest.store(kernel.scores, (self.first + row) * kernel.stride + self.start + column, element)


class _Rows:
    """Coordinates of the rows of a tile: computed once for those of constant number, before the lanes."""

    def __init__(self, rows: Callable[[DimLike], Shape], first: DimLike, count: int) -> None:
        self.rows, self.first = rows, first
        self.known = [rows(first + row) for row in range(count)]

    def at(self, row: DimLike) -> Shape:
        return self.known[row] if isinstance(row, int) else self.rows(self.first + row)


def _upto(found: Attention, reached: set) -> list[Node]:
    """The members between the first product and the scores."""
    order = list(found.members)
    return [node for node in order[: order.index(found.top)] if node.output in reached]


def _combined(fn: str, a: Expr, b: Expr) -> Expr:
    """max without regard to NaN: a row with one has a NaN for its sum anyway."""
    return Select(Op("gt", (b, a), BOOL), b, a) if fn == "max" else op(fn, a, b)


def _tree(fn: str, values: list[Expr]) -> Expr:
    while len(values) > 1:
        values = [_combined(fn, *values[k : k + 2]) for k in range(0, len(values), 2)]
    return values[0]


def _index(rank: int, fixed: dict[int, DimLike]) -> Callable[[dict[int, DimLike]], Shape]:
    return lambda moving: tuple((fixed | moving)[axis] for axis in range(rank))


def _sizes(found: Attention) -> Sizes:
    first, second = found.first, found.second
    q, k = first.inputs
    batch, contract = first.attrs["batch"], first.attrs["contract"]
    depth = q.shape[contract[0][0]]
    rows = dims.product(q.shape[axis] for axis in free_axes(q.rank, batch[0], contract[0]))
    return Sizes(first.output.shape[: len(batch[0])], rows, k.shape[found.key_axis()], depth, second.inputs[1].shape[found.value_axes()[1]])


def _tiles(target: Target, sizes: Sizes) -> tuple[Tile, Tile]:
    keys, columns = (extent if isinstance(extent, int) else 2 * MANY_ROWS for extent in (sizes.keys, sizes.columns))
    return attention_tiles(target, sizes.rows, keys, columns, sizes.depth)


def _stride(width: DimLike) -> DimLike:
    """The distance of rows of scores."""
    return width + 16 if not isinstance(width, int) or width * 4 % _PAGE == 0 else width


@template("fused.attention")
def attention(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of an attention with its epilogue; None where an extent that must be known is not, or there is nothing to do."""
    region = node.regions[0]
    producers = region.producers()
    found = next(filter(None, (find_attention(inner, producers) for inner in region.nodes)), None)
    if found is None:
        return None
    sizes = _sizes(found)
    if not isinstance(sizes.depth, int) or 0 in (*sizes.batch, sizes.rows, sizes.keys, sizes.depth, sizes.columns):
        return None
    draft = AttentionKernel(node, found, scope, target).write()
    draft.tags["template"] = "attention"
    return [Built(*draft.finish())]
