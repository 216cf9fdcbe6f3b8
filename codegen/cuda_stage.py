"""One operand of a product in shared memory: how it gets there, and how a thread's part of it gets into registers.

A matrix lies as its elements do in memory: [free][term] where terms are neighbours (``by_terms``), else [term][free]. Copies are
asynchronous and 16 bytes wide where the addresses allow it, else 8 or 4; narrower ones go through registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tcompile.codegen.cuda_block import ThreadBlock
from tcompile.codegen.cuda_tile import BlockTile
from tcompile.codegen.scalar import both, cast, compare, const, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import CopyAsync, Expr, Load, LoopKind, Space

GROUP = 4
_COPY_BYTES = (16, 8, 4)
_PAD_BYTES = 16  # behind every row, so that neighbours in a column lie in different banks

Element = Callable[[DimLike, DimLike, Expr | None], Expr]  # (free, term, guard)


@dataclass(frozen=True)
class Side:
    """An operand: its elements, where the block's part starts along the free axis, that axis' extent, and the part's."""

    element: Element
    start: DimLike
    extent: DimLike
    size: int


class Stage:
    """The buffers of one operand."""

    def __init__(self, block: ThreadBlock, side: Side, tile: BlockTile, terms: DimLike, stages: int) -> None:
        self.block, self.nest, self.side, self.tile, self.terms = block, block.nest, side, tile, terms
        self.dtype, self.by_terms, self.width, self.is_copy = self._layout()
        pad = max(_PAD_BYTES // self.dtype.bytes, 1)
        shape = (side.size, tile.terms + pad) if self.by_terms else (tile.terms, side.size + pad)
        self.shape: Shape = (stages, *shape)
        self.buffer = block.alloc(self.dtype, self.shape)

    def _layout(self) -> tuple[DType, bool, int, bool]:
        """(dtype, whether terms are neighbours, elements of a copy, whether copies can be asynchronous)."""
        nest = self.nest
        free, term = nest.fresh("q"), nest.fresh("q")
        nest.ranges[free], nest.ranges[term] = Range(0, self.side.extent - 1), Range(0, self.terms - 1)
        with nest.nested():
            found = self.side.element(dims.symbol(free), dims.symbol(term), None)
        if not isinstance(found, Load):
            return found.dtype, False, 1, False
        (index,) = found.indices
        for by_terms, name, extent, size in ((True, term, self.terms, self.tile.terms), (False, free, self.side.extent, self.side.size)):
            parts = dims.linear(index, name)
            if parts is not None and parts[0] == 1 and found.mask is None:
                width = self._width(found.dtype, parts[1], extent, size)
                return found.dtype, by_terms, max(width, 1), width * found.dtype.bytes in _COPY_BYTES
        return found.dtype, False, 1, found.dtype.bytes in _COPY_BYTES

    def _width(self, dtype: DType, rest: DimLike, extent: DimLike, size: int) -> int:
        for count in (number // dtype.bytes for number in _COPY_BYTES if number >= dtype.bytes):
            if size % count == 0 and dims.mod(extent, count) == 0 and dims.mod(rest, count, self.nest.ranges) == 0:
                return count
        return 1

    # Copies -------------------------------------------------------------------------------------------

    def fill(self, slot: DimLike, first: DimLike, moved: DimLike = 0) -> None:
        """Copies the terms from ``first`` on, ``moved`` rows on along the free axis, into a stage. What is beyond the operand is 0."""
        side, tile, width = self.side, self.tile, self.width
        inner = (tile.terms if self.by_terms else side.size) // width
        pieces = side.size * tile.terms // width
        with self.nest.loop(-(-pieces // tile.threads), LoopKind.UNROLLED) as turn:
            piece = turn * tile.threads + self.block.thread
            if pieces % tile.threads:
                with self.nest.branch(compare("lt", piece, pieces)):
                    self._piece(slot, first, moved, piece, inner)
            else:
                self._piece(slot, first, moved, piece, inner)

    def _piece(self, slot: DimLike, first: DimLike, moved: DimLike, piece: DimLike, inner: int) -> None:
        nest, side, ranges = self.nest, self.side, self.nest.ranges
        outer = self.block.named(dims.floordiv(piece, inner, ranges), max(side.size, self.tile.terms) - 1)
        along = self.block.named(dims.mod(piece, inner, ranges) * self.width, max(side.size, self.tile.terms) - 1)
        free, term = (outer, along) if self.by_terms else (along, outer)
        place = (slot, outer, along)
        row = side.start + moved + free
        guard = both(self._below(row, side.extent, side.size), self._below(first + term, self.terms, self.tile.terms))
        value = side.element(row, first + term, guard)
        if self.is_copy and isinstance(value, Load):
            nest.emit(CopyAsync(self.buffer, place, value.buffer, value.indices, self.width, value.mask))
            return
        if guard is not None and not isinstance(value, Load):
            value = select(guard, value, const(0, self.dtype))
        nest.store(self.buffer, place, value)

    def _below(self, index: DimLike, extent: DimLike, step: int) -> Expr | None:
        return None if dims.mod(extent, step) == 0 else compare("lt", index, extent)

    # Registers ----------------------------------------------------------------------------------------

    def grouped(self, count: int) -> bool:
        """Whether a thread's free positions are groups of neighbours."""
        return not self.by_terms and count % GROUP == 0

    def owned(self, number: DimLike, thread: DimLike, count: int, group: DimLike | None = None) -> DimLike:
        """The position, within the block's part, of a thread's ``number``-th row or column."""
        threads = self.side.size // count
        if not self.grouped(count):
            return number * threads + thread
        group = dims.floordiv(number, GROUP, self.nest.ranges) if group is None else group
        return group * (GROUP * threads) + thread * GROUP + (number - group * GROUP)

    @contextmanager
    def each(self, count: int) -> Iterator[DimLike]:
        """A thread's rows or columns, one after the other, written out."""
        if not self.grouped(count):
            with self.nest.loop(count, LoopKind.UNROLLED) as number:
                yield number
            return
        with self.nest.loop(count // GROUP, LoopKind.UNROLLED) as group, self.nest.loop(GROUP, LoopKind.UNROLLED) as one:
            yield group * GROUP + one

    def fragment(self, slot: DimLike, first: DimLike, thread: DimLike, count: int, dtype: DType) -> Callable[[DimLike, DimLike], Expr]:
        """Loads a thread's part of GROUP terms into registers; returns (number, term) -> value."""
        nest = self.nest
        if self.by_terms:
            name = nest.alloc(dtype, (count, GROUP), Space.REGISTER)
            with nest.loop(count, LoopKind.UNROLLED) as number, nest.loop(GROUP, LoopKind.VECTOR, GROUP) as lane:
                place = (slot, self.owned(number, thread, count), first + lane)
                nest.store(name, (number, lane), cast(Load(self.buffer, place, self.dtype), dtype))
            return lambda number, term: Load(name, (number, term), dtype)
        name = nest.alloc(dtype, (GROUP, count), Space.REGISTER)
        with nest.loop(GROUP, LoopKind.UNROLLED) as term:
            if self.grouped(count):
                with nest.loop(count // GROUP, LoopKind.UNROLLED) as group, nest.loop(GROUP, LoopKind.VECTOR, GROUP) as lane:
                    place = (slot, first + term, self.owned(group * GROUP + lane, thread, count, group=group))
                    nest.store(name, (term, group * GROUP + lane), cast(Load(self.buffer, place, self.dtype), dtype))
            else:
                with nest.loop(count, LoopKind.UNROLLED) as number:
                    place = (slot, first + term, self.owned(number, thread, count))
                    nest.store(name, (term, number), cast(Load(self.buffer, place, self.dtype), dtype))
        return lambda number, term: Load(name, (term, number), dtype)
