"""GEMM: dot_packed (a constant, packed matrix) and dot_general of two activations.

    parallel for (chunk of rows, panel of columns):                 a chunk of A stays in L2, a panel of B while its rows pass
        [pack the panel of B into scratch]                          activations only
        for each tile of rows:  acc = A rows x panel;  epilogue; store

Every result is summed over k in order by one thread, so the thread count never shows in the bits. Rows that do not
fill a tile get smaller tiles: one of the exact size where M is known, halves of the tile where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_epilogue import Epilogue, anchor, store_tile
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_tile import micro_kernel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import compare, const, index_value
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.blocking import task_rows
from tcompile.ir.choices import choose
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.target import Target
from tcompile.ir.tiles import (
    FEW_ROWS,
    FMA,
    MANY_ROWS,
    MOST_ROWS,
    Step,
    Tile,
    accumulator_type,
    best_tile,
    chains,
    is_streamed,
    lanes,
    matrix_fits,
    side_by_side,
    tile_cycles,
)

LINE_BYTES = 64
_LONG_TURN = 16  # multiplications: of several such turns LLVM loads operands so early that registers spill
Right = Callable[[DimLike, int, DimLike], Expr]


@dataclass(frozen=True)
class Problem:
    """One matrix product: rows x terms times terms x columns, for each of ``batch``."""

    rows: DimLike
    columns: DimLike
    terms: DimLike
    dtype: DType  # of the sums
    batch: DimLike = 1


class Gemm:
    """Writes the loops of one kernel. Subclasses say where the operands are."""

    def __init__(self, node: Node, scope: Scope, target: Target, name: str) -> None:
        self.node, self.target = node, target
        found = anchor(node)
        assert found is not None, node.op
        self.core = found
        self.draft = Draft(name, node, scope)
        self.nest = self.draft.nest
        self.epilogue = Epilogue(self.draft, node, self.core)
        self.problem = self._problem()
        self.tile = self._tile()
        self.panels = dims.ceildiv(self.problem.columns, self.tile.columns, self.nest.ranges)
        self.draft.flops = 2 * self.problem.batch * self.problem.rows * self.problem.columns * self.problem.terms
        self.draft.tags["tile"] = f"{self.tile.rows}x{self.tile.vectors}x{self.tile.lanes}"

    combine: Callable[[Expr, Expr, Expr], Expr] | None = None
    is_packed = True  # B lies in panels beforehand

    # To be given by subclasses ------------------------------------------------------------------------

    def _problem(self) -> Problem:
        raise NotImplementedError

    def _tile(self) -> Tile:
        raise NotImplementedError

    def left(self, batch: DimLike, row: DimLike, term: DimLike) -> Expr:
        """A[row, term]."""
        raise NotImplementedError

    def panel(self, batch: DimLike, panel: DimLike) -> Right:
        """Makes a panel of B ready; returns (term, vector, lane) -> element."""
        raise NotImplementedError

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        """The index of a result in the contraction's value."""
        raise NotImplementedError

    def terms(self, panel: DimLike, tile: DimLike) -> AbstractContextManager[DimLike]:
        """The loops over terms, for the ``tile``-th tile of rows of a task."""
        return self.nest.loop(self.problem.terms)

    def chains(self, tile: Tile) -> int:
        """How many sums of each result are kept apart."""
        return 1

    @contextmanager
    def chained(self, chains: int) -> Iterator[tuple[DimLike, ...]]:
        """A loop over the terms of ``chains`` equal parts at once."""
        part = _extent(self.problem.terms) // chains
        with self.nest.loop(part) as term:
            yield tuple(chain * part + term for chain in range(chains))

    # Loops --------------------------------------------------------------------------------------------

    def write(self) -> Draft:
        """The whole kernel."""
        tiles, per_chunk, chunks = self._chunks()
        with self.nest.loop(self.problem.batch * self.panels * chunks, LoopKind.PARALLEL) as task:
            batch, chunk, panel = split_task(self.nest, task, (self.problem.batch, chunks, self.panels))
            right = self.panel(batch, panel)
            first = chunk * per_chunk
            here = partial(self._tile_of_rows, batch, panel, right)
            with self.nest.loop(dims.minimum(per_chunk, tiles - first, self.nest.ranges)) as tile:
                here(self.tile.rows, (first + tile) * self.tile.rows, tile)
            self._rest(tiles, chunk, chunks, here)
        return self.draft

    def _chunks(self) -> tuple[DimLike, DimLike, DimLike]:
        """(full tiles of rows, tiles of a chunk, chunks): equal chunks near the size that fits, so that no thread gets a small rest."""
        ranges, fitting = self.nest.ranges, self._fitting()
        tiles = dims.floordiv(self.problem.rows, self.tile.rows, ranges)
        chunks = dims.maximum(dims.floordiv(tiles + fitting // 2, fitting, ranges), 1, ranges)
        per_chunk = dims.maximum(dims.ceildiv(tiles, chunks, ranges), 1, ranges)
        return tiles, per_chunk, dims.maximum(dims.ceildiv(tiles, per_chunk, ranges), 1, ranges)

    def _fitting(self) -> int:
        """Tiles of rows that one task does with a panel."""
        terms = self.problem.terms if isinstance(self.problem.terms, int) else 0
        rows = task_rows(self.target, self.tile, terms, self.problem.dtype.bytes, packed=self.is_packed)
        return max(rows // self.tile.rows, 1)

    def _rest(self, tiles: DimLike, chunk: DimLike, chunks: DimLike, emit: Callable) -> None:
        """The rows that fill no tile, done by the last chunk."""
        rests = list(self._rest_tiles(tiles))
        if not rests:
            return
        if chunks == 1:
            # alone with a chunk: the tile behind its full ones
            self._emit_rests(rests, lambda rows, first: emit(rows, first, tiles))
            return
        with self.nest.branch(compare("eq", chunk, chunks - 1)):
            self._emit_rests(rests, emit)

    def _emit_rests(self, rests: list[tuple[int, DimLike, Expr | None]], emit: Callable[[int, DimLike], None]) -> None:
        for rows, first, cond in rests:
            if cond is None:
                emit(rows, first)
            else:
                with self.nest.branch(cond):
                    emit(rows, first)

    def _rest_tiles(self, tiles: DimLike) -> Iterator[tuple[int, DimLike, Expr | None]]:
        """(rows, first row, condition) of the smaller tiles."""
        rows = self.problem.rows
        if isinstance(rows, int):
            if rows % self.tile.rows:
                yield rows % self.tile.rows, tiles * self.tile.rows, None
            return
        size = self.tile.rows // 2
        while size:
            first = dims.floordiv(rows, 2 * size, self.nest.ranges) * (2 * size)
            yield size, first, compare("ge", rows - first, size)
            size //= 2

    def _tile_of_rows(self, batch: DimLike, panel: DimLike, right: Callable, rows: int, first: DimLike, number: DimLike = 0) -> None:
        tile = Tile(rows, self.tile.vectors, self.tile.lanes)
        chains = self.chains(tile)
        acc = micro_kernel(
            self.nest,
            tile,
            self.problem.dtype,
            terms=(lambda: self.chained(chains)) if chains > 1 else (lambda: self.terms(panel, number)),
            a=lambda row, term: self.left(batch, first + row, term),
            b=lambda vector, lane, term: right(term, vector, lane),
            combine=self.combine,
            chains=chains,
        )

        def store(start: DimLike, columns: DimLike | None) -> None:
            def place(row: DimLike, part: DimLike, column: DimLike) -> Shape:
                return self.place(batch, first + row, start + column)

            store_tile(self.epilogue, acc, place, tile.columns, columns)

        self._by_width(panel, store)

    def _by_width(self, panel: DimLike, emit: Callable[[DimLike, DimLike | None], None]) -> None:
        """Runs ``emit(first column, columns)``: for a full panel (None), and for the last one where it may be narrower."""
        columns, width = self.problem.columns, self.tile.columns
        rest = dims.mod(columns, width, self.nest.ranges)
        if rest == 0 or self.panels == 1:
            emit(panel * width, None if rest == 0 else columns - panel * width)
            return
        left = columns - panel * width
        with self.nest.branch(compare("ge", left, width)):
            # that no column is past the last one shows in no index by itself; results of other shapes would divide by extents
            known = isinstance(columns, int)
            emit(self.nest.let_index(index_value(panel * width), Range(0, columns - width)) if known else panel * width, None)
        with self.nest.otherwise():
            emit(columns - rest if isinstance(rest, int) else panel * width, rest if isinstance(rest, int) else left)


class PackedGemm(Gemm):
    """dot_packed: B lies in panels already."""

    def _problem(self) -> Problem:
        a, b = self.core.inputs
        dtype = accumulator_type(a.dtype, b.dtype, self.core.attrs["dtype"])
        return Problem(dims.product(a.shape[:-1]), self.core.attrs["columns"], a.shape[-1], dtype)

    def _tile(self) -> Tile:
        few = self.core.attrs.get("few", False)
        return packed_tile(self.target, self.problem, _extent(self.core.inputs[1].shape[2]), few=few)

    def left(self, batch: DimLike, row: DimLike, term: DimLike) -> Expr:
        return self.draft.inliner.flat(self.core.inputs[0], row * self.problem.terms + term)

    def panel(self, batch: DimLike, panel: DimLike) -> Right:
        b = self.core.inputs[1]
        buffer, width, per = self.weights(), _extent(b.shape[2]), self.tile.columns
        starts = self._side_by_side(panel, per // width) if per > width else [self._start(panel, width // per)]
        vectors, lane_count = min(width, per) // self.tile.lanes, self.tile.lanes

        def element(term: DimLike, vector: int, lane: DimLike) -> Expr:
            part, inside = divmod(vector, vectors)
            return Load(buffer, (starts[part] + term * width + inside * lane_count + lane,), self.item)

        return element

    def _start(self, panel: DimLike, ratio: int) -> DimLike:
        """Where a panel begins of which a stored one holds several side by side."""
        stored, width = self.problem.terms * _extent(self.core.inputs[1].shape[2]), self.tile.columns
        if ratio == 1:
            return panel * stored
        outer = dims.floordiv(panel, ratio, self.nest.ranges)
        return self.nest.let_index(index_value(outer * stored + (panel - outer * ratio) * width))

    def _side_by_side(self, panel: DimLike, count: int) -> list[DimLike]:
        """Where the stored panels begin that a wider tile reads together; behind the last one, the last one again."""
        total, _, width = self.core.inputs[1].shape[:3]
        last, stored = total - 1, self.problem.terms * width
        exact = dims.mod(total, count) == 0
        places = [panel * count + k if exact else dims.minimum(panel * count + k, last, self.nest.ranges) for k in range(count)]
        return [self.nest.let_index(index_value(place * stored)) for place in places]

    def weights(self) -> str:
        """The parameter that holds the panels, of elements of the type ``item``."""
        return self.draft.read(self.core.inputs[1])

    @property
    def item(self) -> DType:
        """The type of an element of a panel."""
        return self.core.inputs[1].dtype

    @contextmanager
    def terms(self, panel: DimLike, tile: DimLike) -> Iterator[DimLike]:
        """Each tile of rows asks for its share of the next panel: it comes from memory while this one is multiplied."""
        ahead = self._ahead()
        if ahead is None:
            with self.some_terms(self.problem.terms) as term:
                yield term
            return
        b = self.core.inputs[1]
        buffer, line, size = self.weights(), LINE_BYTES // self.item.bytes, _extent(b.shape[1]) * _extent(b.shape[2])
        steps = _extent(b.shape[1]) // ahead.terms
        with self.nest.loop(steps) as step:
            for k in range(ahead.lines):
                self.nest.prefetch(buffer, (panel + 1) * size + ((tile * steps + step) * ahead.lines + k) * line)
            with self.some_terms(ahead.terms) as term:
                yield step * ahead.terms + term

    @contextmanager
    def some_terms(self, extent: DimLike) -> Iterator[DimLike]:
        """A loop over neighbouring terms; tiles of few rows do several a turn, which is else over sooner than the loop around it."""
        short = self.tile.rows <= FEW_ROWS and self.tile.rows * self.tile.vectors < _LONG_TURN
        several = next((k for k in (8, 4) if short and isinstance(extent, int) and extent % k == 0), 1)
        with self.nest.loop(dims.floordiv(extent, several)) as step, self.nest.loop(several, LoopKind.UNROLLED) as term:
            yield step * several + term

    def _ahead(self) -> Ahead | None:
        b = self.core.inputs[1]
        if self.panels == 1 or _extent(b.shape[2]) != self.tile.columns:
            return None
        _, per_chunk, chunks = self._chunks()
        tiles = per_chunk if isinstance(per_chunk, int) else min(MANY_ROWS // self.tile.rows, self._fitting())
        if chunks == 1 and isinstance(self.problem.rows, int):
            tiles = -(-self.problem.rows // self.tile.rows)
        return fetched_ahead(_extent(b.shape[1]), self.tile.columns * self.item.bytes, tiles)

    def chains(self, tile: Tile) -> int:
        """Several where a large matrix is read once and its tiles are small."""
        problem = self.problem
        if self.combine is not None or problem.rows != 1 or not problem.dtype.is_float:
            return 1
        terms = _extent(problem.terms)
        return chains(self.target, tile, terms) if is_streamed(self.target, 1, terms, _extent(problem.columns), problem.dtype) else 1

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        return (*unravel(row, self.core.output.shape[:-1], self.nest.ranges), column)


class BatchedGemm(Gemm):
    """dot_general: both operands are computed; panels of B are packed into scratch."""

    is_packed = False

    def _problem(self) -> Problem:
        a, b = self.core.inputs
        batch, contract = self.core.attrs["batch"], self.core.attrs["contract"]
        self.free = [free_axes(x.rank, *axes) for x, *axes in zip((a, b), batch, contract, strict=True)]
        dtype = accumulator_type(a.dtype, b.dtype, self.core.attrs["dtype"])
        rows, columns = (dims.product(x.shape[k] for k in free) for x, free in zip((a, b), self.free, strict=True))
        terms, repeats = (dims.product(a.shape[k] for k in axes) for axes in (contract[0], batch[0]))
        return Problem(rows, columns, terms, dtype, repeats)

    def _tile(self) -> Tile:
        columns = self.problem.columns if isinstance(self.problem.columns, int) else 1 << 20
        terms = self.problem.terms if isinstance(self.problem.terms, int) else 0
        return best_tile(self.target, self.problem.rows, columns, lanes(self.target, self.problem.dtype), terms=terms)

    def left(self, batch: DimLike, row: DimLike, term: DimLike) -> Expr:
        return self.draft.element(self.core.inputs[0], self._index(0, batch, row, term))

    def panel(self, batch: DimLike, panel: DimLike) -> Right:
        b, width, nest = self.core.inputs[1], self.tile.columns, self.nest
        packed = nest.alloc(b.dtype, (self.problem.terms * width,))

        def copy(start: DimLike, columns: DimLike | None) -> None:
            with nest.loop(self.problem.terms) as term:
                if columns is not None:  # lanes of no column still take part in the arithmetic
                    with nest.loop(width, LoopKind.VECTOR, self.tile.lanes) as column:
                        nest.store(packed, term * width + column, const(0, b.dtype))
                with nest.loop(width if columns is None else columns, LoopKind.VECTOR, self.tile.lanes) as column:
                    element = self.draft.element(b, self._index(1, batch, start + column, term))
                    nest.store(packed, term * width + column, element)

        self._by_width(panel, copy)
        return lambda term, vector, lane: Load(packed, (term * width + vector * self.tile.lanes + lane,), b.dtype)

    def _index(self, side: int, batch: DimLike, free: DimLike, term: DimLike) -> Shape:
        """An operand's index from the three flat positions."""
        operand = self.core.inputs[side]
        index: list[DimLike] = [0] * operand.rank
        parts = ((self.core.attrs["batch"][side], batch), (self.free[side], free), (self.core.attrs["contract"][side], term))
        for axes, flat in parts:
            for axis, i in zip(axes, unravel(flat, [operand.shape[k] for k in axes], self.nest.ranges), strict=True):
                index[axis] = i
        return tuple(index)

    def place(self, batch: DimLike, row: DimLike, column: DimLike) -> Shape:
        shape = self.core.output.shape
        repeats, rows = len(self.core.attrs["batch"][0]), len(self.free[0])
        parts = ((shape[:repeats], batch), (shape[repeats : repeats + rows], row), (shape[repeats + rows :], column))
        return tuple(i for part, flat in parts for i in unravel(flat, part, self.nest.ranges))


@dataclass(frozen=True)
class Ahead:
    """How a panel is fetched while another is used: ``lines`` cache lines before every ``terms`` terms of each tile of rows."""

    terms: int
    lines: int


def fetched_ahead(terms: int, row_bytes: int, tiles: int) -> Ahead | None:
    """How ``tiles`` tiles of rows fetch a panel of ``terms`` rows together; None where it is not worth it: for a single one."""
    if tiles < 2:
        return None
    wanted = LINE_BYTES * tiles // row_bytes  # terms for each line
    step = max((k for k in range(1, min(max(wanted, 8), 32) + 1) if terms % k == 0), default=0)
    return Ahead(step, -(-step * row_bytes // (LINE_BYTES * tiles))) if step >= 4 else None


def packed_tile(target: Target, problem: Problem, width: int, step: Step = FMA, *, few: bool = False) -> Tile:
    """The best tile whose columns divide a given panel width. ``few``: a symbolic number of rows is small."""
    lane_count = lanes(target, problem.dtype)
    lane_count = lane_count if width % lane_count == 0 else width
    if is_streamed(target, problem.rows, _extent(problem.terms), _extent(problem.columns), problem.dtype):
        streams = side_by_side(target, problem.rows, width // lane_count)
        if 1 < streams <= -(-problem.columns // width):
            return Tile(problem.rows, streams * width // lane_count, lane_count)
    symbolic = not isinstance(problem.rows, int)
    limit = (FEW_ROWS if few else MANY_ROWS) if symbolic else max(int(problem.rows), 1)

    terms = max(_extent(problem.terms), 1)

    def cycles(rows: int, vectors: int) -> float:
        full, rest = divmod(limit, rows)
        work = full * tile_cycles(target, rows, vectors, terms, step) + (tile_cycles(target, rest, vectors, terms, step) if rest else 0)
        return work / terms / vectors

    options = (
        Tile(rows, vectors, lane_count).option(cycles(rows, vectors))
        for vectors in range(1, width // lane_count + 1)
        if width % (vectors * lane_count) == 0
        for rows in ((8, 4, 2, 1) if symbolic else range(1, min(limit, MOST_ROWS) + 1))
        if rows <= limit
        if matrix_fits(target, rows, vectors, step)
    )
    return choose("matrix tile", options)


def _extent(extent: DimLike) -> int:
    assert isinstance(extent, int), f"packed weights have known extents, got {extent}"
    return extent


@template("dot_packed")
@template("dot_general")
@template("fused.dot")
def gemm(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of a matrix product, alone or with its epilogue; None for boolean and sub-byte factors."""
    core = anchor(node)
    if core is None or any(value.dtype.bits < 8 for value in core.inputs):
        return None
    kind = {"dot_packed": PackedGemm, "dot_general": BatchedGemm}[core.op]
    draft = kind(node, scope, target, "gemm").write()
    draft.tags["template"] = "gemm"
    return [Built(*draft.finish())]
