"""The grid and block loops around the code of one thread, while a kernel is being written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import index_value
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Alloc, For, LoopKind, Space


@dataclass
class ThreadBlock:
    """Where the code of a thread is: its block's number, its own, and the shared memory of the block."""

    nest: Nest
    number: DimLike
    thread: DimLike
    shared: list[Alloc] = field(default_factory=list)
    _named: dict[DimLike, tuple[object, DimLike]] = field(default_factory=dict)  # the open block in which, and the name

    def alloc(self, dtype: DType, shape: Shape) -> str:
        """Shared memory."""
        name = self.nest.fresh("b")
        self.shared.append(Alloc(name, dtype, shape, Space.SHARED))
        return name

    def named(self, value: DimLike, high: DimLike) -> DimLike:
        """A scalar that holds an index of 0 .. high; the one that an open block has for it already, if any."""
        if isinstance(value, int):
            return value
        scope, name = self._named.get(value, (None, value))
        if scope not in self.nest.scopes:
            name = self.nest.let_index(index_value(value), Range(0, high))
            self._named[value] = self.nest.scopes[-1], name
        return name


@contextmanager
def thread_block(nest: Nest, blocks: DimLike, threads: int) -> Iterator[ThreadBlock]:
    """Opens the loops over ``blocks`` and over the ``threads`` of each; both are independent."""
    grid, name = nest.fresh("i"), nest.fresh("i")
    nest.ranges[grid], nest.ranges[name] = Range(0, blocks - 1), Range(0, threads - 1)
    nest.independent |= {grid, name}
    with nest.nested() as body:
        block = ThreadBlock(nest, dims.symbol(grid), dims.symbol(name))
        yield block
    inner = For(name, threads, tuple(body), LoopKind.BLOCK)
    nest.emit(For(grid, blocks, (*block.shared, inner), LoopKind.GRID))
