"""Maps on a GPU: 16 bytes of the result for each thread, and transposes through shared memory.

for k in n: y[k] = f(x[k])                 -->  thread: for lanes l in 4: y[4*item + l] = f(x[4*item + l])
for i in n: for j in m: y[i*m + j] = x[j*n + i]
-->
block for (32 of i, 32 of j): tile[j][i] = x[j*n + i] (threads along i); barrier; y[i*m + j] = tile[j][i] (threads along j)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcompile.codegen.cuda_threads import on_threads, split_item
from tcompile.codegen.loop_rewrite import Substitution, substitute
from tcompile.codegen.scalar import both, compare
from tcompile.codegen.schedule import Names
from tcompile.codegen.schedule_access import KNOWN, accesses, load_steps, mentions
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import (
    Alloc,
    Atomic,
    Barrier,
    Block,
    Check,
    Expr,
    For,
    If,
    Let,
    Load,
    LoopKind,
    Space,
    Store,
    Var,
)
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import walk

VECTOR_BYTES = 16
MANY_ITEMS = 1 << 16  # elements from which fewer threads with wide accesses are worth more than many threads
TILE = 32
TILE_ROWS = 8  # threads of a tile along its other axis
_TURN_EXTENT = 16  # extents of both axes from which a tile is worth it


def map_on_threads(loops: Sequence[For], core: Block, names: Names) -> Block:
    """The loops of a map, all independent, and a body without loops."""
    turn = _turn(loops, core)
    if turn is not None:
        return _tiles(loops, core, turn, names)
    inner = loops[-1]
    width = _width(core, inner)
    if width > 1:
        return _vectors(loops, core, width, names)
    item = names("f")
    lets, count = split_item(item, loops)
    return on_threads(count, (*lets, *core), item, names)


# Wide accesses ----------------------------------------------------------------------------------------------


def _width(core: Block, inner: For) -> int:
    """Elements of the innermost loop for one thread: 16 bytes of its widest operand, 1 where its accesses do not step by one."""
    if any(isinstance(stmt, Check | If | Alloc | Atomic) for stmt in walk(core)):
        return 1
    found = [access for access in accesses(core, inner.var) if access.step != 0]
    if not found or any(access.step != 1 or access.dtype.bits < 8 for access in found):
        return 1
    if not any(access.is_store for access in found):
        return 1
    return VECTOR_BYTES // max(access.dtype.bytes for access in found)


def _vectors(loops: Sequence[For], core: Block, width: int, names: Names) -> Block:
    *outer, inner = loops
    count = dims.product(loop.extent for loop in loops)
    few = isinstance(count, int) and count < MANY_ITEMS
    whole = dims.mod(inner.extent, width) == 0
    if few or (outer and not whole):
        item = names("f")
        lets, count = split_item(item, loops)
        return on_threads(count, (*lets, *core), item, names)
    item, part, lane = names("f"), names("v"), names("l")
    pieces = For(part, dims.ceildiv(inner.extent, width), ())
    lets, count = split_item(item, (*outer, pieces))
    start = dims.symbol(part) * width
    vector = For(lane, width, substitute(core, {inner.var: start + dims.symbol(lane)}, KNOWN), LoopKind.VECTOR, width)
    if whole:
        return on_threads(count, (*lets, vector), item, names)
    rest = names("l")
    tail = For(rest, inner.extent - start, substitute(core, {inner.var: start + dims.symbol(rest)}, KNOWN))
    body = If(compare("le", start + width, inner.extent), (vector,), (tail,))
    return on_threads(count, (*lets, body), item, names)


# Transposes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Turn:
    """Loads that step by one along ``rows`` while the results step by one along ``columns``."""

    rows: For
    columns: For
    loads: tuple[Load, ...]


def _turn(loops: Sequence[For], core: Block) -> _Turn | None:
    if len(loops) < 2 or any(isinstance(stmt, Check | If | Alloc | Atomic) for stmt in walk(core)):
        return None
    columns = next((loop for loop in reversed(loops) if _stores_along(core, loop)), None)
    if columns is None or not _long(columns.extent):
        return None
    bound = {stmt.name for stmt in walk(core) if isinstance(stmt, Let)}
    slow = [load for load, step in load_steps(core, columns.var) if step is not None and step not in (0, 1)]
    for rows in loops:
        if rows is columns or not _long(rows.extent):
            continue
        steps = {id(load): step for load, step in load_steps(core, rows.var)}
        found = tuple(load for load in slow if steps[id(load)] == 1 and _is_plain(load, bound))
        if found:
            return _Turn(rows, columns, found)
    return None


def _stores_along(core: Block, loop: For) -> bool:
    stores = [access for access in accesses(core, loop.var) if access.is_store]
    return bool(stores) and all(access.step == 1 for access in stores)


def _long(extent: DimLike) -> bool:
    return not isinstance(extent, int) or extent >= _TURN_EXTENT


def _is_plain(load: Load, bound: set[str]) -> bool:
    """Whether a load depends on nothing but loops and dims."""
    return not mentions(load, bound) and (load.mask is None or not any(isinstance(part, Var) for part in postorder(load.mask)))


def _tiles(loops: Sequence[For], core: Block, turn: _Turn, names: Names) -> Block:
    outer = [loop for loop in loops if loop is not turn.rows and loop is not turn.columns]
    row_tile, column_tile, grid, x, y, step = (names(hint) for hint in "abgxyr")
    pieces = [
        *outer,
        For(row_tile, dims.ceildiv(turn.rows.extent, TILE), ()),
        For(column_tile, dims.ceildiv(turn.columns.extent, TILE), ()),
    ]
    lets, count = split_item(grid, pieces)
    tiles = {id(load): names("s") for load in turn.loads}
    rows, columns = dims.symbol(row_tile) * TILE, dims.symbol(column_tile) * TILE
    along, across = dims.symbol(x), dims.symbol(y) + dims.symbol(step) * TILE_ROWS
    read = _Inside(turn, rows + along, columns + across)
    fills = tuple(Store(tiles[id(load)], (across, along), read.load(load)) for load in turn.loads)
    staged = {id(load): Load(tiles[id(load)], (along, across), load.dtype) for load in turn.loads}
    write = _Staged(turn, rows + across, columns + along, staged)
    body: Block = (
        For(step, TILE // TILE_ROWS, fills, LoopKind.UNROLLED),
        Barrier(),
        For(step, TILE // TILE_ROWS, (If(write.inside(), write.block(core)),), LoopKind.UNROLLED),
    )
    threads = For(y, TILE_ROWS, (For(x, TILE, body, LoopKind.BLOCK),), LoopKind.BLOCK)
    shared = tuple(Alloc(tiles[id(load)], load.dtype, (TILE, TILE + 1), Space.SHARED) for load in turn.loads)
    return (For(grid, count, (*lets, *shared, threads), LoopKind.GRID),)


class _Inside(Substitution):
    """The body at given places of the two axes."""

    def __init__(self, turn: _Turn, row: DimLike, column: DimLike) -> None:
        super().__init__({turn.rows.var: row, turn.columns.var: column}, KNOWN)
        self.turn, self.row, self.column = turn, row, column

    def inside(self) -> Expr:
        found = both(compare("lt", self.row, self.turn.rows.extent), compare("lt", self.column, self.turn.columns.extent))
        assert found is not None
        return found

    def load(self, load: Load) -> Load:
        """A load at the place, masked at the edges."""
        return Load(load.buffer, self.shape(load.indices), load.dtype, both(self.inside(), self.optional(load.mask)))


class _Staged(_Inside):
    """As ``_Inside``, with some loads (by identity) replaced."""

    def __init__(self, turn: _Turn, row: DimLike, column: DimLike, staged: dict[int, Load]) -> None:
        super().__init__(turn, row, column)
        self.staged = staged

    def rebuild(self, expr: Expr) -> Expr:
        return self.staged[id(expr)] if id(expr) in self.staged else super().rebuild(expr)
