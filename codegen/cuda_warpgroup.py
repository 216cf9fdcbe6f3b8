"""Products on the tensor cores of sm_90: four warps multiply straight out of shared memory while they copy what comes next.

    for each step of 64 terms:
        wait for its copies; barrier: all warps see them, and are done with the step before the last
        acc += A step * B step                  wgmma, not awaited
        start copying into the place of the step before the last
        wait for the product of the step before

Both operands are bfloat16 or both float16, and come by asynchronous copies of 16 bytes; others take ``cuda_tensor.py``. Rows of
128 bytes lie swizzled, as the multiplier reads them (``ir/tileops_warpgroup.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.cuda_block import ThreadBlock
from tcompile.codegen.cuda_gemm import Product
from tcompile.codegen.cuda_stage import Side, step_along
from tcompile.codegen.cuda_tensor import LANES, MMA_COLUMNS, MMA_ROWS, TensorProduct, WarpTile, choose_tile, factors
from tcompile.codegen.scalar import both, compare, const, index_value, op
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import BF16, F16
from tcompile.ir.loops import Barrier, CommitAsync, CopyAsync, Expr, Load, Space, Tile, TileOp, WaitAsync
from tcompile.ir.target import GpuTarget
from tcompile.ir.tile_spec import WARPGROUP
from tcompile.ir.tileops_warpgroup import ATOM, DEPTH, ROWS

COPY_ELEMENTS = 8  # 16 bytes
TERMS = ATOM  # of a step


@dataclass(frozen=True)
class GroupTile(WarpTile):
    """The results of a block whose groups of four warps take 64 rows and all columns each; ``rate`` by the multiplier itself."""

    waiting: float = 25e-9
    stages: int = 4

    @property
    def threads(self) -> int:
        return self.rows // ROWS * WARPGROUP


GROUP_TILES = (
    GroupTile(128, 256, 64, 256, 1900),
    GroupTile(128, 128, 64, 128, 1600, stages=3),
    GroupTile(64, 256, 64, 256, 1500),
    GroupTile(64, 128, 64, 128, 1200),
    GroupTile(128, 64, 64, 64, 1200),
)


def suits(made: Product, target: GpuTarget) -> bool:
    """Whether the multiplier of sm_90 can take a product's operands as they lie in memory."""
    kinds = factors(made.core, target)
    if target.sm != 90 or kinds is None or kinds[0] not in (F16, BF16) or kinds[0] != kinds[1]:
        return False
    if any(value.dtype != kind for value, kind in zip(made.core.inputs, kinds, strict=True)):
        return False
    e, nest = made.extents, made.nest
    batch, row, column = (nest.fresh("q") for _ in range(3))
    for name, extent in ((batch, e.batch), (row, dims.ceildiv(e.rows, ROWS)), (column, dims.ceildiv(e.columns, ROWS))):
        nest.ranges[name] = Range(0, extent - 1)
    sides = made.sides(dims.symbol(batch), dims.symbol(row) * ROWS, dims.symbol(column) * ROWS, (ROWS, ROWS))
    return all(step_along(nest, side, e.terms, TERMS).width >= COPY_ELEMENTS for side in sides)


