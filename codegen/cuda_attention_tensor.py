"""Attention on tensor cores, and which attention a node gets. As ``cuda_attention.py``, but a warp takes 16 queries:

    fetch the first keys and values, rounded to 16 bits, into shared memory
    for each tile of keys:
        fetch the next tile, into registers or by asynchronous copies
        s = q k^T             mma.sync, fragments by ldmatrix
        the softmax so far, as in cuda_attention.py; a row's keys are in 4 lanes
        acc = acc * scale + p v     the registers of s, rounded, are the left fragments of the second product
        write the next tile into the other place

The exponentials are summed before they are rounded. Source: Dao, FlashAttention-2 (2023).
"""

from __future__ import annotations

from contextlib import nullcontext

from tcompile.codegen.cuda_attention import KEYS, CudaAttention, sizes
from tcompile.codegen.cuda_attention_few import MOST_ROWS, FewQueries
from tcompile.codegen.cuda_block import ThreadBlock
from tcompile.codegen.cuda_stage import Side, step_along
from tcompile.codegen.cuda_tensor import LANES, MMA_BYTES, MMA_COLUMNS, MMA_ROWS, StepTile, factors, instruction
from tcompile.codegen.cuda_tensor_stage import TensorStage
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import both, cast, compare, const, op, select
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.attention import Attention, find_attention
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import BF16, F16, F32, DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Barrier, CommitAsync, CopyAsync, Expr, Load, LoopKind, Space, Tile, TileOp, WaitAsync
from tcompile.ir.target import GpuTarget, Target

MOST_DEPTH = 128  # of queries, and columns of values
FEWEST_ROWS = 16  # of queries: a warp's
WARPS = 4
PER = MMA_BYTES // 2  # terms of an instruction
PLACES = 2  # for tiles of keys


class MovingStage(TensorStage):
    """An operand of 16 bits in shared memory, whose free positions or terms move from tile to tile."""

    def __init__(self, block: ThreadBlock, side: Side, step: StepTile, terms: DimLike, kind: DType) -> None:
        super().__init__(block, side, step, terms, kind)
        self.by_lanes = self.is_wide  # whether a thread rounds neighbours that it loads at once
        if self.is_wide:  # rounded once, on the way into shared memory, not by every warp
            found = step_along(self.nest, side, terms, step.terms)
            self.is_wide = self.is_copy = False
            self.stored, self.by_terms, self.width = kind, found.by_terms, found.width
            pad = self._pad()
            self.shape = (side.size, step.terms + pad) if self.by_terms else (step.terms, side.size + pad)

    def bring(self, slot: DimLike, first: DimLike = 0, moved: DimLike = 0, limit: Expr | None = None) -> str | None:
        """Starts bringing the terms from ``first`` on, ``moved`` positions on, where ``limit`` holds; see ``fetch``."""
        nest = self.nest
        held = None if self.is_copy else nest.alloc(self.kind, (len(self.pieces), self.width), Space.REGISTER)
        for k, piece in enumerate(self.pieces):
            row, term = piece.row + moved, first + piece.term
            beyond = both(self._below(row, self.side.extent, self.side.size), self._below(term, self.terms, self.step.terms))
            guard = both(both(limit, piece.exists), beyond)
            if held is None:
                value = self.side.element(self.side.place(row), term, guard)
                assert isinstance(value, Load), value
                copy = CopyAsync(self.buffer, (slot, piece.outer, piece.along), value.buffer, value.indices, self.width, value.mask)
                with nullcontext() if piece.exists is None else nest.branch(piece.exists):
                    nest.emit(copy)
            elif self.by_lanes:
                self._wide(held, k, row, term, guard)
            else:
                for lane in range(self.width):
                    place = (self.side.place(row), term + lane) if self.by_terms else (self.side.place(row + lane), term)
                    mine = guard if lane == 0 else both(both(limit, piece.exists), self._inside(row, term, lane))
                    nest.store(held, (k, lane), self._rounded(place, mine))
        return held

    def _wide(self, held: str, k: int, row: DimLike, term: DimLike, guard: Expr | None) -> None:
        """A piece by one access of memory; zeros where it is not there."""
        nest = self.nest
        if guard is not None:
            with nest.loop(self.width, LoopKind.UNROLLED) as lane:
                nest.store(held, (k, lane), const(0, self.kind))
        with nullcontext() if guard is None else nest.branch(guard), nest.loop(self.width, LoopKind.VECTOR, self.width) as lane:
            place = (self.side.place(row), term + lane) if self.by_terms else (self.side.place(row + lane), term)
            nest.store(held, (k, lane), self._rounded(place, None))

    def _inside(self, row: DimLike, term: DimLike, lane: int) -> Expr | None:
        row, term = (row, term + lane) if self.by_terms else (row + lane, term)
        return both(self._below(row, self.side.extent, self.side.size), self._below(term, self.terms, self.step.terms))

    def _rounded(self, place: tuple[Shape, DimLike], guard: Expr | None) -> Expr:
        value = cast(self.side.element(*place, guard), self.kind, saturate=False)
        return value if guard is None else select(guard, value, const(0, self.kind))


