"""The micro-kernel that GEMM and convolution share.

A tile is ``rows`` x ``vectors`` accumulators. Each step loads ``vectors`` vectors of weights, broadcasts one scalar per row
and issues rows * vectors FMAs, all independent:

    acc[rows][vectors][lanes] = 0
    for each term:  b[v] = B(v);  for i: a = A(i);  for v: acc[i][v] = fma(a, b[v], acc[i][v])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import cast, const
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Expr, Load, LoopKind, Op, Space
from tcompile.ir.tiles import Tile


@dataclass(frozen=True)
class Accumulator:
    """A register tile after its micro-kernel ran."""

    buffer: str
    tile: Tile
    dtype: DType

    def at(self, row: int, vector: int, lane: DimLike) -> Expr:
        return Load(self.buffer, (row, vector, lane), self.dtype)


def micro_kernel(
    nest: Nest,
    tile: Tile,
    dtype: DType,
    terms: Callable[[], AbstractContextManager],
    a: Callable[[int, object], Expr],
    b: Callable[[int, DimLike, object], Expr],
    initial: Callable[[int, int, DimLike], Expr] | None = None,
    combine: Callable[[Expr, Expr, Expr], Expr] | None = None,
    chains: int = 1,
) -> Accumulator:
    """Runs the tile over all terms. ``terms`` opens the loops over terms and yields what names one; ``a(row, term)`` is a
    scalar, ``b(vector, lane, term)`` a weight and ``initial(row, vector, lane)`` what the sum starts from, else 0.
    ``combine(a, b, sum)`` is the next sum: by default a * b + sum. ``chains``: a name of terms is a tuple of that many, whose
    sums are kept apart, and added pair by pair at the end."""
    combine = combine or multiply_add
    if chains > 1:
        return _in_chains(nest, tile, dtype, terms, a, b, combine, chains)
    buffer = nest.alloc(dtype, (tile.rows, tile.vectors, tile.lanes), Space.REGISTER)
    acc = Accumulator(buffer, tile, dtype)
    with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        for row in range(tile.rows):
            for vector in range(tile.vectors):
                nest.store(buffer, (row, vector, lane), const(0, dtype) if initial is None else initial(row, vector, lane))
    with terms() as term:
        scalars = [nest.let(cast(a(row, term), dtype), "a") for row in range(tile.rows)]
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            weights = [nest.let(cast(b(vector, lane, term), dtype), "b") for vector in range(tile.vectors)]
            for row, scalar in enumerate(scalars):
                for vector, weight in enumerate(weights):
                    nest.store(buffer, (row, vector, lane), combine(scalar, weight, acc.at(row, vector, lane)))
    return acc


def _in_chains(
    nest: Nest, tile: Tile, dtype: DType, terms: Callable, a: Callable, b: Callable, combine: Callable, chains: int
) -> Accumulator:
    """The tile with ``chains`` sums for each of its elements."""

    def part(chain: int, operand: Callable) -> Callable:
        return lambda *at: operand(*at[:-1], at[-1][chain])

    wide = Tile(tile.rows * chains, tile.vectors, tile.lanes)
    buffer = nest.alloc(dtype, (wide.rows, wide.vectors, wide.lanes), Space.REGISTER)
    acc = Accumulator(buffer, wide, dtype)
    with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        for row in range(wide.rows):
            for vector in range(wide.vectors):
                nest.store(buffer, (row, vector, lane), const(0, dtype))
    with terms() as term:
        scalars = [nest.let(cast(part(k // tile.rows, a)(k % tile.rows, term), dtype), "a") for k in range(wide.rows)]
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            for chain in range(chains):
                weights = [nest.let(cast(part(chain, b)(vector, lane, term), dtype), "b") for vector in range(tile.vectors)]
                for row in range(chain * tile.rows, (chain + 1) * tile.rows):
                    for vector, weight in enumerate(weights):
                        nest.store(buffer, (row, vector, lane), combine(scalars[row], weight, acc.at(row, vector, lane)))
    with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
        while chains > 1:
            chains //= 2
            for row in range(chains * tile.rows):
                for vector in range(tile.vectors):
                    both = Op("add", (acc.at(row, vector, lane), acc.at(row + chains * tile.rows, vector, lane)), dtype)
                    nest.store(buffer, (row, vector, lane), both)
    return Accumulator(buffer, tile, dtype)


@contextmanager
def in_turns(nest: Nest, extent: DimLike, most: int) -> Iterator[DimLike]:
    """A loop over ``extent`` terms, as many a turn as divide it, ``most`` at the utmost: the loop's own operations have no free slot
    beside few FMAs, and the machine foresees the end of loops of few turns."""
    turn = next((k for k in range(min(extent, most), 0, -1) if extent % k == 0), 1) if isinstance(extent, int) else 1
    with nest.loop(dims.floordiv(extent, turn)) as step:
        if turn == 1:
            yield step
            return
        with nest.loop(turn, LoopKind.UNROLLED) as term:
            yield step * turn + term


def words_dot(parts: int) -> Callable[[Expr, Expr, Expr], Expr]:
    """The ``combine`` of words that hold 2 halves, or 4 bytes."""
    return lambda a, b, c: Op(f"dot{parts}", (a, b, c), c.dtype)


def multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c: one rounding for floats, wrapping for integers."""
    if c.dtype.is_float:
        return Op("fma", (a, b, c), c.dtype)
    return Op("add", (Op("mul", (a, b), c.dtype), c), c.dtype)