class WarpgroupProduct(TensorProduct):
    """The loops of such a product. Comes before a class that says where the operands are."""

    warps: GroupTile

    def _choose(self) -> None:
        e, found = self.extents, factors(self.core, self.target)
        assert found is not None
        self.types = found
        self.warps, self.parts, self.time = choose_tile(GROUP_TILES, self.target, e)
        self.draft.tags["tensor"] = f"wgmma_m64n{self.warps.columns}k16_{found[0].name}"

    def _sizes(self) -> tuple[int, int, int, int]:
        return self.warps.rows, self.warps.columns, TERMS, self.warps.threads

    def _tile(self, block: ThreadBlock, batch: DimLike, part: DimLike, row: DimLike, column: DimLike) -> None:
        nest, e, warps, ranges = self.nest, self.extents, self.warps, self.nest.ranges
        batch, start, turns = self._share(block, batch, part)
        left, right = (SwizzledStage(block, side, e.terms, warps) for side in self._sides(batch, row, column))
        warp = block.named(dims.floordiv(block.thread, LANES, ranges), warps.threads // LANES - 1)
        lane = block.named(dims.mod(block.thread, LANES, ranges), LANES - 1)
        group = dims.floordiv(warp, WARPGROUP // LANES, ranges)
        counts = 1, warps.columns // MMA_COLUMNS
        acc = nest.alloc(e.dtype, (*counts, 4), Space.REGISTER)
        with self._unrolled(counts[1]) as j, self._unrolled(4) as k:
            nest.store(acc, (0, j, k), const(0, e.dtype))
        self._pipeline(block, (left, right), acc, start, turns, group)
        self._fragments(acc, lane, [block.named(warp * MMA_ROWS, warps.rows - 1), 0], counts, batch, part, row, column)

    def _pipeline(
        self, block: ThreadBlock, stages: tuple[SwizzledStage, SwizzledStage], acc: str, start: DimLike, turns: DimLike, group: DimLike
    ) -> None:
        nest, ahead, slots = self.nest, self.warps.stages - 2, self.warps.stages
        for turn in range(ahead):
            with self._where_below(turn, turns):
                for stage in stages:
                    stage.fill(turn, start + turn * TERMS)
            nest.emit(CommitAsync())
        with nest.loop(turns) as turn:
            nest.emit(WaitAsync(ahead - 1))
            nest.emit(TileOp("fence_async", ()))
            nest.emit(Barrier())
            self._multiply_step(stages, acc, block.named(dims.mod(turn, slots), slots - 1), group)
            following = turn + ahead
            with nest.branch(compare("lt", following, turns)):
                into = block.named(dims.mod(following, slots), slots - 1)
                for stage in stages:
                    stage.fill(into, start + following * TERMS)
            nest.emit(CommitAsync())
            self._ordered("wgmma_wait1", acc)
        self._ordered("wgmma_wait0", acc)

    def _ordered(self, name: str, acc: str) -> None:
        self.nest.emit(TileOp(f"{name}_n{self.warps.columns}", (Tile(acc, (0, 0, 0)),)))

    def _multiply_step(self, stages: tuple[SwizzledStage, SwizzledStage], acc: str, slot: DimLike, group: DimLike) -> None:
        left, right = stages
        layouts = "".join("t" if stage.by_terms else "f" for stage in stages)
        name = f"wgmma_m64n{self.warps.columns}k16_{self.types[0].name}_{layouts}"
        self._ordered("wgmma_fence", acc)
        with self._unrolled(TERMS // DEPTH) as k:
            operands = left.address(slot, group, k * DEPTH), right.address(slot, 0, k * DEPTH)
            self.nest.emit(TileOp(name, (Tile(acc, (0, 0, 0)), *operands)))
        self.nest.emit(TileOp("wgmma_commit", ()))


@dataclass(frozen=True)
class _Piece:
    """A copy of a thread: its row of memory and where in it, the free position and the term, what is known of the position."""

    place: Shape
    term: DimLike
    free: Shape
    inside: Expr | None
    exists: Expr | None


class SwizzledStage:
    """The buffers of one operand: rows of 128 bytes, of terms of a position or of 64 positions of a term."""

    def __init__(self, block: ThreadBlock, side: Side, terms: DimLike, tile: GroupTile) -> None:
        self.block, self.nest, self.side, self.terms = block, block.nest, side, terms
        found = step_along(self.nest, side, terms, TERMS)
        assert found.width >= COPY_ELEMENTS, found
        self.by_terms, self.dtype = found.by_terms, found.dtype
        # where positions are neighbours: 64 of them a row, a row for each of 64 terms, then the next positions
        self.buffer = block.alloc(self.dtype, (tile.stages, side.size, ATOM))
        self.pieces = [self._piece(first, tile.threads) for first in range(0, side.size * ATOM // COPY_ELEMENTS, tile.threads)]

    def _piece(self, first: int, threads: int) -> _Piece:
        block, side, ranges = self.block, self.side, self.nest.ranges
        across = ATOM // COPY_ELEMENTS
        count = side.size * across
        number = first + block.thread
        memory_row = block.named(dims.floordiv(number, across, ranges), side.size - 1)
        part = block.named(dims.mod(number, across, ranges), across - 1)
        turned = op("xor", index_value(part), index_value(dims.mod(memory_row, across, ranges)))
        # the verifier knows a remainder's range, not that of bits
        part_here = block.named(dims.mod(self.nest.let_index(turned), across), across - 1)
        if self.by_terms:
            row, term = memory_row, part * COPY_ELEMENTS
        else:
            row = dims.floordiv(memory_row, ATOM, ranges) * ATOM + part * COPY_ELEMENTS
            term = dims.mod(memory_row, ATOM, ranges)
        position = side.start + row
        inside = None if dims.mod(side.extent, side.size) == 0 else self.nest.let(compare("lt", position, side.extent))
        exists = None if first + threads <= count else compare("lt", number, count)
        return _Piece((memory_row, part_here * COPY_ELEMENTS), term, side.place(position), inside, exists)

    def fill(self, slot: DimLike, first: DimLike) -> None:
        """Copies the terms from ``first`` on into a stage; what is beyond the operand is 0."""
        for piece in self.pieces:
            term = first + piece.term
            beyond = None if dims.mod(self.terms, TERMS) == 0 else compare("lt", term, self.terms)
            value = self.side.element(piece.free, term, both(piece.inside, beyond))
            assert isinstance(value, Load), value
            copy = CopyAsync(self.buffer, (slot, *piece.place), value.buffer, value.indices, COPY_ELEMENTS, value.mask)
            if piece.exists is None:
                self.nest.emit(copy)
                continue
            with self.nest.branch(piece.exists):
                self.nest.emit(copy)

    def address(self, slot: DimLike, group: DimLike, term: DimLike) -> Tile:
        """Where 16 terms of the ``group``-th 64 positions, and of those behind them, begin."""
        if self.by_terms:
            return Tile(self.buffer, (slot, group * ROWS, term))
        return Tile(self.buffer, (slot, group * ATOM + term, 0))
