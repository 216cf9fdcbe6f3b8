"""Convolutions of one vector of output channels at a time, by rows of their kernel.

    for each part of the kernel's columns, for each term outside of it:  w[the part's taps] in registers
        for each input position that the tile reads:  x = one vector;  acc[column] += x * w[tap] for every column it serves

A vector of input is loaded once a part, and serves as many columns as the part has taps, so loads stay below FMAs, where a tile
of one vector that takes one tap at a time has a load for each FMA. A wide kernel has several parts, whose loops are apart: in
one, inputs that both read would take registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tcompile.codegen.cpu_conv import DirectConv
from tcompile.codegen.cpu_epilogue import store_tile
from tcompile.codegen.cpu_sweep import Stage
from tcompile.codegen.cpu_tile import Accumulator, multiply_add
from tcompile.codegen.scalar import cast, const
from tcompile.ir import dims
from tcompile.ir.blocking import even_parts, row_tile
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Expr, LoopKind, Space
from tcompile.ir.tiles import MANY_ROWS, Tile

_SYMBOLIC_COLUMNS = 8  # of a tile, where the length of rows is not known


@dataclass(frozen=True)
class RowAt:
    """Part of a row of outputs: ``columns`` from ``start`` of ``row``, the lanes of an output block from ``first``."""

    image: DimLike
    block: DimLike
    first: DimLike
    row: Shape
    start: DimLike
    columns: int


class KernelRows(DirectConv):
    """The loops of a tile; subclasses say what the terms outside of a row of the kernel are, and how they are loaded."""

    turns: Sequence[int] = (0,)  # kinds of terms, each with loops of its own

    def outer_terms(self) -> Shape:
        """Extents of the loops over terms outside of a row of the kernel."""
        return self.kernel[:-1]

    def row_weight(self, at: RowAt, turn: int, term: Shape, tap: DimLike, lane: DimLike) -> Expr:
        """The weights of a vector."""
        raise NotImplementedError

    def row_input(self, at: RowAt, turn: int, term: Shape, tap: DimLike, lane: DimLike, position: int) -> Expr:
        """What the first column reads under a tap, and ``position`` elements behind that."""
        raise NotImplementedError

    def _pointwise(self) -> bool:
        return False

    def _choose(self, lane_count: int) -> tuple[Tile, int]:
        """Columns and a part of a row of the kernel that fill the registers."""
        attrs, width, rows = self.core.attrs, max(self.kernel[-1], 1), dims.product(self.outer_terms())
        choose = partial(row_tile, self.target, rows=rows, kernel=width, stride=attrs["strides"][-1], dilation=attrs["dilation"][-1])
        if isinstance(self.columns, int):
            found = choose(min(max(self.columns, 1), 4 * MANY_ROWS))
        else:
            found = choose(_SYMBOLIC_COLUMNS, chosen=True)
        self.taps_a_turn = found.taps
        return Tile(found.columns, 1, lane_count), 1

    def row_parts(self) -> list[tuple[int, int, int]]:
        """Equal tiles: one of few columns would wait for its sums."""
        assert isinstance(self.columns, int), self.columns
        return even_parts(self.columns, self.tile.rows)

    def _tile(self, image: DimLike, block: DimLike, blocks: int, height: int, row: Shape, start: DimLike) -> None:
        with self.nest.loop(self.block // self.tile.lanes) as part:
            first = part * self.tile.lanes
            acc = self._sums(RowAt(image, block, first, row, start, height))

            def place(column: DimLike, wide: DimLike, lane: DimLike) -> Shape:
                return (image, block, *row, start + column, first + lane)

            store_tile(self.epilogue, acc, place, self.tile.lanes)

    def stage_tile(self, stage: Stage, height: int, row: Shape, start: DimLike, at: DimLike) -> None:
        """The sums of a tile, put at a position of a stage."""
        with self.nest.loop(self.block // self.tile.lanes) as part:
            first = part * self.tile.lanes
            stage.put(self._sums(RowAt(stage.image, stage.block, first, row, start, height)), at, first)

    def _sums(self, at: RowAt) -> Accumulator:
        nest, tile = self.nest, Tile(at.columns, 1, self.tile.lanes)
        acc = Accumulator(nest.alloc(self.dtype, (at.columns, 1, tile.lanes), Space.REGISTER), tile, self.dtype)
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            initial = const(0, self.dtype) if self.bias is None else nest.let(self.bias(at.block, at.first + lane), "bias")
            for column in range(at.columns):
                nest.store(acc.buffer, (column, 0, lane), initial)
        for start, number, size in even_parts(self.kernel[-1], self.taps_a_turn):
            for turn in self.turns:
                with (
                    nest.loop(number) as part,
                    nest.loops(self.outer_terms()) as term,
                    nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane,
                ):
                    tap = start + part * size
                    held = [nest.let(cast(self.row_weight(at, turn, term, tap + k, lane), self.dtype), "w") for k in range(size)]
                    self._part_of_row(acc, held, partial(self.row_input, at, turn, term, tap, lane), lane)
        return acc

    def _part_of_row(self, acc: Accumulator, held: list[Expr], source: Callable[[int], Expr], lane: DimLike) -> None:
        """The taps whose weights are ``held`` over the tile, in the order of input positions; where there are few columns, in an
        order where each is added to once before any is added to again, so that none waits for its last term."""
        height = acc.tile.rows
        stride, dilation = self.core.attrs["strides"][-1], self.core.attrs["dilation"][-1]
        uses: dict[int, list[tuple[int, Expr]]] = {}
        for column in range(height):
            for tap, weight in enumerate(held):
                uses.setdefault(column * stride + tap * dilation, []).append((column, weight))
        apart = len(held) if height <= self.target.fma_ports * self.target.fma_latency else 1
        for position, served in sorted(uses.items(), key=lambda use: (use[0] % apart, use[0])):
            x = self.nest.let(cast(source(position), self.dtype), "x")
            for column, weight in served:
                self.nest.store(acc.buffer, (column, 0, lane), multiply_add(x, weight, acc.at(column, 0, lane)))

    def place_of(self, at: RowAt, kernel: Shape, position: int) -> Shape:
        """The input position of the first column under a kernel position, and ``position`` elements behind that."""
        *outer, last = self._source((*at.row, at.start), kernel)
        return (*outer, last + position)
