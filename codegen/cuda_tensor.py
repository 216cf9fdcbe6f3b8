"""Products on tensor cores: warps multiply fragments that ``ldmatrix`` brings out of shared memory.

    for each step of terms:  (stages as in cuda_gemm.py)
        for groups of 32 bytes of terms:
            a[i] = ldmatrix(rows of A)      16 rows x 32 bytes a warp
            b[j] = ldmatrix(columns of B)    8 columns x 32 bytes
            acc[i, j] += a[i] b[j]           mma.sync

float16 and bfloat16 factors are multiplied exactly and summed in float32, 8-bit integers exactly. Factors of float32 are rounded
to what the target's ``precision`` says, on their way into shared memory or, to tf32, into registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from tcompile.codegen.cuda_block import ThreadBlock
from tcompile.codegen.cuda_gemm import STAGES, Extents, Product
from tcompile.codegen.cuda_tensor_stage import TensorStage
from tcompile.codegen.cuda_tile import MANY, split_parts, split_seconds
from tcompile.codegen.lower_contraction import accumulation_type
from tcompile.codegen.scalar import const
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import BF16, F16, F32, I8, I32, U8, DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Barrier, CommitAsync, Load, LoopKind, Space, Tile, TileOp, WaitAsync
from tcompile.ir.target import GpuTarget

LANES = 32
MMA_ROWS, MMA_COLUMNS, MMA_BYTES = 16, 8, 32  # of one instruction; the terms fill 32 bytes of each row
STEP_BYTES = 64  # of terms in shared memory at once
STEP_TERMS = 32  # of 16 bits
CYCLES_PER_SECOND = 1.7e9
REACHED = 0.9  # of the tensor cores' peak
STEP_SECONDS = 90e-9  # that a block alone waits in a step: for the barrier, fragments, products, one after the other
BLOCK_SECONDS = 0.8e-6  # until a block's first step, and after its last
_RESIDENT_THREADS = 1024  # of a multiprocessor
MOST_STAGES = 6
SHARED_BYTES = 40 << 10  # that the stages may fill where they are more than the fewest
_SHORT = {I8: "s8", U8: "u8"}
_ROUNDED = {"tf32": F32, "f16": F16, "bf16": BF16}


@dataclass(frozen=True)
class WarpTile:
    """The results of a block, rows x columns, and those of one of its warps.

    ``rate`` is how many products a multiprocessor adds in a cycle: its warps start so many instructions for each. A block that is
    alone there waits for ``waiting`` seconds in each step.
    """

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    rate: float
    waiting: float = STEP_SECONDS

    @property
    def threads(self) -> int:
        return (self.rows // self.warp_rows) * (self.columns // self.warp_columns) * LANES

    def seconds(self, target: GpuTarget) -> float:
        """Of a step of STEP_TERMS terms where nothing is waited for."""
        peak = target.tensor_flops / 2 / target.sms
        return self.rows * self.columns * STEP_TERMS / min(self.rate * CYCLES_PER_SECOND, REACHED * peak)


T = TypeVar("T", bound=WarpTile)
WARP_TILES = (
    WarpTile(128, 128, 64, 32, 1150),
    WarpTile(128, 64, 32, 32, 830),
    WarpTile(64, 128, 32, 32, 830),
    WarpTile(64, 64, 32, 32, 800),
    WarpTile(32, 64, 16, 32, 600),
    WarpTile(64, 32, 32, 16, 600),
    WarpTile(32, 32, 16, 16, 330),
    WarpTile(16, 64, 16, 16, 320),
)


@dataclass(frozen=True)
class StepTile:
    """What a stage needs to know: threads of the block, terms of a step."""

    threads: int
    terms: int


def factors(core: Node, target: GpuTarget) -> tuple[DType, DType] | None:
    """The dtypes in which the operands of a contraction go through the tensor cores; None where they do not."""
    a, b = (value.dtype for value in core.inputs)
    sums = accumulation_type(core)
    if a == b and a in (F16, BF16) and sums == F32:
        return a, b
    kind = _ROUNDED.get(target.precision)
    if kind is not None and sums == F32 and {a, b} <= {F32, kind}:
        return kind, kind
    if a in _SHORT and b in _SHORT and sums == I32:
        return a, b
    return None


def instruction(a: DType, b: DType) -> str:
    """The name of the tile operation that multiplies fragments of these dtypes."""
    if a == F32:
        return "mma_m16n8k8_tf32"
    if a.is_float:
        return f"mma_m16n8k16_{a.name}"
    return f"mma_m16n8k32_{_SHORT[a] if a == b else _SHORT[a] + _SHORT[b]}"


class TensorProduct(Product):
    """The loops of a product on tensor cores. Comes before a class that says where the operands are."""

    stages: int  # steps in shared memory at once
    time: float  # estimated, in seconds

    def _choose(self) -> None:
        found = factors(self.core, self.target)
        assert found is not None
        self.types = found[self.sides_of[0]], found[self.sides_of[1]]
        e = self.extents
        self.warps, self.parts, self.time = choose_tile(WARP_TILES, self.target, e)
        self.step = StepTile(self.warps.threads, STEP_BYTES // self.types[0].bytes)
        self.draft.tags["tensor"] = instruction(*self.types)

    def _sizes(self) -> tuple[int, int, int, int]:
        return self.warps.rows, self.warps.columns, self.step.terms, self.warps.threads

    def _tile(self, block: ThreadBlock, batch: DimLike, part: DimLike, row: DimLike, column: DimLike) -> None:
        nest, e, warps, ranges = self.nest, self.extents, self.warps, self.nest.ranges
        batch, start, turns = self._share(block, batch, part)
        left, right = self._sides(batch, row, column)
        stages = [TensorStage(block, side, self.step, e.terms, kind) for side, kind in zip((left, right), self.types, strict=True)]
        # small tiles multiply a step in less time than memory takes to answer: they look further ahead
        self.stages = min(max(SHARED_BYTES // sum(stage.bytes for stage in stages), STAGES), MOST_STAGES)
        for stage in stages:
            stage.open(self.stages)
        lane = block.named(dims.mod(block.thread, LANES, ranges), LANES - 1)
        warp = block.named(dims.floordiv(block.thread, LANES, ranges), warps.threads // LANES - 1)
        across = warps.columns // warps.warp_columns
        down = dims.floordiv(warp, across, ranges) * warps.warp_rows, dims.mod(warp, across, ranges) * warps.warp_columns
        origin = [block.named(i, high - 1) for i, high in zip(down, (warps.rows, warps.columns), strict=True)]
        counts = warps.warp_rows // MMA_ROWS, warps.warp_columns // MMA_COLUMNS
        acc = nest.alloc(e.dtype, (*counts, 4), Space.REGISTER)
        with self._unrolled(counts[0]) as i, self._unrolled(counts[1]) as j, self._unrolled(4) as k:
            nest.store(acc, (i, j, k), const(0, e.dtype))
        self._steps(block, stages, start, turns, lambda slot: self._warp(stages, acc, slot, lane, origin, counts))
        self._fragments(acc, lane, origin, counts, batch, part, row, column)

    def _unrolled(self, count: int) -> AbstractContextManager[DimLike]:
        return self.nest.loop(count, LoopKind.UNROLLED)

    def _steps(
        self, block: ThreadBlock, stages: list[TensorStage], start: DimLike, turns: DimLike, multiply: Callable[[DimLike], None]
    ) -> None:
        """The pipeline: what cannot be copied asynchronously waits in registers while the step is multiplied."""
        nest, terms, count = self.nest, self.step.terms, self.stages
        for ahead in range(count - 1):
            with self._where_below(ahead, turns):
                for stage in stages:
                    stage.put(ahead, stage.fetch(ahead, start + ahead * terms))
            nest.emit(CommitAsync())
        with nest.loop(turns) as turn:
            nest.emit(WaitAsync(count - 2))
            nest.emit(Barrier())
            following = turn + (count - 1)
            into, first = dims.mod(following, count), start + following * terms
            # beyond the last step everything is masked: nothing is read
            held = [stage.fetch(into, first, turns * terms + start) for stage in stages]
            nest.emit(CommitAsync())
            multiply(block.named(dims.mod(turn, count), count - 1))
            for stage, values in zip(stages, held, strict=True):
                stage.put(into, values)

    def _warp(
        self, stages: list[TensorStage], acc: str, slot: DimLike, lane: DimLike, origin: list[DimLike], counts: tuple[int, int]
    ) -> None:
        """One step of a warp's part."""
        nest, (a, b) = self.nest, self.types
        per = MMA_BYTES // a.bytes
        left = nest.alloc(a, (counts[0], 16 // a.bytes), Space.REGISTER)
        right = nest.alloc(b, (counts[1], 8 // b.bytes), Space.REGISTER)
        with self._unrolled(self.step.terms // per) as group:
            with self._unrolled(counts[0]) as i:
                stages[0].load_rows(left, i, slot, origin[0] + i * MMA_ROWS, group * per, lane)
            with self._unrolled(counts[1] // 2) as j:
                stages[1].load_columns(right, j * 2, slot, origin[1] + j * 2 * MMA_COLUMNS, group * per, lane)
            if a == F32:
                self._round(left, counts[0], 4)
                self._round(right, counts[1], 2)
            with self._unrolled(counts[0]) as i, self._unrolled(counts[1]) as j:
                nest.emit(TileOp(instruction(a, b), (Tile(acc, (i, j, 0)), Tile(left, (i, 0)), Tile(right, (j, 0)))))

    def _round(self, buffer: str, count: int, elements: int) -> None:
        with self._unrolled(count) as i, self._unrolled(elements) as k:
            self.nest.emit(TileOp("round_tf32", (Tile(buffer, (i, k)), Tile(buffer, (i, k)))))

    def _fragments(
        self,
        acc: str,
        lane: DimLike,
        origin: list[DimLike],
        counts: tuple[int, int],
        batch: DimLike,
        part: DimLike,
        row: DimLike,
        column: DimLike,
    ) -> None:
        """Results: a lane holds two neighbours of rows lane // 4 and lane // 4 + 8 of each tile of 16 x 8."""
        nest, e, warps = self.nest, self.extents, self.warps
        with self._unrolled(counts[0]) as i, self._unrolled(2) as half:
            here = row + origin[0] + i * MMA_ROWS + half * 8 + dims.floordiv(lane, 4, nest.ranges)
            with self._below(here, e.rows, warps.rows), self._unrolled(counts[1]) as j:
                there = column + origin[1] + j * MMA_COLUMNS + dims.mod(lane, 4, nest.ranges) * 2
                self._pair(acc, (i, j, half), batch, part, here, there)

    def _pair(self, acc: str, at: Shape, batch: DimLike, part: DimLike, row: DimLike, column: DimLike) -> None:
        """Two neighbours of a row."""
        nest, e, (i, j, half) = self.nest, self.extents, at
        if dims.mod(e.columns, 2) == 0:
            with self._below(column, e.columns, self.warps.columns), nest.loop(2, LoopKind.VECTOR, 2) as k:
                self._put(Load(acc, (i, j, half * 2 + k), e.dtype), batch, part, row, column + k)
            return
        with self._unrolled(2) as k, self._below(column + k, e.columns, self.warps.columns):
            self._put(Load(acc, (i, j, half * 2 + k), e.dtype), batch, part, row, column + k)


def choose_tile(tiles: Sequence[T], target: GpuTarget, e: Extents) -> tuple[T, int, float]:
    """The tile with the least estimated time, the parts of the sum, and that time in seconds."""
    m, n, k = (extent if isinstance(extent, int) else MANY for extent in (e.rows, e.columns, e.terms))
    repeats = e.batch if isinstance(e.batch, int) else 8
    known = all(isinstance(extent, int) for extent in (e.rows, e.columns, e.terms, e.batch))

    def time(tile: T, parts: int) -> float:
        blocks = max(-(-m // tile.rows) * -(-n // tile.columns) * repeats, 1)
        of_one = -(-blocks * parts // target.sms)  # multiprocessor
        together = max(min(of_one, _RESIDENT_THREADS // tile.threads), 1)
        steps = -(-k // (parts * STEP_TERMS))
        alone = tile.seconds(target)
        step = max(together * alone, tile.waiting + alone)
        return -(-of_one // together) * (steps * step + BLOCK_SECONDS) + split_seconds(target, parts, m * n * repeats)

    options = [
        (tile, parts)
        for tile in tiles
        for parts in split_parts(target, max(-(-m // tile.rows) * -(-n // tile.columns) * repeats, 1), k, split=known)
    ]
    tile, parts = min(options, key=lambda option: time(*option))
    return tile, parts, time(tile, parts)
