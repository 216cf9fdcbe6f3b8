"""Tiles through registers, where one loop is contiguous for what is stored and another for what is loaded.

for m in M: for l in L: y[m*L + l] = f(x[l*M + m])
-->
for block of 64 bytes of l: for m0 in M by W: for each tile of W in the block:
    rows[r, k] = x[(l0 + r)*M + m0 + k]        (k in W: a vector; r in W unrolled)
    y[(m0 + k)*L + l0 + r] = f(rows[r, k])     (r in W: a vector, a column of the square; k in W unrolled)
(what is left of m: a tile that does again what the one before did, or element by element, as the last block where it is short)
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.loop_rewrite import Rewriter, substitute
from tcompile.codegen.scalar import compare
from tcompile.codegen.schedule import Names
from tcompile.codegen.schedule_access import KNOWN, dependent, load_steps
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Alloc, Block, Check, Expr, For, If, Load, LoopKind, Space, Store
from tcompile.ir.loops_interpret import walk

_LINE_BYTES = 64  # a block of l fills the cache lines that it writes


@dataclass(frozen=True)
class Turn:
    """Two loops to exchange through tiles: ``lanes`` is contiguous for stores, ``rows`` for ``loads``.

    ``again``: elements may be stored a second time.
    """

    lanes: For
    rows: For
    loads: tuple[Load, ...]
    width: int
    again: bool = False


def find_turn(outer: list[For], core: Block, lanes: For, vector_bytes: int, *, again: bool = False) -> Turn | None:
    """The tiles that spare a flat core its strided loads along ``lanes``; None where there are none to spare.

    ``again``: no two parameters share their memory, so that storing a second time changes nothing.
    """
    if any(isinstance(stmt, Check | If | Alloc | For) for stmt in walk(core)):
        return None
    for rows in outer:
        if rows is lanes or not _independent_extents(rows, lanes):
            continue
        steps = zip(load_steps(core, lanes.var), load_steps(core, rows.var), strict=True)
        loads = [load for (load, along), (_, across) in steps if along not in (0, 1) and across == 1 and load.mask is None]
        if loads and not any(dependent(core, name) & dims.shape_symbols(load.indices) for load in loads for name in (lanes.var, rows.var)):
            return _turn(lanes, rows, loads, core, vector_bytes, again=again)
    return None


def _turn(lanes: For, rows: For, loads: list[Load], core: Block, vector_bytes: int, *, again: bool) -> Turn | None:
    size = max(load.dtype.bytes for load in loads)
    width = min(16, vector_bytes // size)
    long = all(not isinstance(loop.extent, int) or loop.extent >= width for loop in (lanes, rows))
    stores = [stmt for stmt in walk(core) if isinstance(stmt, Store)]
    if width < 4 or not long or any(store.mask is not None for store in stores):
        return None
    stored, read = {store.buffer for store in stores}, {load.buffer for load, _ in load_steps(core, lanes.var)}
    return Turn(lanes, rows, tuple(loads), width, again and stored.isdisjoint(read))


def _independent_extents(a: For, b: For) -> bool:
    return b.var not in dims.symbols(a.extent) and a.var not in dims.symbols(b.extent)


def blocks_of(turn: Turn, core: Block, names: Names) -> For:
    """The loop over blocks of ``turn.lanes``; it may run in parallel."""
    return _Tiles(turn, core, names).loop()


class _Tiles:
    def __init__(self, turn: Turn, core: Block, names: Names) -> None:
        self.turn, self.core, self.names = turn, core, names
        self.width = turn.width
        self.block = _block(turn)
        self.number = names("i")

    def loop(self) -> For:
        extent = self.turn.lanes.extent
        start = dims.symbol(self.number) * self.block
        whole = self._whole_block(start)
        count = dims.ceildiv(extent, self.block)
        if dims.mod(extent, self.block) == 0:
            return For(self.number, count, whole)
        rest = dims.minimum(extent - start, self.block, KNOWN)
        short = self._plain(start, rest, 0, self.turn.rows.extent)
        return For(self.number, count, (If(compare("le", start + self.block, extent), whole, short),))

    def _whole_block(self, start: DimLike) -> Block:
        rows, width = self.turn.rows, self.width
        turns = dims.floordiv(rows.extent, width)
        tile = self.names("i")
        first = dims.symbol(tile) * width
        body = self._tiles(start, first)
        left = dims.mod(rows.extent, width)
        if left == 0:
            return (For(tile, turns, body),)
        if self.turn.again and isinstance(rows.extent, int):
            return (For(tile, turns, body), *self._tiles(start, rows.extent - width))
        return (For(tile, turns, body), *self._plain(start, self.block, turns * width, left))

    def _tiles(self, start: DimLike, first: DimLike) -> Block:
        """The tiles of a block of lanes, of rows from ``first``."""
        return tuple(stmt for k in range(self.block // self.width) for stmt in self._tile(start + k * self.width, first))

    def _tile(self, lane: DimLike, row: DimLike) -> Block:
        width = self.width
        squares: dict[int, str] = {}
        allocs, fills = [], []
        vector, r = self.names("i"), self.names("i")
        at = {self.turn.lanes.var: lane + dims.symbol(r), self.turn.rows.var: row + dims.symbol(vector)}
        for load in self.turn.loads:
            name = squares[id(load)] = self.names("b")
            allocs.append(Alloc(name, load.dtype, (width, width), Space.REGISTER))
            indices = tuple(dims.substitute(index, at, KNOWN) for index in load.indices)
            fills.append(Store(name, (dims.symbol(r), dims.symbol(vector)), Load(load.buffer, indices, load.dtype)))
        fill = For(r, width, (For(vector, width, tuple(fills), LoopKind.VECTOR, width),), LoopKind.UNROLLED)
        return (*allocs, fill, self._empty(lane, row, squares))

    def _empty(self, lane: DimLike, row: DimLike, squares: dict[int, str]) -> For:
        """The core over a tile, its strided loads from the columns of the squares."""
        vector, k = self.names("i"), self.names("i")
        columned = _Columns(self.turn.loads, squares, (dims.symbol(vector), dims.symbol(k))).block(self.core)
        at = {self.turn.lanes.var: lane + dims.symbol(vector), self.turn.rows.var: row + dims.symbol(k)}
        body = substitute(columned, at, KNOWN)
        return For(k, self.width, (For(vector, self.width, body, LoopKind.VECTOR, self.width),), LoopKind.UNROLLED)

    def _plain(self, start: DimLike, count: DimLike, first: DimLike, rows: DimLike) -> Block:
        """Elements of ``count`` lanes from ``start`` and ``rows`` rows from ``first``, without tiles."""
        lane, row = self.names("i"), self.names("i")
        at = {self.turn.lanes.var: start + dims.symbol(lane), self.turn.rows.var: first + dims.symbol(row)}
        return (For(row, rows, (For(lane, count, substitute(self.core, at, KNOWN), LoopKind.VECTOR, self.width),)),)


def _block(turn: Turn) -> int:
    """How many lanes a block takes: a cache line's, or the whole tiles of a short loop."""
    line = _LINE_BYTES // max(load.dtype.bytes for load in turn.loads)
    extent = turn.lanes.extent
    most = min(line, extent // turn.width * turn.width) if isinstance(extent, int) else line
    return max(turn.width, most)


class _Columns(Rewriter):
    def __init__(self, loads: tuple[Load, ...], squares: dict[int, str], column: tuple[DimLike, DimLike]) -> None:
        super().__init__()
        self.loads, self.squares, self.column = loads, squares, column

    def rebuild(self, expr: Expr) -> Expr:
        if isinstance(expr, Load) and id(expr) in self.squares:
            return Load(self.squares[id(expr)], self.column, expr.dtype)
        return super().rebuild(expr)
