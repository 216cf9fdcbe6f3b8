"""Pointwise convolutions of plain images: their register tiles, and what they take beside blocked ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tcompile.ir.choices import Option, choose
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.target import Target
from tcompile.ir.tiles import MOST_ROWS, Tile, lanes, matrix_fits, pointwise_cycles, step_cycles, strassen_cycles

PLANNED = 1024  # positions of an image of unknown size
_TILE_CYCLES = 25.0  # around the loop over terms of a tile, whose end is guessed wrongly, and its results' way to memory
_NEAR_REFILL = 200.0  # bytes of a panel that cost a cycle where they come from the L2 cache
_COPY_CYCLES = 0.5  # of an element of an image, to a panel in scratch
_MOVE_CYCLES = 1.2  # of an element to or from its channel block, through memory
_MOST_PANELS = 4  # of which a channel's part is a few cache lines
_MARGIN = 0.97  # of the blocked estimate that the other must stay below


@dataclass(frozen=True)
class Pointwise:
    """A convolution by kernels of one element: channels in and out, in equal groups; ``dtype`` is that of its sums."""

    positions: DimLike
    inputs: int
    outputs: int
    groups: int
    dtype: DType


def pointwise_tile(target: Target, outputs: int, positions: DimLike, terms: int, dtype: DType) -> Tile:
    """The tile of a convolution with sums of ``terms``: its rows are ``outputs`` of a group, its columns positions of an image."""
    return choose("pointwise tile", _tiles(target, outputs, positions, terms, dtype))


def _tiles(target: Target, outputs: int, positions: DimLike, terms: int, dtype: DType) -> Iterator[Option[Tile]]:
    width = lanes(target, dtype)
    columns = max(positions, 1) if isinstance(positions, int) else PLANNED

    def cycles(rows: int, vectors: int) -> float:
        read = vectors * width * dtype.bytes
        far = read / _NEAR_REFILL if terms * read > target.l1_bytes // 2 else 0.0
        return (step_cycles(target, rows, vectors) + far) * terms + _TILE_CYCLES

    def total(rows: int, vectors: int) -> float:
        full, rest = divmod(outputs, rows)
        return -(-columns // (vectors * width)) * (full * cycles(rows, vectors) + (cycles(rest, vectors) if rest else 0.0))

    for vectors in range(1, min(-(-columns // width), 4) + 1):
        for rows in range(1, min(outputs, MOST_ROWS) + 1):
            if matrix_fits(target, rows, vectors):
                yield Tile(rows, vectors, width).option(total(rows, vectors))


def panels_at_once(target: Target, tile: Tile, terms: int, size: int) -> int:
    """How many panels of ``terms`` terms, of ``size`` bytes each, a task copies: they stay in half of the L2 cache."""
    return max(min(target.l2_bytes // 2 // max(terms * tile.columns * size, 1), _MOST_PANELS), 1)


def stays_plain(target: Target, conv: Pointwise, block: int, *, moved: int, packed: int, strassen: bool) -> bool:
    """Whether a pointwise convolution is faster on plain images than in blocks of ``block`` channels, by the cycles for one image on
    one core.

    ``moved`` and ``packed`` count the channels that change their layout, in memory, around a blocked and around a plain kernel.
    ``strassen``: Strassen's algorithm may be used in blocks.
    """
    size = conv.positions if isinstance(conv.positions, int) else PLANNED
    outputs, terms = conv.outputs // conv.groups, conv.inputs // conv.groups
    sums = min(option.cycles for option in _tiles(target, outputs, size, terms, conv.dtype))
    plain = conv.groups * sums + size * (conv.inputs * _COPY_CYCLES + packed * _MOVE_CYCLES)
    whole = -(-conv.outputs // block) * block
    blocked = pointwise_cycles(target, size, terms, whole, strided=False) * conv.dtype.bytes / 4
    if strassen:
        blocked = min(blocked, strassen_cycles(target, size, conv.inputs, whole))
    blocked += size * moved * _MOVE_CYCLES
    return choose("pointwise layout", (Option("blocked", _MARGIN * blocked, False), Option("plain", plain, True)))
