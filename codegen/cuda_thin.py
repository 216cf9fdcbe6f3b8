"""Products of a matrix with a few vectors: bound by memory, so every multiprocessor reads its share of the matrix once.

Where terms are neighbours in memory, a warp sums each column, its lanes 32 terms apart, and joins them by shuffles. Where columns are,
a warp reads 32 of them and the warps of a block take turns at the terms; their sums meet in shared memory and are added in order.
"""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.cuda_block import ThreadBlock, thread_block
from tcompile.codegen.cuda_stage import Side, step_along
from tcompile.codegen.draft import Draft
from tcompile.codegen.scalar import cast, compare, const, op
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Barrier, Expr, Load, LoopKind, Op, Shuffle, Space

LANES = 32
FEW = 8  # vectors at most
WARPS_BY_TERMS = 8  # columns of a block
MOST_WARPS = 16  # that share the terms of 32 columns
_TERMS_OF_A_WARP = 16
_GROUP = 4  # loads of a lane that are under way together

Element = Callable[[DimLike, Shape, DimLike, Expr | None], Expr]


class Thin:
    """The loops of one product, summed in ``dtype``.

    ``few`` and ``many`` are how elements are reached, what takes a free position apart, and the extent, of the vectors and of the
    matrix; ``store(batch, vector, column, sum)`` writes a result.
    """

    def __init__(
        self,
        draft: Draft,
        few: tuple[Element, Callable[[DimLike], Shape], int],
        many: tuple[Element, Callable[[DimLike], Shape], DimLike],
        terms: DimLike,
        batch: DimLike,
        dtype: DType,
        store: Callable[[DimLike, DimLike, DimLike, Expr], None],
    ) -> None:
        self.draft, self.nest = draft, draft.nest
        self.few, self.few_place, self.vectors = few
        self.many, self.many_place, self.columns = many
        self.terms, self.batch, self.store = terms, batch, store
        self.dtype = dtype

    def write(self) -> Draft:
        """The whole kernel."""
        side = Side(lambda place, term, guard: self.many(0, place, term, guard), 0, self.columns, LANES, self.many_place)
        by_terms = step_along(self.nest, side, self.terms, LANES).by_terms
        self.draft.tags["thin"] = "by terms" if by_terms else "by columns"
        if by_terms:
            self._by_terms()
        else:
            self._by_columns()
        return self.draft

    def _sums(self) -> str:
        acc = self.nest.alloc(self.dtype, (self.vectors,), Space.REGISTER)
        with self.nest.loop(self.vectors, LoopKind.UNROLLED) as r:
            self.nest.store(acc, r, const(0, self.dtype))
        return acc

    def _term(self, acc: str, batch: DimLike, column: Shape, term: DimLike) -> None:
        """acc[r] += a[r, term] * b[term, column] for all vectors."""
        nest, dtype = self.nest, self.dtype
        right = cast(self.many(batch, column, term, None), dtype)
        right = nest.let(right)
        with nest.loop(self.vectors, LoopKind.UNROLLED) as r:
            left = cast(self.few(batch, self.few_place(r), term, None), dtype)
            total = Load(acc, (r,), dtype)
            value = Op("fma", (left, right, total), dtype) if dtype.is_float else op("add", total, op("mul", left, right))
            nest.store(acc, r, value)

    def _by_terms(self) -> None:
        nest, ranges = self.nest, self.nest.ranges
        blocks = dims.ceildiv(self.columns, WARPS_BY_TERMS, ranges)
        with thread_block(nest, self.batch * blocks, WARPS_BY_TERMS * LANES) as block:
            batch, first = self._split(block, blocks)
            lane = block.named(dims.mod(block.thread, LANES, ranges), LANES - 1)
            warp = block.named(dims.floordiv(block.thread, LANES, ranges), WARPS_BY_TERMS - 1)
            number = first * WARPS_BY_TERMS + warp
            with nest.branch(compare("lt", number, self.columns)):
                acc, column = self._sums(), self.many_place(number)
                self._strided(acc, batch, column, lane, LANES)
                with nest.loop(self.vectors, LoopKind.UNROLLED) as r:
                    value: Expr = nest.let(Load(acc, (r,), self.dtype))
                    for distance in (16, 8, 4, 2, 1):
                        value = nest.let(op("add", value, Shuffle(value, distance)))
                    with nest.branch(compare("eq", lane, 0)):
                        self.store(batch, r, number, value)

    def _strided(self, acc: str, batch: DimLike, column: Shape, first: DimLike, step: int) -> None:
        """The terms first, first + step, ...; a few at a time, so that their loads are under way together."""
        nest = self.nest
        rounds = dims.floordiv(self.terms, step * _GROUP, nest.ranges)
        with nest.loop(rounds) as turn, nest.loop(_GROUP, LoopKind.UNROLLED) as k:
            self._term(acc, batch, column, (turn * _GROUP + k) * step + first)
        done = rounds * (step * _GROUP)
        rest = self.terms - done
        if rest == 0:
            return
        with nest.loop(dims.ceildiv(rest, step, nest.ranges)) as turn:
            term = done + turn * step + first
            with nest.branch(compare("lt", term, self.terms)):
                self._term(acc, batch, column, term)

    def _by_columns(self) -> None:
        nest, ranges = self.nest, self.nest.ranges
        warps = MOST_WARPS
        if isinstance(self.terms, int):
            while warps > 1 and warps * _TERMS_OF_A_WARP > self.terms:
                warps //= 2
        blocks = dims.ceildiv(self.columns, LANES, ranges)
        with thread_block(nest, self.batch * blocks, warps * LANES) as block:
            batch, first = self._split(block, blocks)
            lane = block.named(dims.mod(block.thread, LANES, ranges), LANES - 1)
            warp = block.named(dims.floordiv(block.thread, LANES, ranges), warps - 1)
            number = first * LANES + lane
            parts = block.alloc(self.dtype, (warps, self.vectors, LANES))
            acc = self._sums()
            with nest.branch(compare("lt", number, self.columns)):
                self._strided(acc, batch, self.many_place(number), warp, warps)
            with nest.loop(self.vectors, LoopKind.UNROLLED) as r:
                nest.store(parts, (warp, r, lane), Load(acc, (r,), self.dtype))
            nest.emit(Barrier())
            # warp w finishes the vectors w, w + warps, ...
            with nest.loop(-(-self.vectors // warps)) as turn:
                r = turn * warps + warp
                inside = compare("lt", number, self.columns)
                with nest.branch(Op("and", (compare("lt", r, self.vectors), inside), inside.dtype)):
                    r = block.named(r, self.vectors - 1)
                    total: Expr = Load(parts, (0, r, lane), self.dtype)
                    for k in range(1, warps):
                        total = op("add", total, Load(parts, (k, r, lane), self.dtype))
                    self.store(batch, r, number, nest.let(total))

    def _split(self, block: ThreadBlock, blocks: DimLike) -> tuple[DimLike, DimLike]:
        ranges = self.nest.ranges
        batch = block.named(dims.floordiv(block.number, blocks, ranges), self.batch - 1)
        return batch, block.named(dims.mod(block.number, blocks, ranges), blocks - 1)
