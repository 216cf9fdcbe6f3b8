"""Register tiles: the micro-kernel that GEMM and convolution share, and the choice of its size.

A tile is ``rows`` x ``vectors`` accumulators. Each step loads ``vectors`` vectors of weights, broadcasts one scalar per row
and issues rows * vectors FMAs, all independent:

    acc[rows][vectors][lanes] = 0
    for each term:  b[v] = B(v);  for i: a = A(i);  for v: acc[i][v] = fma(a, b[v], acc[i][v])
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import cast, const
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import F32, F64, I32, I64, DType
from tcompile.ir.loops import Expr, Load, LoopKind, Op, Space
from tcompile.ir.target import Target


@dataclass(frozen=True)
class Tile:
    """The size of a register tile: rows x vectors of ``lanes`` elements."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Accumulator:
    """A register tile after its micro-kernel ran."""

    buffer: str
    tile: Tile
    dtype: DType

    def at(self, row: int, vector: int, lane: DimLike) -> Expr:
        return Load(self.buffer, (row, vector, lane), self.dtype)


def accumulator_type(a: DType, b: DType, result: DType) -> DType:
    """What products of ``a`` and ``b`` are summed in: at least f32, at least i32, and not below the result."""
    if result.is_float:
        return F64 if F64 in (a, b, result) else F32
    return I64 if max(a.bits, b.bits, result.bits) > 32 else I32


def lanes(target: Target, dtype: DType) -> int:
    """Elements of an accumulator type in one vector register."""
    return max(target.vector_bytes // dtype.bytes, 1)


def fits(target: Target, rows: int, vectors: int) -> bool:
    """Whether accumulators, one row of weights and a broadcast stay in registers."""
    return rows * vectors + vectors + 1 <= target.vector_registers


def best_tile(target: Target, rows: DimLike, columns: int, lane_count: int) -> Tile:
    """The tile that needs the fewest cycles for a matrix of ``rows`` (symbolic: many) x ``columns``."""
    total = max(-(-columns // lane_count), 1)
    limit = rows if isinstance(rows, int) and rows else 64
    best: tuple[float, Tile] | None = None
    for vectors in range(1, min(total, 8) + 1):
        for height in range(1, min(limit, target.vector_registers) + 1):
            # run-time row counts are covered by a power of two and its halves
            if not fits(target, height, vectors) or (not isinstance(rows, int) and height not in (1, 2, 4, 8)):
                continue
            work = _work(target, limit, total, height, vectors)
            if best is None or work < best[0]:
                best = work, Tile(height, vectors, lane_count)
    assert best is not None, target
    return best[1]


def _work(target: Target, rows: int, vectors: int, height: int, width: int) -> float:
    """Cycles per term over the whole matrix."""
    panels = -(-vectors // width)
    full, rest = divmod(rows, height)
    return panels * (full * step_cycles(target, height, width) + (step_cycles(target, rest, width) if rest else 0))


def step_cycles(target: Target, height: int, width: int) -> float:
    """Cycles of one step of a tile: its FMAs, the latency where they are few, or its loads; and a little for the loop."""
    return max(height * width / target.fma_ports, target.fma_latency + 0.3, (height + width) / target.load_ports) + 0.2


def micro_kernel(
    nest: Nest,
    tile: Tile,
    dtype: DType,
    terms: Callable[[], AbstractContextManager],
    a: Callable[[int, object], Expr],
    b: Callable[[int, DimLike, object], Expr],
) -> Accumulator:
    """Runs the tile over all terms. ``terms`` opens the loops over terms and yields what names one; ``a(row, term)`` is a
    scalar and ``b(vector, lane, term)`` a weight."""
    buffer = nest.alloc(dtype, (tile.rows, tile.vectors, tile.lanes), Space.REGISTER)
    acc = Accumulator(buffer, tile, dtype)
    with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                nest.store(buffer, (row, vector, lane), const(0, dtype))
    with terms() as term:
        scalars = [nest.let(cast(a(row, term), dtype), "a") for row in range(tile.rows)]
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            weights = [nest.let(cast(b(vector, lane, term), dtype), "b") for vector in range(tile.vectors)]
            for row, scalar in enumerate(scalars):
                for vector, weight in enumerate(weights):
                    nest.store(buffer, (row, vector, lane), _multiply_add(scalar, weight, acc.at(row, vector, lane)))
    return acc


def _multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    if c.dtype.is_float:
        return Op("fma", (a, b, c), c.dtype)
    return Op("add", (Op("mul", (a, b), c.dtype), c), c.dtype)
