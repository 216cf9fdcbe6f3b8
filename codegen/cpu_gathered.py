"""Convolution of rows of a table, scaled and shifted by channel: every row is multiplied once, and positions add up what they find.

    which rows there are: ``cpu_gathered_rows``
    parallel for (image, block of outputs):
        for each row of a position, j:
            weights of j and of the block: times the scale; their products with the shift are where each sum begins
            products[j][rows that are used][T * B] = table * weights                  the micro-kernel
        for each position p:
            sum[t] = sum[t - 1] + gain[p] * (products[0][rows[p, 0]][t] + products[1][rows[p, 1]][t] + ...)     for each tap t
            sum[T - 1] is a result: plus bias; stored, or compared with the extremes so far

The products of a block stay in the L2 cache; the sums of the taps stay in registers, each moves on a tap with every position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_gathered_rows import UsedRows, used_rows
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_tile import Accumulator, in_turns, micro_kernel
from tcompile.codegen.cpu_transformed_planes import LINE_BYTES
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import cast, const, op
from tcompile.codegen.templates import Built, template
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import F32, I32, I64
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, LoopKind, Op, Space
from tcompile.ir.target import Target
from tcompile.ir.tiles import Tile, gathered_tile

_TERMS = 8  # of a turn
_MOST_LINES = 4  # of the next weights, that a tile asks for


class GatheredConv:
    """Writes the kernel of one conv_gathered whose used rows are listed."""

    def __init__(self, node: Node, scope: Scope, tile: Tile, used: UsedRows) -> None:
        self.node, self.draft = node, Draft("conv_gathered", node, scope)
        self.nest = self.draft.nest
        self.draft.written_once.add(node.output)
        table, rows, scale, shift, gain, bias, w = node.inputs
        self.blocks, self.parts, self.depth, self.taps, self.block = map(int, w.shape)
        self.images, self.positions, self.entries = rows.shape[0], int(gain.shape[0]), int(table.shape[0])
        self.results, self.columns = self.positions - self.taps + 1, self.taps * self.block
        self.bias_rows = bias.shape[1]
        self.table, self.scale, self.shift, self.gain, self.bias, self.w = map(self.draft.read, (table, scale, shift, gain, bias, w))
        self.tile, self.used = tile, used
        self.listed, self.tiles, self.starts = map(self.draft.read, used.scratch)
        self.most = int(used.listed.shape[2])  # rows of the products of one place
        self.vectors = self.columns // self.tile.lanes
        products = self.entries * self.parts * self.depth * self.columns * self.blocks
        self.draft.flops = 2 * self.images * (products + self.positions * self.columns * self.blocks * self.parts)
        self.draft.tags["tile"] = f"{self.tile.rows}x{self.tile.vectors}x{self.tile.lanes}"

    def write(self) -> Draft:
        """The whole kernel."""
        nest = self.nest
        with nest.loop(self.images * self.blocks, LoopKind.PARALLEL) as task:
            image, block = split_task(nest, task, (self.images, self.blocks))
            self.products = nest.alloc(F32, (self.parts * self.most * self.columns,))
            self.weights = nest.alloc(F32, (self.depth * self.columns,))
            self.start = nest.alloc(F32, (self.columns,))
            with nest.loop(self.parts) as part:
                self._scale(image, block, part)
                following = (block * self.parts + part + 1) * self.depth * self.columns
                with nest.loop(self.columns // self.tile.columns) as panel:
                    self._multiply(image, part, panel, following)
            self._add(image, block)
        return self.draft

    # Products -----------------------------------------------------------------------------------------

    def _scale(self, image: DimLike, block: DimLike, part: DimLike) -> None:
        """Weights times the scale, in panels of a tile's columns; their sums with the shift."""
        nest, lanes, panel = self.nest, self.tile.lanes, self.tile.vectors
        sums = Accumulator(nest.alloc(F32, (1, self.vectors, lanes), Space.REGISTER), Tile(1, self.vectors, lanes), F32)
        with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for vector in range(self.vectors):
                nest.store(sums.buffer, (0, vector, lane), const(0, F32))
        with nest.loop(self.depth) as term:
            channel = ravel((image, part, term), (self.images, self.parts, self.depth))
            scale, shift = (nest.let(Load(name, (channel,), F32), "c") for name in (self.scale, self.shift))
            first = ravel((block, part, term, 0), (self.blocks, self.parts, self.depth, self.columns))
            with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                for vector in range(self.vectors):
                    weight = nest.let(Load(self.w, (first + vector * lanes + lane,), F32), "w")
                    outer, inner = divmod(vector, panel)
                    place = (outer * self.depth + term) * self.tile.columns + inner * lanes + lane
                    nest.store(self.weights, place, op("mul", weight, scale))
                    nest.store(sums.buffer, (0, vector, lane), op("fma", shift, weight, sums.at(0, vector, lane)))
        with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for vector in range(self.vectors):
                nest.store(self.start, vector * lanes + lane, sums.at(0, vector, lane))

    def _multiply(self, image: DimLike, part: DimLike, panel: DimLike, following: DimLike) -> None:
        """A panel of the products of the rows that are used; tiles ask for the weights that follow, in equal shares."""
        nest, line = self.nest, LINE_BYTES // F32.bytes
        full = self.most // self.tile.rows
        share = -(-self.depth * self.columns // (line * full * (self.columns // self.tile.columns)))
        count = Load(self.tiles, (ravel((image, part), self.used.tiles.shape),), I32)
        with nest.loop(nest.let_index(cast(count, I64), Range(0, full))) as step:
            for k in range(share if share <= _MOST_LINES else 0):
                nest.prefetch(self.w, following + ((panel * full + step) * share + k) * line)
            self._tile_of_rows(image, part, panel, step * self.tile.rows)

    def _tile_of_rows(self, image: DimLike, part: DimLike, panel: DimLike, first: DimLike) -> None:
        nest, lanes, columns = self.nest, self.tile.lanes, self.tile.columns
        tile = self.tile
        rows = [self._listed(image, part, first + row) for row in range(tile.rows)]
        acc = micro_kernel(
            nest,
            tile,
            F32,
            terms=self._terms,
            a=lambda row, term: Load(self.table, (rows[row] + term,), F32),
            b=lambda vector, lane, term: Load(self.weights, ((panel * self.depth + term) * columns + vector * lanes + lane,), F32),
            initial=lambda row, vector, lane: Load(self.start, (panel * columns + vector * lanes + lane,), F32),
        )
        with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
            for row in range(tile.rows):
                for vector in range(tile.vectors):
                    place = (part * self.most + first + row) * self.columns + panel * columns + vector * lanes + lane
                    nest.store(self.products, place, acc.at(row, vector, lane))

    def _listed(self, image: DimLike, part: DimLike, place: DimLike) -> DimLike:
        """Where the row of the table begins that is used as the ``place``-th."""
        row = Load(self.listed, (ravel((image, part, place), self.used.listed.shape),), I32)
        return self.nest.let_index(op("mul", cast(row, I64), const(self.depth, I64)), Range(0, (self.entries - 1) * self.depth))

    @contextmanager
    def _terms(self) -> Iterator[DimLike]:
        """A few terms a turn: the machine then foresees the end of so short a loop."""
        with in_turns(self.nest, self.depth, _TERMS) as term:
            yield term

    # Sums ---------------------------------------------------------------------------------------------

    def _add(self, image: DimLike, block: DimLike) -> None:
        """All results of a block, in as many passes over the positions as its vectors need registers."""
        per_pass = self.tile.vectors
        for first in range(0, self.block // self.tile.lanes, per_pass):
            _Sums(self, image, block, first, per_pass).write()


class _Sums:
    """Some vectors of a block of outputs, at all positions."""

    def __init__(self, conv: GatheredConv, image: DimLike, block: DimLike, first: int, vectors: int) -> None:
        self.conv, self.nest, self.image, self.block, self.first, self.vectors = conv, conv.nest, image, block, first, vectors
        self.lanes, self.pooled = conv.tile.lanes, conv.node.attrs["pool"] == "extremes"

    def write(self) -> None:
        """The loop over positions; the first ones complete no result."""
        conv, nest = self.conv, self.nest
        self.sums = self._registers(conv.taps, [0.0] * conv.taps)
        self.extremes = self._registers(2, [-math.inf, math.inf]) if self.pooled else None
        with nest.loop(conv.taps - 1) as position:
            self._position(position)
        with nest.loop(conv.results) as result:
            self._position(result + (conv.taps - 1))
            self._finish(result)
        if self.extremes is not None:
            self._store_extremes()

    def _registers(self, rows: int, values: list[float]) -> Accumulator:
        buffer = self.nest.alloc(F32, (rows, self.vectors, self.lanes), Space.REGISTER)
        with self.nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for row, value in enumerate(values):
                for vector in range(self.vectors):
                    self.nest.store(buffer, (row, vector, lane), const(value, F32))
        return Accumulator(buffer, Tile(rows, self.vectors, self.lanes), F32)

    def _position(self, position: DimLike) -> None:
        """Every sum moves on a tap, and gets what the position has for it."""
        conv, nest = self.conv, self.nest
        starts = [self._product_row(position, part) for part in range(conv.parts)]
        gain = nest.let(Load(conv.gain, (position,), F32), "g")
        with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for tap in reversed(range(conv.taps)):
                for vector in range(self.vectors):
                    column = tap * conv.block + (self.first + vector) * self.lanes + lane
                    total: Expr = Load(conv.products, (starts[0] + column,), F32)
                    for start in starts[1:]:
                        total = Op("add", (total, Load(conv.products, (start + column,), F32)), F32)
                    before = self.sums.at(tap - 1, vector, lane) if tap else const(0, F32)
                    nest.store(self.sums.buffer, (tap, vector, lane), op("fma", total, gain, before))

    def _product_row(self, position: DimLike, part: int) -> DimLike:
        """Where the products of the row begin that a position has at a place."""
        conv, nest = self.conv, self.nest
        place = ravel((self.image, position, part), (conv.images, conv.positions, conv.parts))
        start = cast(Load(conv.starts, (place,), I32), I64)
        first = part * conv.most * conv.columns
        return nest.let_index(start, Range(first, first + (conv.most - 1) * conv.columns))

    def _finish(self, result: DimLike) -> None:
        """A result: the sum behind its last tap, plus bias."""
        conv, nest = self.conv, self.nest
        bias = (self.block * conv.bias_rows + (result if conv.bias_rows != 1 else 0)) * conv.block
        with nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for vector in range(self.vectors):
                column = self._column(vector, lane)
                value = nest.let(
                    op("add", self.sums.at(conv.taps - 1, vector, lane), Load(conv.bias, (bias + column - self.block * conv.block,), F32)),
                    "y",
                )
                if self.extremes is None:
                    conv.draft.store(conv.node.output, (self.image, result, column), value)
                    continue
                for row, fn in enumerate(("max", "min")):
                    best = op(fn, self.extremes.at(row, vector, lane), value)
                    nest.store(self.extremes.buffer, (row, vector, lane), best)

    def _store_extremes(self) -> None:
        conv = self.conv
        with self.nest.loop(self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            for row in range(2):
                for vector in range(self.vectors):
                    place = (row, self.image, self._column(vector, lane))
                    conv.draft.store(conv.node.output, place, self.extremes.at(row, vector, lane))

    def _column(self, vector: int, lane: DimLike) -> DimLike:
        """An output's channel."""
        return self.block * self.conv.block + (self.first + vector) * self.lanes + lane


@template("conv_gathered")
def gathered(node: Node, scope: Scope, target: Target) -> list[Built]:
    """The kernels of a convolution of rows of a table: which rows are used, and the convolution."""
    tile = gathered_tile(target, int(node.inputs[-1].shape[-1]))
    rows, used = used_rows(node, scope, tile.rows, math.prod(map(int, node.inputs[-1].shape[-2:])))
    draft = GatheredConv(node, scope, tile, used).write()
    draft.tags["template"] = "gathered"
    return [rows, Built(*draft.finish(), scratch=used.scratch)]
