"""Which rows of a table the positions of an image have: they get numbers in their order, and only they are multiplied.

    parallel for (image, row of a position, j):
        seen[v] = 1 for the rows of all positions
        listed[] = the rows that were seen, in order, and behind them row 0, up to whole tiles;    number[v] = the place of each
        tiles = how many tiles that is;    starts[p] = where the products of the row begin of which each place has ``columns``

Texts have a fraction of all bytes, and no vocabulary occurs in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcompile.codegen.access import ravel
from tcompile.codegen.cpu_split import split_task
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import both, cast, compare, const, index_value, op
from tcompile.codegen.templates import Built
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import I32, I64
from tcompile.ir.graph import Node, TensorType, Value
from tcompile.ir.loops import Expr, Load, LoopKind, Status


@dataclass(frozen=True, eq=False)
class UsedRows:
    """What the kernel leaves, i32 in memory: ``listed`` [N, J, most], ``tiles`` [N, J], and ``starts`` [N, P, J] among the
    products of all J."""

    listed: Value
    tiles: Value
    starts: Value

    @property
    def scratch(self) -> tuple[Value, Value, Value]:
        """The memory, for the kernels that share it."""
        return self.listed, self.tiles, self.starts


def used_rows(node: Node, scope: Scope, rows_of_tile: int, columns: int) -> tuple[Built, UsedRows]:
    """The kernel of the rows of a conv_gathered, and its memory. ``columns`` are those of the products of a row."""
    table, rows = node.inputs[:2]
    images, positions, parts = rows.shape
    entries = int(table.shape[0])
    most = -(-entries // rows_of_tile) * rows_of_tile
    shapes = {"listed": (images, parts, most), "tiles": (images, parts), "starts": rows.shape}
    made = UsedRows(*(Value(name, TensorType(I32, shape)) for name, shape in shapes.items()))
    draft = Draft("conv_gathered_rows", node, scope)
    with draft.nest.loop(images * parts, LoopKind.PARALLEL) as task:
        image, part = split_task(draft.nest, task, (images, parts))
        _Part(draft, made, rows, (image, part), entries, rows_of_tile, columns).write()
    draft.flops = images * parts * (2 * positions + entries)
    draft.tags["template"] = "gathered"
    return Built(*draft.finish(), scratch=made.scratch), made


class _Part:
    """The rows that positions have at one place."""

    def __init__(
        self, draft: Draft, made: UsedRows, rows: Value, place: Sequence[DimLike], entries: int, rows_of_tile: int, columns: int
    ) -> None:
        self.draft, self.nest, self.made, self.rows, self.entries, self.step = draft, draft.nest, made, rows, entries, rows_of_tile
        self.columns = columns
        self.image, self.part = place
        self.source = draft.read(rows)
        self.listed, self.tiles, self.starts = (draft.write(value) for value in made.scratch)

    def write(self) -> None:
        """All loops."""
        nest = self.nest
        seen, count = nest.alloc(I32, (self.entries,)), nest.alloc(I32, (1,))
        with nest.loop(self.entries) as row:
            nest.store(seen, row, const(0, I32))
        with nest.loop(self.rows.shape[1]) as position:
            nest.store(seen, self._row(position), const(1, I32))
        nest.store(count, 0, const(0, I32))
        with nest.loop(self.entries) as row:
            self._number(row, seen, count)
        self._fill(count)
        with nest.loop(self.rows.shape[1]) as position:
            row = nest.let_index(cast(Load(self.source, (self._at(position),), self.rows.dtype), I64), Range(0, self.entries - 1))
            number = op("add", Load(seen, (row,), I32), index_value(self.part * self.made.listed.shape[2], I32))
            nest.store(self.starts, self._at(position), op("mul", number, const(self.columns, I32)))

    def _at(self, position: DimLike) -> DimLike:
        return ravel((self.image, position, self.part), self.rows.shape)

    def _row(self, position: DimLike) -> DimLike:
        """The row of a position, which must be in the table."""
        nest = self.nest
        row = nest.let_index(cast(Load(self.source, (self._at(position),), self.rows.dtype), I64))
        inside = both(compare("ge", row, 0), compare("lt", row, self.entries))
        assert inside is not None, row
        nest.check(inside, Status.INDEX)
        return nest.let_index(index_value(row), Range(0, self.entries - 1))

    def _place(self, count: DimLike) -> DimLike:
        return ravel((self.image, self.part, count), self.made.listed.shape)

    def _number(self, row: DimLike, seen: str, count: str) -> None:
        """Lists a row behind those before it; the next takes its place where it was not seen."""
        nest, value = self.nest, Load(count, (0,), I32)
        number = nest.let_index(cast(value, I64), Range(0, self.entries - 1))
        nest.store(self.listed, self._place(number), index_value(row, I32))
        found: Expr = nest.let(Load(seen, (row,), I32))
        nest.store(seen, row, value)
        nest.store(count, 0, op("add", Load(count, (0,), I32), found))

    def _fill(self, count: str) -> None:
        """Row 0 behind the last, up to whole tiles, and how many these are."""
        nest, made = self.nest, self.made
        full = made.listed.shape[2] // self.step
        number = nest.let_index(cast(Load(count, (0,), I32), I64), Range(0, self.entries))
        tiles = nest.let_index(op("div", op("add", index_value(number), const(self.step - 1, I64)), const(self.step, I64)), Range(0, full))
        rest = nest.let_index(index_value(tiles * self.step - number), Range(0, self.step - 1))
        with nest.loop(rest) as k:
            nest.store(self.listed, self._place(number + k), const(0, I32))
        nest.store(self.tiles, ravel((self.image, self.part), made.tiles.shape), index_value(tiles, I32))
