"""Epilogues of polynomials (sigmoid, tanh, erf) over many results of a convolution at once.

    for each group of tiles:                               the micro-kernel stores plain sums
        stage[block][position][lane] = the tile's sums
        for each block, for each position:  epilogue; store

A loop over the few vectors of one tile would end, and be guessed wrongly, before the long chains of a polynomial overlap, and
written out for each vector it would load its constants for each. The stage of a group lies in the L1 cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tcompile.codegen.access import unravel
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.cpu_tile import Accumulator
from tcompile.codegen.scalar import const, op
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Load, LoopKind, Space

if TYPE_CHECKING:
    from tcompile.codegen.cpu_conv import DirectConv

STAGE_BYTES = 8 << 10


def is_swept(conv: DirectConv) -> bool:
    """Whether a convolution's epilogue is worth a sweep of its own: it takes functions or sums rows, which have a known length."""
    return (not conv.epilogue.small or conv.epilogue.rows is not None) and isinstance(conv.columns, int) and conv.columns > 0


@dataclass(frozen=True)
class Stage:
    """Sums of ``blocks`` output blocks from ``block`` of an image, at up to ``room`` positions each."""

    conv: DirectConv
    buffer: str
    room: int
    image: DimLike
    block: DimLike
    blocks: int

    def put(self, acc: Accumulator, at: DimLike, lane0: DimLike = 0) -> None:
        """Stores a tile whose first column is the position ``at``, and whose first vector starts at ``lane0`` of its block."""
        nest, tile, width = self.conv.nest, acc.tile, self.conv.block
        with nest.loop(tile.lanes, LoopKind.VECTOR, tile.lanes) as lane:
            for row in range(tile.rows):
                for vector in range(tile.vectors):
                    part, start = divmod(vector * tile.lanes, width)
                    nest.store(self.buffer, (part * self.room + at + row) * width + start + lane0 + lane, acc.at(row, vector, lane))

    def sweep_rows(self, rows: DimLike, row: Callable[[DimLike], Shape]) -> None:
        """The epilogue of whole rows, ``row(k)`` being the outer coordinates of the k-th."""
        nest, columns = self.conv.nest, self.conv.columns
        with nest.loop(self.blocks) as part, nest.loop(rows) as number:
            outer = row(number)
            if self.conv.epilogue.rows is not None:
                self._summed_row(part, number * columns, outer)
            else:
                with nest.loop(columns) as column:
                    self._result(part, number * columns + column, (*outer, column))

    def _summed_row(self, part: DimLike, first: DimLike, outer: Shape) -> None:
        """The epilogue of a row, and the sums of its results, a vector of channels at a time."""
        conv, nest = self.conv, self.conv.nest
        lanes, dtype = conv.tile.lanes, conv.epilogue.output.dtype
        with nest.loop(conv.block // lanes) as vector:
            total = nest.alloc(dtype, (lanes,), Space.REGISTER)
            with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                nest.store(total, lane, const(0, dtype))
            with nest.loop(conv.columns) as column, nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                channel = vector * lanes + lane
                value = Load(self.buffer, ((part * self.room + first + column) * conv.block + channel,), conv.dtype)
                result = conv.epilogue.store_and_give((self.image, self.block + part, *outer, column, channel), value)
                nest.store(total, lane, op("add", Load(total, (lane,), dtype), result))
            with nest.loop(lanes, LoopKind.VECTOR, lanes) as lane:
                place = (self.image, self.block + part, *outer, vector * lanes + lane)
                conv.epilogue.store_sum(place, Load(total, (lane,), dtype))

    def sweep_positions(self, first: DimLike, count: DimLike) -> None:
        """The epilogue of positions in memory order from ``first``: as one row, or row by row where borders part them."""
        nest, spatial = self.conv.nest, self.conv.spatial
        if self.conv.epilogue.pad is None or len(spatial) == 1:
            with nest.loop(self.blocks) as part, nest.loop(count) as at:
                self._result(part, at, unravel(first + at, spatial, nest.ranges))
            return
        width, last = spatial[-1], first + count
        top = dims.floordiv(first, width, nest.ranges)
        with nest.loop(self.blocks) as part, nest.loop(dims.floordiv(last - 1, width, nest.ranges) - top + 1) as offset:
            row = top + offset
            start = dims.maximum(first, row * width, nest.ranges)
            outer = tuple(split_task(nest, row, spatial[:-1]))
            with nest.loop(dims.minimum(last, row * width + width, nest.ranges) - start) as at:
                self._result(part, start - first + at, (*outer, start - row * width + at))

    def _result(self, part: DimLike, at: DimLike, position: Shape) -> None:
        conv = self.conv
        lanes = conv.tile.lanes
        with conv.nest.loop(conv.block, LoopKind.VECTOR, lanes) as lane:
            value = Load(self.buffer, ((part * self.room + at) * conv.block + lane,), conv.dtype)
            conv.epilogue.store((self.image, self.block + part, *position, lane), value)


def run_swept(conv: DirectConv, image: DimLike, block: DimLike, blocks: int, first: DimLike, count: DimLike, last_chunk) -> None:
    """One task: ``count`` units from ``first``, tiles of the only row or whole rows, of ``blocks`` output blocks from ``block``.

    ``last_chunk(emit)`` runs ``emit`` in the task that ends the only row.
    """
    positions = max(STAGE_BYTES // (blocks * conv.block * conv.dtype.bytes), 1)
    (_swept_row if conv.flat else _swept_rows)(conv, positions, image, block, blocks, first, count, last_chunk)


def _swept_row(
    conv: DirectConv, positions: int, image: DimLike, block: DimLike, blocks: int, first: DimLike, count: DimLike, last_chunk
) -> None:
    nest, height = conv.nest, conv.tile.rows
    tiles = conv.columns // height
    group = min(_tiles_of_rows(max(positions // height, 1), height, conv.spatial[-1]), max(tiles, 1))
    stage = Stage(conv, nest.alloc(conv.dtype, (blocks * group * height * conv.block,)), group * height, image, block, blocks)
    with nest.loop(dims.ceildiv(count, group, nest.ranges)) as number:
        start = first + number * group
        here = dims.minimum(group, count - number * group, nest.ranges)
        with nest.loop(here) as tile:
            conv.stage_tile(stage, height, (), (start + tile) * height, tile * height)
        stage.sweep_positions(start * height, here * height)
    rest = conv.columns % height
    if rest:
        last_chunk(partial(_rest, conv, stage, rest, tiles * height))


def _tiles_of_rows(most: int, height: int, width: DimLike) -> int:
    """At most ``most`` tiles that are whole rows, where some are: loops over rows then turn equally often, as processors expect."""
    each = width // math.gcd(height, width) if isinstance(width, int) else most
    return most // each * each or most


def _rest(conv: DirectConv, stage: Stage, rest: int, start: int) -> None:
    conv.stage_tile(stage, rest, (), start, 0)
    stage.sweep_positions(start, rest)


def _swept_rows(
    conv: DirectConv, positions: int, image: DimLike, block: DimLike, blocks: int, first: DimLike, count: DimLike, last_chunk
) -> None:
    nest, columns = conv.nest, conv.columns
    group = max(positions // columns, 1)
    group = min(group, conv.rows) if isinstance(conv.rows, int) and conv.rows else group
    stage = Stage(conv, nest.alloc(conv.dtype, (blocks * group * columns * conv.block,)), group * columns, image, block, blocks)

    def row(number: DimLike) -> Shape:
        return tuple(split_task(nest, number, conv.spatial[:-1])) if len(conv.spatial) > 1 else ()

    with nest.loop(dims.ceildiv(count, group, nest.ranges)) as number:
        start = first + number * group
        here = dims.minimum(group, count - number * group, nest.ranges)
        with nest.loop(here) as offset:
            outer = row(start + offset)
            for first_column, tiles, size in conv.row_parts():
                with nest.loop(tiles) as tile:
                    at = first_column + tile * size
                    conv.stage_tile(stage, size, outer, at, offset * columns + at)
        stage.sweep_rows(here, lambda offset: row(start + offset))
