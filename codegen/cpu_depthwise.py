"""Depthwise convolution on blocked activations: every channel has its own kernel, lanes never mix.

    for each part of the kernel's columns, for each kernel row:  w[the part's taps] in registers
        for each input position that the tile reads:  x = one vector;  acc[column] += x * w[tap] for every column it serves

A vector of input is loaded once per kernel row and part, and serves as many columns as the part has taps, so loads stay below FMAs.
A wide kernel has several parts, whose loops are apart: in one, inputs that both read would take registers.
"""

from __future__ import annotations

from functools import partial

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_conv import DirectConv
from tcompile.codegen.cpu_epilogue import anchor, store_tile
from tcompile.codegen.cpu_sweep import Stage
from tcompile.codegen.cpu_tile import Accumulator, multiply_add
from tcompile.codegen.draft import Scope
from tcompile.codegen.scalar import cast, const
from tcompile.codegen.templates import Built, template
from tcompile.ir import dims
from tcompile.ir.blocking import even_parts, row_tile
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Space
from tcompile.ir.target import Target
from tcompile.ir.tiles import MANY_ROWS, Tile

_SYMBOLIC_COLUMNS = 8  # of a tile, where the length of rows is not known


class DepthwiseConv(DirectConv):
    """depthwise_blocked: x [N, C/B, spatial, B], w [C/B, kernel, B]. A tile is one vector of channels wide."""

    def _geometry(self) -> None:
        self.kernel = self.w.shape[1:-1]
        self.taps = self.kernel

    def _near(self, units: DimLike, bundles: int) -> None:
        """No bundle reads what another does."""

    def _pointwise(self) -> bool:
        return False

    def _choose(self, lane_count: int) -> tuple[Tile, int]:
        """Columns and a part of a row of the kernel that fill the registers."""
        attrs, width, rows = self.core.attrs, max(self.kernel[-1], 1), dims.product(self.kernel[:-1])
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
            acc = self._sums(image, block, first, height, row, start)

            def place(column: DimLike, wide: DimLike, lane: DimLike) -> Shape:
                return (image, block, *row, start + column, first + lane)

            store_tile(self.epilogue, acc, place, self.tile.lanes)

    def stage_tile(self, stage: Stage, height: int, row: Shape, start: DimLike, at: DimLike) -> None:
        """The sums of a tile, put at a position of a stage."""
        with self.nest.loop(self.block // self.tile.lanes) as part:
            first = part * self.tile.lanes
            stage.put(self._sums(stage.image, stage.block, first, height, row, start), at, first)

    def _sums(self, image: DimLike, block: DimLike, first: DimLike, height: int, row: Shape, start_of_row: DimLike) -> Accumulator:
        """The sums of the lanes from ``first`` of a tile."""
        nest, tile = self.nest, Tile(height, 1, self.tile.lanes)
        acc = Accumulator(nest.alloc(self.dtype, (height, 1, tile.lanes), Space.REGISTER), tile, self.dtype)
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            initial = const(0, self.dtype) if self.bias is None else nest.let(self.bias(block, first + lane), "bias")
            for column in range(height):
                nest.store(acc.buffer, (column, 0, lane), initial)
        for start, number, size in even_parts(self.kernel[-1], self.taps_a_turn):
            with (
                nest.loop(number) as part,
                nest.loops(self.kernel[:-1]) as outer,
                nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane,
            ):
                tap = start + part * size
                source = partial(self._input, image, block, row, start_of_row, (*outer, tap))
                self._part_of_row(acc, source, (block, *outer), tap, size, first + lane, lane)
        return acc

    def _part_of_row(self, acc: Accumulator, source, weights: Shape, first: DimLike, taps: int, channel: DimLike, lane: DimLike) -> None:
        """``taps`` elements of a row of the kernel from ``first`` over the tile, in the order of input positions; where there are few
        columns, in an order where each is added to once before any is added to again, so that none waits for its last term."""
        nest, height = self.nest, acc.tile.rows
        stride, dilation = self.core.attrs["strides"][-1], self.core.attrs["dilation"][-1]
        held = [nest.let(cast(self._weight((*weights, first + tap), channel), self.dtype), "w") for tap in range(taps)]
        uses: dict[int, list[tuple[int, int]]] = {}
        for column in range(height):
            for tap in range(taps):
                uses.setdefault(column * stride + tap * dilation, []).append((column, tap))
        apart = taps if height <= self.target.fma_ports * self.target.fma_latency else 1
        for position, served in sorted(uses.items(), key=lambda use: (use[0] % apart, use[0])):
            x = nest.let(cast(source(position, channel), self.dtype), "x")
            for column, tap in served:
                nest.store(acc.buffer, (column, 0, lane), multiply_add(x, held[tap], acc.at(column, 0, lane)))

    def _weight(self, index: Shape, channel: DimLike) -> Expr:
        return Load(self.draft.read(self.w), (ravel((*index, channel), self.w.shape),), self.w.dtype)

    def _input(self, image: DimLike, block: DimLike, row: Shape, start: DimLike, tap: Shape, position: int, channel: DimLike) -> Expr:
        """The input ``position`` elements behind that of the tile's first column under a kernel position."""
        at = self._source((*row, start), tap)
        return self.draft.element(self.x, (image, block, *at[:-1], at[-1] + position, channel))


@template("depthwise_blocked")
@template("fused.conv")
def depthwise(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of a depthwise convolution, alone or with its epilogue; None for other convolutions."""
    core = anchor(node)
    if core is None or core.op != "depthwise_blocked":
        return None
    draft = DepthwiseConv(node, scope, target, "depthwise").write()
    draft.tags["template"] = "depthwise"
    return [Built(*draft.finish())]
