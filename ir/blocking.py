"""Loops around register tiles: how many rows, columns or input blocks they take at a time, by what comes from which cache."""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.ir.choices import Option, choose
from tcompile.ir.target import Target
from tcompile.ir.tiles import FMA, LOAD_SHARE, Step, Tile, around_cycles, step_cycles

TASK_ROWS = 128  # of a matrix product, where there are many
_FEWEST_ROWS = 32  # that are worth keeping in the L2 cache: fewer would read the other matrix too often
_ROW_REFILL = 200.0  # bytes of a row that cost a cycle where they come from behind the L2 cache: it is read in order
_PACK_CYCLES = 6.0  # of one vector of a panel
_KERNEL_ROW_CYCLES = 2.0  # around a row of a depthwise kernel, or a part of one
_L1_REFILL = 200.0  # bytes of weights that cost a cycle where they come from the L2 cache; most of their way is hidden
_L2_REFILL = 64.0  # where they come from behind it
_PARTIAL_CYCLES = 4.0  # of one vector of partial sums in each pass


def task_rows(target: Target, tile: Tile, terms: int, size: int, *, packed: bool) -> int:
    """Rows of a matrix of ``terms`` terms, of ``size`` bytes each, that one task multiplies by a panel of ``tile.columns`` columns.

    Those that stay in the L2 cache beside this panel and the next are read from there for every panel; where panels are not
    ``packed`` beforehand, each task packs its own, and more rows share that.
    """
    cached = target.l2_bytes // (terms * size) - 2 * tile.columns if terms else 0
    numbers = {TASK_ROWS, min(cached, TASK_ROWS)} if cached >= _FEWEST_ROWS else {TASK_ROWS}

    def cycles(rows: int) -> float:
        read = terms * size / _ROW_REFILL if rows > cached else 0.0
        return read + (0.0 if packed else _PACK_CYCLES * terms * tile.vectors / rows)

    return choose("rows of a task", (Option(str(rows), 1 + cycles(rows), rows) for rows in sorted(numbers)))


def conv_pass(target: Target, tile: Tile, blocks: int, terms: int, tiles: int, step: Step = FMA) -> int:
    """How many of ``blocks`` input blocks, of ``terms`` terms each, to sum over at a time, for ``tiles`` that follow each other."""
    depths = sorted({-(-blocks // passes) for passes in range(1, blocks + 1)}, reverse=True)
    options = (Option(f"{depth} blocks", pass_cycles(target, tile, blocks, depth, terms, tiles, step), depth) for depth in depths)
    return choose("convolution passes", options)


def pass_cycles(target: Target, tile: Tile, blocks: int, depth: int, terms: int, tiles: int, step: Step = FMA) -> float:
    """Cycles of a tile's sums over ``blocks`` input blocks, ``depth`` of them in a pass: where one pass does not do, partial sums
    are cleared, written, read again and gone through at the end; weights that leave the L1 or the L2 cache in a pass come anew for
    all ``tiles`` but the first, to which they come from afar however short the pass."""
    read, passes = step.words * tile.vectors * target.vector_bytes, -(-blocks // depth)
    weights = depth * terms * read
    each = step_cycles(target, tile.rows, tile.vectors, step)
    far = min(max(weights / target.l2_bytes - 1 / 8, 0) * 4 / 3, 1)  # the share that has left the L2 cache, which holds inputs too
    each += read * ((weights > target.l1_bytes // 2) / _L1_REFILL + far / _L2_REFILL) * (1 - 1 / tiles)
    moved = tile.rows * tile.vectors * (_PARTIAL_CYCLES * passes - 2) if passes > 1 else 0
    return each * terms * blocks + passes * around_cycles(target, tile.rows, tile.vectors, step) + moved


@dataclass(frozen=True)
class RowTile:
    """A tile of a row of outputs, one vector wide: ``columns`` of them at most, by ``taps`` elements of a row of the kernel at a
    time at most, whose weights are in registers."""

    columns: int
    taps: int


def even_parts(total: int, most: int) -> list[tuple[int, int, int]]:
    """The fewest parts of at most ``most``, as equal as can be: (start, how many, size of each) for the larger and the smaller."""
    number = -(-total // most)
    if not number:
        return []
    size = -(-total // number)
    larger = total - number * (size - 1)
    parts = [(0, larger, size), (larger * size, number - larger, size - 1)]
    return [part for part in parts if part[1]]


def row_tile(target: Target, columns: int, rows: int, kernel: int, stride: int, dilation: int, *, chosen: bool = False) -> RowTile:
    """The tile of a convolution of one vector of outputs, whose kernel has ``rows`` rows of ``kernel`` elements, and whose output rows
    are cut into equal tiles. ``chosen``: of ``columns`` exactly."""

    def loads(count: int, taps: int) -> int:
        inputs = {column * stride + tap * dilation for column in range(count) for tap in range(taps)}
        return len(inputs) + taps

    def row(count: int, most: int) -> float:
        parts = even_parts(kernel, most)
        read = sum(number * loads(count, taps) for _, number, taps in parts)
        # a sum waits for its own last term
        busy = max(count * kernel / target.fma_ports, kernel * target.fma_latency, read / (LOAD_SHARE * target.load_ports))
        return busy + _KERNEL_ROW_CYCLES * sum(number for _, number, _ in parts)

    def cycles(count: int, taps: int) -> float:
        return sum(number * row(size, taps) for _, number, size in even_parts(columns, count))

    most = 3 * target.fma_ports * target.fma_latency // 2  # more than hide the latency only need registers
    heights = [columns] if chosen else sorted({-(-columns // number) for number in range(-(-columns // most), columns + 1)})
    # the parts of a single row lie in one loop where they are not equal
    widths = dict.fromkeys(-(-kernel // number) for number in range(1, kernel + 1) if rows > 1 or kernel % number == 0)
    options = (
        Option(f"{count} columns by {taps}", cycles(count, taps), RowTile(count, taps))
        for count in heights
        for taps in widths
        if count + taps < target.vector_registers or (count == 1 and taps == 1)
    )
    return choose("depthwise tile", options)
