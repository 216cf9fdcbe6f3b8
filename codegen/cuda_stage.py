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
from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import both, cast, compare, const, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import CopyAsync, Expr, Load, LoopKind, Space

GROUP = 4
COPY_BYTES = (16, 8, 4)
_PAD_BYTES = 16  # behind every row, so that neighbours in a column lie in different banks

Element = Callable[[Shape, DimLike, Expr | None], Expr]  # (place on the free axes, term, guard)


@dataclass(frozen=True)
class Side:
    """An operand: its elements, where the block's part starts along the free axis, that axis' extent, and the part's.

    ``place`` takes a free position apart into what ``element`` needs of it, once for all terms.
    """

    element: Element
    start: DimLike
    extent: DimLike
    size: int
    place: Callable[[DimLike], Shape] = lambda free: (free,)


@dataclass(frozen=True)
class Along:
    """How an operand lies in memory: whether terms are neighbours, and how many elements one copy can take (0: no plain load)."""

    dtype: DType
    by_terms: bool
    width: int


def step_along(nest: Nest, side: Side, terms: DimLike, step: int) -> Along:
    """What the address of an element says: the axis that steps by one, and the alignment along it."""
    free, term = nest.fresh("q"), nest.fresh("q")
    nest.ranges[free], nest.ranges[term] = Range(0, side.extent - 1), Range(0, terms - 1)
    with nest.nested():
        found = side.element(side.place(dims.symbol(free)), dims.symbol(term), None)
    if not isinstance(found, Load):
        return Along(found.dtype, False, 0)
    (index,) = found.indices
    for by_terms, name, extent, size in ((True, term, terms, step), (False, free, side.extent, side.size)):
        parts = dims.linear(index, name)
        if parts is not None and parts[0] == 1 and found.mask is None:
            return Along(found.dtype, by_terms, _width(nest, found.dtype, parts[1], extent, size))
    return Along(found.dtype, False, 1)


def _width(nest: Nest, dtype: DType, rest: DimLike, extent: DimLike, size: int) -> int:
    for count in (number // dtype.bytes for number in COPY_BYTES if number >= dtype.bytes):
        if size % count == 0 and dims.mod(extent, count) == 0 and dims.mod(rest, count, nest.ranges) == 0:
            return count
    return 1


Reader = Callable[[DimLike], Expr]  # the register of a thread's number-th row or column


@dataclass(frozen=True)
class Piece:
    """Elements that one copy of a thread brings: their place in a stage, their row, the first's term; ``inside``: the row is one of
    the operand's, ``exists``: the copy is one of this thread's."""

    outer: DimLike
    along: DimLike
    row: DimLike
    term: DimLike
    place: Shape
    inside: Expr | None
    exists: Expr | None


class Stage:
    """The buffers of one operand."""

    def __init__(self, block: ThreadBlock, side: Side, tile: BlockTile, terms: DimLike, stages: int) -> None:
        self.block, self.nest, self.side, self.tile, self.terms = block, block.nest, side, tile, terms
        found = step_along(self.nest, side, terms, tile.terms)
        self.dtype, self.by_terms, self.width = found.dtype, found.by_terms, max(found.width, 1)
        self.is_copy = found.width * found.dtype.bytes in COPY_BYTES
        pad = max(_PAD_BYTES // self.dtype.bytes, 1)
        shape = (side.size, tile.terms + pad) if self.by_terms else (tile.terms, side.size + pad)
        self.shape: Shape = (stages, *shape)
        self.buffer = block.alloc(self.dtype, self.shape)
        self.pieces = self._pieces()

    # Copies -------------------------------------------------------------------------------------------

    def _pieces(self) -> list[Piece]:
        """This thread's copies, with what they have in common for all terms."""
        side, tile, ranges = self.side, self.tile, self.nest.ranges
        inner = (tile.terms if self.by_terms else side.size) // self.width
        count = side.size * tile.terms // self.width
        highs = (side.size, tile.terms) if self.by_terms else (tile.terms, side.size)
        found: list[Piece] = []
        for first in range(0, count, tile.threads):
            number = first + self.block.thread
            outer = self.block.named(dims.floordiv(number, inner, ranges), highs[0] - 1)
            along = self.block.named(dims.mod(number, inner, ranges) * self.width, highs[1] - self.width)
            free, term = (outer, along) if self.by_terms else (along, outer)
            row = side.start + free
            known = next((piece for piece in found if piece.row == row), None)
            inside = known.inside if known else self._named(self._below(row, side.extent, side.size))
            exists = None if first + tile.threads <= count else compare("lt", number, count)
            found.append(Piece(outer, along, row, term, known.place if known else side.place(row), inside, exists))
        return found

    def _named(self, cond: Expr | None) -> Expr | None:
        return None if cond is None else self.nest.let(cond)

    def fill(self, slot: DimLike, first: DimLike, moved: DimLike = 0) -> None:
        """Copies the terms from ``first`` on, ``moved`` rows on along the free axis, into a stage. What is beyond the operand is 0."""
        for piece in self.pieces:
            if piece.exists is None:
                self._copy(slot, first, moved, piece)
                continue
            with self.nest.branch(piece.exists):
                self._copy(slot, first, moved, piece)

    def _copy(self, slot: DimLike, first: DimLike, moved: DimLike, piece: Piece) -> None:
        side, place, inside = self.side, piece.place, piece.inside
        if moved != 0:
            place, inside = side.place(piece.row + moved), self._below(piece.row + moved, side.extent, side.size)
        guard = both(inside, self._below(first + piece.term, self.terms, self.tile.terms))
        value, target = side.element(place, first + piece.term, guard), (slot, piece.outer, piece.along)
        if self.is_copy and isinstance(value, Load):
            self.nest.emit(CopyAsync(self.buffer, target, value.buffer, value.indices, self.width, value.mask))
            return
        if guard is not None and not isinstance(value, Load):
            value = select(guard, value, const(0, self.dtype))
        self.nest.store(self.buffer, target, value)

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

    def fragment(self, slot: DimLike, first: DimLike, thread: DimLike, count: int, dtype: DType) -> Callable[[DimLike], Reader]:
        """A thread's part of GROUP terms. The first call, with a term, loads into registers; its result gives the elements."""
        if not self.by_terms:
            return lambda term: self._row(slot, first + term, thread, count, dtype)
        name = self.nest.alloc(dtype, (count, GROUP), Space.REGISTER)
        with self.nest.loop(count, LoopKind.UNROLLED) as number, self.nest.loop(GROUP, LoopKind.VECTOR, GROUP) as lane:
            place = (slot, self.owned(number, thread, count), first + lane)
            self.nest.store(name, (number, lane), cast(Load(self.buffer, place, self.dtype), dtype))
        return lambda term: lambda number: Load(name, (number, term), dtype)

    def _row(self, slot: DimLike, term: DimLike, thread: DimLike, count: int, dtype: DType) -> Reader:
        nest = self.nest
        name = nest.alloc(dtype, (count,), Space.REGISTER)
        if self.grouped(count):
            with nest.loop(count // GROUP, LoopKind.UNROLLED) as group, nest.loop(GROUP, LoopKind.VECTOR, GROUP) as lane:
                place = (slot, term, self.owned(group * GROUP + lane, thread, count, group=group))
                nest.store(name, (group * GROUP + lane,), cast(Load(self.buffer, place, self.dtype), dtype))
        else:
            with nest.loop(count, LoopKind.UNROLLED) as number:
                nest.store(name, number, cast(Load(self.buffer, (slot, term, self.owned(number, thread, count)), self.dtype), dtype))
        return lambda number: Load(name, (number,), dtype)
