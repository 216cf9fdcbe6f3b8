"""One operand of a product for the tensor cores in shared memory, and its fragments in registers.

Rows of terms ([free][term]) suit ``ldmatrix``; 16-bit elements may also lie as [term][free], which it transposes. float32 elements
that are rounded, or lie as [term][free], are copied as they are too, and rounded on their way into fragments. Where memory has
another order than the stage, or another dtype, elements go through registers.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

from tcompile.codegen.cuda_block import ThreadBlock
from tcompile.codegen.cuda_stage import COPY_BYTES, Piece, Side, step_along
from tcompile.codegen.scalar import both, cast, compare, const, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import BF16, F16, F32, DType
from tcompile.ir.loops import CopyAsync, Expr, Load, LoopKind, Space, Tile, TileOp

ROW_BYTES = 16  # of a matrix of ldmatrix
_PAD_BYTES = 16


class Step(Protocol):
    """The threads of a block and the terms of a step."""

    @property
    def threads(self) -> int: ...

    @property
    def terms(self) -> int: ...


class TensorStage:
    """The buffers of one operand, in dtype ``kind``."""

    def __init__(self, block: ThreadBlock, side: Side, step: Step, terms: DimLike, kind: DType) -> None:
        self.block, self.nest, self.side, self.step, self.terms, self.kind = block, block.nest, side, step, terms, kind
        found = step_along(block.nest, side, terms, step.terms)
        exact = found.dtype == kind and (found.by_terms or kind.bytes == 2)
        self.is_wide = not exact and found.dtype == F32 and kind in (F16, BF16, F32) and found.width > 0
        self.stored = F32 if self.is_wide else kind
        self.is_copy = self.is_wide or (exact and found.width * kind.bytes in COPY_BYTES)
        self.by_terms = found.by_terms or not (self.is_wide or kind.bytes == 2)
        self.reads_along_terms = found.by_terms
        self.width = found.width if self.is_copy else max(4 // kind.bytes, 1) if self.by_terms else 1
        pad = self._pad()
        self.shape = (side.size, step.terms + pad) if self.by_terms else (step.terms, side.size + pad)

    def _pad(self) -> int:
        """Elements behind every row, so that the lanes of an access reach different banks."""
        if not self.is_wide:
            return _PAD_BYTES // self.kind.bytes
        # lanes 4 g + t read column g, terms 2 t and 2 t + 1 (tf32: t)
        return 8 if self.by_terms or self.kind == F32 else 4

    @property
    def bytes(self) -> int:
        """Of one step."""
        return self.shape[0] * self.shape[1] * self.stored.bytes

    def open(self, stages: int) -> None:
        """Takes shared memory for so many steps, and this thread's part of the copies."""
        self.buffer = self.block.alloc(self.stored, (stages, *self.shape))
        self.pieces = self._pieces()

    # Filling ------------------------------------------------------------------------------------------

    def _pieces(self) -> list[Piece]:
        side, step, ranges = self.side, self.step, self.nest.ranges
        count = side.size * step.terms // self.width
        frees, terms = side.size - 1, step.terms - 1
        per_row = step.terms // self.width
        found: list[Piece] = []
        for first in range(0, count, step.threads):
            number = first + self.block.thread
            if not self.by_terms:
                outer = self.block.named(dims.floordiv(number, side.size // self.width, ranges), terms)
                along = self.block.named(dims.mod(number, side.size // self.width, ranges), frees // self.width) * self.width
            elif self.is_copy or self.reads_along_terms:
                outer = self.block.named(dims.floordiv(number, per_row, ranges), frees)
                along = self.block.named(dims.mod(number, per_row, ranges), per_row - 1) * self.width
            else:  # neighbouring threads read neighbours of the free axis
                outer = self.block.named(dims.mod(number, side.size, ranges), frees)
                along = self.block.named(dims.floordiv(number, side.size, ranges), per_row - 1) * self.width
            free, term = (outer, along) if self.by_terms else (along, outer)
            row = side.start + free
            known = next((piece for piece in found if piece.row == row), None)
            inside = known.inside if known else self._named(self._below(row, side.extent, side.size))
            exists = None if first + step.threads <= count else compare("lt", number, count)
            found.append(Piece(outer, along, row, term, known.place if known else side.place(row), inside, exists))
        return found

    def _named(self, cond: Expr | None) -> Expr | None:
        return None if cond is None else self.nest.let(cond)

    def _below(self, index: DimLike, extent: DimLike, step: int) -> Expr | None:
        return None if dims.mod(extent, step) == 0 else compare("lt", index, extent)

    def fetch(self, slot: DimLike, first: DimLike, end: DimLike | None = None) -> str | None:
        """Starts bringing the terms from ``first`` on; nothing beyond ``end``. Returns the registers that wait for ``put``."""
        nest = self.nest
        limit = None if end is None else nest.let(compare("lt", first, end))
        if self.is_copy:
            with nullcontext() if limit is None else nest.branch(limit):
                for piece in self.pieces:
                    self._copy(slot, first, piece)
            return None
        held = nest.alloc(self.kind, (len(self.pieces), self.width), Space.REGISTER)
        for k, piece in enumerate(self.pieces):
            for lane in range(self.width):
                nest.store(held, (k, lane), self._element(first, piece, lane, both(limit, piece.exists)))
        return held

    def _copy(self, slot: DimLike, first: DimLike, piece: Piece) -> None:
        guard = both(piece.inside, self._below(first + piece.term, self.terms, self.step.terms))
        value = self.side.element(piece.place, first + piece.term, guard)
        assert isinstance(value, Load)
        copy = CopyAsync(self.buffer, (slot, piece.outer, piece.along), value.buffer, value.indices, self.width, value.mask)
        if piece.exists is None:
            self.nest.emit(copy)
            return
        with self.nest.branch(piece.exists):
            self.nest.emit(copy)

    def _element(self, first: DimLike, piece: Piece, lane: int, limit: Expr | None) -> Expr:
        term = first + piece.term + lane
        guard = both(both(limit, piece.inside), self._below(term, self.terms, self.step.terms))
        value = cast(self.side.element(piece.place, term, guard), self.kind, saturate=False)
        return value if guard is None else select(guard, value, const(0, self.kind))

    def put(self, slot: DimLike, held: str | None) -> None:
        """Writes what waits in registers into a stage."""
        if held is None:
            return
        for k, piece in enumerate(self.pieces):
            if piece.exists is None:
                self._put(slot, held, k, piece)
                continue
            with self.nest.branch(piece.exists):
                self._put(slot, held, k, piece)

    def _put(self, slot: DimLike, held: str, k: int, piece: Piece) -> None:
        nest = self.nest
        if self.width == 1:
            nest.store(self.buffer, (slot, piece.outer, piece.along), Load(held, (k, 0), self.kind))
            return
        with nest.loop(self.width, LoopKind.VECTOR, self.width) as lane:
            nest.store(self.buffer, (slot, piece.outer, piece.along + lane), Load(held, (k, lane), self.kind))

    # Fragments ----------------------------------------------------------------------------------------

    def load_rows(self, target: str, number: DimLike, slot: DimLike, row: DimLike, term: DimLike, lane: DimLike) -> None:
        """16 rows x 32 bytes of terms as the left fragment ``number``."""
        if self.is_wide:
            for register in range(4):
                self._convert(
                    target, number, register, slot, row + register % 2 * 8, term + register // 2 * (ROW_BYTES // self.kind.bytes), lane
                )
            return
        ranges, half = self.nest.ranges, ROW_BYTES // self.kind.bytes
        if self.by_terms:
            place = (slot, row + dims.mod(lane, 16, ranges), term + dims.floordiv(lane, 16, ranges) * half)
            self.nest.emit(TileOp("ldmatrix_x4", (Tile(target, (number, 0)), Tile(self.buffer, place))))
            return
        matrix = dims.floordiv(lane, 8, ranges)
        column = row + dims.mod(matrix, 2, ranges) * 8
        place = (slot, term + dims.floordiv(lane, 16, ranges) * 8 + dims.mod(lane, 8, ranges), column)
        self.nest.emit(TileOp("ldmatrix_x4_trans", (Tile(target, (number, 0)), Tile(self.buffer, place))))

    def load_columns(self, target: str, number: DimLike, slot: DimLike, column: DimLike, term: DimLike, lane: DimLike) -> None:
        """Two times 8 columns x 32 bytes of terms as the right fragments ``number`` and ``number`` + 1."""
        if self.is_wide:
            for which, register in ((0, 0), (0, 1), (1, 0), (1, 1)):
                there = term + register * (ROW_BYTES // self.kind.bytes)
                self._convert(target, number + which, register, slot, column + which * 8, there, lane)
            return
        ranges, half = self.nest.ranges, ROW_BYTES // self.kind.bytes
        eight, matrix = dims.mod(lane, 8, ranges), dims.floordiv(lane, 8, ranges)
        if self.by_terms:
            place = (slot, column + dims.floordiv(lane, 16, ranges) * 8 + eight, term + dims.mod(matrix, 2, ranges) * half)
            self.nest.emit(TileOp("ldmatrix_x4", (Tile(target, (number, 0)), Tile(self.buffer, place))))
            return
        place = (slot, term + dims.mod(matrix, 2, ranges) * 8 + eight, column + dims.floordiv(lane, 16, ranges) * 8)
        self.nest.emit(TileOp("ldmatrix_x4_trans", (Tile(target, (number, 0)), Tile(self.buffer, place))))

    def _convert(self, target: str, number: DimLike, register: int, slot: DimLike, free: DimLike, term: DimLike, lane: DimLike) -> None:
        """One 32-bit register of a fragment: lane 4 g + t has the terms t (16-bit ones: 2 t and 2 t + 1) of free position g."""
        nest, ranges, per = self.nest, self.nest.ranges, 4 // self.kind.bytes
        position, first = free + dims.floordiv(lane, 4, ranges), term + dims.mod(lane, 4, ranges) * per

        def put(part: DimLike) -> None:
            place = (slot, position, first + part) if self.by_terms else (slot, first + part, position)
            nest.store(target, (number, register * per + part), cast(Load(self.buffer, place, F32), self.kind, saturate=False))

        if self.by_terms and per > 1:
            with nest.loop(per, LoopKind.VECTOR, per) as part:
                put(part)
            return
        for part in range(per):
            put(part)
