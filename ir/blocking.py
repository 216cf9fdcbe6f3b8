"""Loops around register tiles: how many rows, columns or input blocks they take at a time, by what comes from which cache."""

from __future__ import annotations

from tcompile.ir.choices import Option, choose
from tcompile.ir.target import Target
from tcompile.ir.tiles import FMA, LOAD_SHARE, Step, Tile, around_cycles, step_cycles

TASK_ROWS = 128  # of a matrix product, where there are many
_FEWEST_ROWS = 32  # that are worth keeping in the L2 cache: fewer would read the other matrix too often
_ROW_REFILL = 200.0  # bytes of a row that cost a cycle where they come from behind the L2 cache: it is read in order
_PACK_CYCLES = 6.0  # of one vector of a panel
_KERNEL_ROW_CYCLES = 3.0  # around a row of a depthwise kernel
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


def conv_pass(target: Target, tile: Tile, blocks: int, terms: int, step: Step = FMA) -> int:
    """How many of ``blocks`` input blocks, of ``terms`` terms each, to sum over at a time."""
    depths = sorted({-(-blocks // passes) for passes in range(1, blocks + 1)}, reverse=True)
    options = (Option(f"{depth} blocks", pass_cycles(target, tile, blocks, depth, terms, step), depth) for depth in depths)
    return choose("convolution passes", options)


def pass_cycles(target: Target, tile: Tile, blocks: int, depth: int, terms: int, step: Step = FMA) -> float:
    """Cycles of a tile's sums over ``blocks`` input blocks, ``depth`` of them in a pass: where one pass does not do, partial sums
    are cleared, written, read again and gone through at the end; weights that leave the L1 or the L2 cache in a pass come anew."""
    read, passes = step.words * tile.vectors * target.vector_bytes, -(-blocks // depth)
    weights = depth * terms * read
    each = step_cycles(target, tile.rows, tile.vectors, step)
    far = min(max(weights / target.l2_bytes - 1 / 8, 0) * 4 / 3, 1)  # the share that has left the L2 cache, which holds inputs too
    each += read * ((weights > target.l1_bytes // 2) / _L1_REFILL + far / _L2_REFILL)
    moved = tile.rows * tile.vectors * (_PARTIAL_CYCLES * passes - 2) if passes > 1 else 0
    return each * terms * blocks + passes * around_cycles(target, tile.rows, tile.vectors, step) + moved


def depthwise_columns(target: Target, columns: int, most: int, kernel: int, stride: int) -> int:
    """Columns of a tile of a depthwise convolution, at most ``most``, whose kernel has ``kernel`` elements in a row."""

    def row(count: int) -> float:
        loads = (count - 1) * stride + 2 * kernel  # inputs and weights
        return max(count * kernel / target.fma_ports, loads / (LOAD_SHARE * target.load_ports)) + _KERNEL_ROW_CYCLES

    def cycles(count: int) -> float:
        full, rest = divmod(columns, count)
        return full * row(count) + (row(rest) if rest else 0.0)

    options = (Option(f"{count} columns", cycles(count), count) for count in range(1, min(most, columns) + 1))
    return choose("depthwise tile", options)