class TensorAttention(CudaAttention):
    """Writes the loops of one attention whose products suit ``tensor_kind``."""

    def _tiles(self) -> None:
        kind = tensor_kind(self.found, self.target)
        assert kind is not None
        self.kind = kind
        self.height, self.threads, self.row_count, self.distances = MMA_ROWS * WARPS, WARPS * LANES, 2, (2, 1)
        self.draft.tags["tensor"] = instruction(kind, kind)

    def _block(self, block: ThreadBlock) -> None:
        nest, ranges = self.nest, self.nest.ranges
        self.lane = block.named(dims.mod(block.thread, LANES, ranges), LANES - 1)
        self.first_row = block.named(dims.floordiv(block.thread, LANES, ranges) * MMA_ROWS, self.height - MMA_ROWS)
        q, k, v = self._stages(block)
        self.tiles = -(-self.columns // (2 * MMA_COLUMNS)) * 2  # of 8 columns, in pairs
        self.acc = nest.alloc(F32, (self.tiles, 4), Space.REGISTER)
        self._open_rows()
        with self._unrolled(self.tiles) as j, self._unrolled(4) as e:
            nest.store(self.acc, (j, e), const(0, F32))
        for stage in (q, k, v):
            stage.put(0, stage.bring(0))
        nest.emit(CommitAsync())
        turns = dims.ceildiv(self.keys, KEYS, ranges)
        with nest.loop(turns) as turn:
            nest.emit(WaitAsync(0))
            nest.emit(Barrier())
            slot, other = (block.named(dims.mod(turn + n, PLACES, ranges), PLACES - 1) for n in range(2))
            following = (turn + 1) * KEYS
            limit = nest.let(compare("lt", turn + 1, turns))
            held = k.bring(other, moved=following, limit=limit), v.bring(other, first=following, limit=limit)
            nest.emit(CommitAsync())
            scores = self._tensor_scores(q, k, slot, turn * KEYS)
            self._softmax(scores)
            self._tensor_accumulate(scores, v, slot)
            for stage, values in zip((k, v), held, strict=True):
                stage.put(other, values)
        self._tensor_results()

    def _stages(self, block: ThreadBlock) -> tuple[MovingStage, MovingStage, MovingStage]:
        depth = StepTile(self.threads, -(-self.depth // PER) * PER)
        columns = -(-self.columns // (2 * MMA_COLUMNS)) * 2 * MMA_COLUMNS
        q = MovingStage(block, Side(self._query, self.start, self.rows, self.height, self._query_place), depth, self.depth, self.kind)
        k = MovingStage(block, Side(self._key, 0, self.keys, KEYS), depth, self.depth, self.kind)
        v = MovingStage(block, Side(self._value, 0, self.columns, columns), StepTile(self.threads, KEYS), self.keys, self.kind)
        for stage, places in ((q, 1), (k, PLACES), (v, PLACES)):
            stage.open(places)
        return q, k, v

    def _row(self, r: DimLike) -> DimLike:
        """The query of a lane's ``r``-th row."""
        return self.start + self.first_row + r * 8 + dims.floordiv(self.lane, 4, self.nest.ranges)

    def _column(self, tile: DimLike) -> DimLike:
        """The first of a lane's two columns in a tile of 8."""
        return tile * MMA_COLUMNS + dims.mod(self.lane, 4, self.nest.ranges) * 2

    def _of_row(self, r: DimLike) -> list[Shape]:
        return [(j, r * 2 + e) for j in range(KEYS // MMA_COLUMNS) for e in range(2)]

    def _tensor_scores(self, q: MovingStage, k: MovingStage, slot: DimLike, first_key: DimLike) -> str:
        nest, count = self.nest, KEYS // MMA_COLUMNS
        scores = nest.alloc(F32, (count, 4), Space.REGISTER)
        with self._unrolled(count) as j, self._unrolled(4) as e:
            nest.store(scores, (j, e), const(0, F32))
        left, right = nest.alloc(self.kind, (1, 8), Space.REGISTER), nest.alloc(self.kind, (count, 4), Space.REGISTER)
        with self._unrolled(q.step.terms // PER) as step:
            q.load_rows(left, 0, 0, self.first_row, step * PER, self.lane)
            with self._unrolled(count // 2) as j:
                k.load_columns(right, j * 2, slot, j * 2 * MMA_COLUMNS, step * PER, self.lane)
            with self._unrolled(count) as j:
                self._product((scores, (j, 0)), (left, (0, 0)), (right, (j, 0)))
        with self._unrolled(2) as r:
            coordinates = self._coordinates(self._row(r))
            with self._unrolled(count) as j, self._unrolled(2) as e:
                self._score(scores, (j, r * 2 + e), coordinates, first_key + self._column(j) + e)
        return scores

    def _product(self, *operands: tuple[str, Shape]) -> None:
        self.nest.emit(TileOp(instruction(self.kind, self.kind), tuple(Tile(*operand) for operand in operands)))

    def _tensor_accumulate(self, scores: str, v: MovingStage, slot: DimLike) -> None:
        """A lane's exponentials of two tiles of 8 keys are its left fragment of 16 terms."""
        nest = self.nest
        with self._unrolled(self.tiles) as j, self._unrolled(2) as r, self._unrolled(2) as e:
            place = (j, r * 2 + e)
            nest.store(self.acc, place, op("mul", Load(self.acc, place, F32), Load(self.scale, (r,), F32)))
        left, right = nest.alloc(self.kind, (1, 8), Space.REGISTER), nest.alloc(self.kind, (self.tiles, 4), Space.REGISTER)
        with self._unrolled(KEYS // PER) as step:
            with self._unrolled(2) as tile, self._unrolled(4) as e:
                value = cast(Load(scores, (step * 2 + tile, e), F32), self.kind, saturate=False)
                nest.store(left, (0, tile * 4 + e), value)
            with self._unrolled(self.tiles // 2) as j:
                v.load_columns(right, j * 2, slot, j * 2 * MMA_COLUMNS, step * PER, self.lane)
            with self._unrolled(self.tiles) as j:
                self._product((self.acc, (j, 0)), (left, (0, 0)), (right, (j, 0)))

    def _tensor_results(self) -> None:
        nest = self.nest
        with self._unrolled(2) as r:
            row = self._row(r)
            place, finish = self._finished(r, row)
            with nest.branch(compare("lt", row, self.rows)), self._unrolled(self.tiles) as j:
                column, pairs = self._column(j), self.columns % 2 == 0
                whole = self.columns % (2 * MMA_COLUMNS) == 0
                if pairs:
                    inside = nullcontext() if whole else nest.branch(compare("lt", column, self.columns))
                    with inside, nest.loop(2, LoopKind.VECTOR, 2) as e:
                        self.epilogue.store((*place, column + e), finish(Load(self.acc, (j, r * 2 + e), F32)))
                else:
                    with self._unrolled(2) as e, nest.branch(compare("lt", column + e, self.columns)):
                        self.epilogue.store((*place, column + e), finish(Load(self.acc, (j, r * 2 + e), F32)))


def tensor_kind(found: Attention, target: GpuTarget) -> DType | None:
    """The 16-bit dtype that both products of an attention go through the tensor cores in; None where they do not."""
    kinds = {kind for product in (found.first, found.second) for kind in factors(product, target) or (F32,)}
    return kinds.pop() if len(kinds) == 1 and kinds <= {F16, BF16} else None


@template("fused.attention", "cuda")
def attention(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """The kernel of an attention with its epilogue; None where a head is too wide, or its weights are no scaled exponentials."""
    assert isinstance(target, GpuTarget), target
    producers = node.regions[0].producers()
    found = next(filter(None, (find_attention(inner, producers) for inner in node.regions[0].nodes)), None)
    if found is None or found.divisor() is None:
        return None
    batch, rows, keys, depth, columns = sizes(found)
    small = all(isinstance(extent, int) and extent <= MOST_DEPTH for extent in (depth, columns))
    if not small or 0 in (*batch, rows, keys, depth, columns):
        return None
    return [_writer(found, rows, target)(node, found, scope, target).built()]


def _writer(found: Attention, rows: DimLike, target: GpuTarget) -> type[CudaAttention]:
    if isinstance(rows, int) and rows <= MOST_ROWS:
        return FewQueries
    on_tensor_cores = tensor_kind(found, target) is not None and not (isinstance(rows, int) and rows < FEWEST_ROWS)
    return TensorAttention if on_tensor_cores else CudaAttention
