"""Depthwise convolution on blocked activations: every channel has its own kernel, lanes never mix.

    for each kernel row:  w[0..kw) in registers
        for each input position that the tile reads:  x = one vector;  acc[column] += x * w[tap] for every column it serves

A vector of input is loaded once per kernel row and serves up to kw columns, so loads stay below FMAs.
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
from tcompile.ir.blocking import depthwise_columns
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Space
from tcompile.ir.target import Target
from tcompile.ir.tiles import MANY_ROWS, Tile


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
        """Columns that leave registers for a row of the kernel."""
        most = max(self.target.vector_registers - self.kernel[-1] - 2, 1)
        if not isinstance(self.columns, int):
            return Tile(max(size for size in (8, 4, 2, 1) if size <= most), 1, lane_count), 1
        length = min(max(self.columns, 1), 4 * MANY_ROWS)
        height = depthwise_columns(self.target, length, most, self.kernel[-1], self.core.attrs["strides"][-1])
        return Tile(height, 1, lane_count), 1

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

    def _sums(self, image: DimLike, block: DimLike, first: DimLike, height: int, row: Shape, start: DimLike) -> Accumulator:
        """The sums of the lanes from ``first`` of a tile."""
        nest, tile = self.nest, Tile(height, 1, self.tile.lanes)
        acc = Accumulator(nest.alloc(self.dtype, (height, 1, tile.lanes), Space.REGISTER), tile, self.dtype)
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            initial = const(0, self.dtype) if self.bias is None else nest.let(self.bias(block, first + lane), "bias")
            for column in range(height):
                nest.store(acc.buffer, (column, 0, lane), initial)
        with nest.loops(self.kernel[:-1]) as outer, nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            self._kernel_row(acc, partial(self._input, image, block, row, start, outer), (block, *outer), first + lane, lane)
        return acc

    def _kernel_row(self, acc: Accumulator, source, weights: Shape, channel: DimLike, lane: DimLike) -> None:
        """One row of the kernel over the tile, in the order of input positions."""
        nest, width, height = self.nest, self.kernel[-1], acc.tile.rows
        stride, dilation = self.core.attrs["strides"][-1], self.core.attrs["dilation"][-1]
        taps = [nest.let(cast(self._weight((*weights, tap), channel), self.dtype), "w") for tap in range(width)]
        uses: dict[int, list[tuple[int, int]]] = {}
        for column in range(height):
            for tap in range(width):
                uses.setdefault(column * stride + tap * dilation, []).append((column, tap))
        for position, served in sorted(uses.items()):
            x = nest.let(cast(source(position, channel), self.dtype), "x")
            for column, tap in served:
                nest.store(acc.buffer, (column, 0, lane), multiply_add(x, taps[tap], acc.at(column, 0, lane)))

    def _weight(self, index: Shape, channel: DimLike) -> Expr:
        return Load(self.draft.read(self.w), (ravel((*index, channel), self.w.shape),), self.w.dtype)

    def _input(self, image: DimLike, block: DimLike, row: Shape, start: DimLike, tap: Shape, position: int, channel: DimLike) -> Expr:
        attrs = self.core.attrs
        outer = tuple(r * s + k * d for r, s, k, d in zip(row, attrs["strides"], tap, attrs["dilation"], strict=False))
        return self.draft.element(self.x, (image, block, *outer, start * attrs["strides"][-1] + position, channel))


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
