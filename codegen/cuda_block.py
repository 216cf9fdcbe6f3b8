"""The grid and block loops around the code of one thread, while a kernel is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import compare, index_value
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Alloc, Barrier, Expr, For, LoopKind, Space
from tcompile.ir.loops import Scope as Meeting

GROUP = 4  # elements of one access


@dataclass
class ThreadBlock:
    """Where the code of a thread is: its block's number (of clusters: the cluster's), its own, and the shared memory of the block.

    ``part`` is the block's number in its cluster.
    """

    nest: Nest
    number: DimLike
    thread: DimLike
    part: DimLike = 0
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
def thread_block(nest: Nest, blocks: DimLike, threads: int, cluster: int = 1) -> Iterator[ThreadBlock]:
    """Opens the loops over ``blocks`` and over the ``threads`` of each; both are independent. Or over clusters of blocks."""
    grid, part, name = (nest.fresh("i") for _ in range(3))
    for one, extent in ((grid, blocks), (part, cluster), (name, threads)):
        nest.ranges[one] = Range(0, extent - 1)
    nest.independent |= {grid, name}
    with nest.nested() as body:
        block = ThreadBlock(nest, dims.symbol(grid), dims.symbol(name), dims.symbol(part) if cluster > 1 else 0)
        yield block
    inside = (*block.shared, For(name, threads, tuple(body), LoopKind.BLOCK))
    if cluster > 1:
        inside = (For(part, cluster, inside, LoopKind.CLUSTER),)
    nest.emit(For(grid, blocks, inside, LoopKind.GRID))


@contextmanager
def cluster_thread(nest: Nest, count: DimLike, blocks: int, threads: int) -> Iterator[tuple[DimLike, DimLike, DimLike]]:
    """Opens the loops over ``count`` clusters, the ``blocks`` of each and their ``threads``; yields the numbers of all three."""
    names = [nest.fresh("i") for _ in range(3)]
    for name, extent in zip(names, (count, blocks, threads), strict=True):
        nest.ranges[name] = Range(0, extent - 1)
    number, block, thread = names
    with nest.nested() as body:
        yield 0 if count == 1 else dims.symbol(number), 0 if blocks == 1 else dims.symbol(block), dims.symbol(thread)
    loop = For(thread, threads, tuple(body), LoopKind.BLOCK)
    if blocks > 1:
        loop = For(block, blocks, (loop,), LoopKind.CLUSTER)
    nest.emit(For(number, count, (loop,), LoopKind.GRID))


def meeting(blocks: int) -> Barrier:
    """Where all threads of a cluster of so many blocks meet."""
    return Barrier(Meeting.CLUSTER if blocks > 1 else Meeting.BLOCK)


def lane_terms(nest: Nest, count: int, lanes: int, lane: DimLike, body: Callable[[DimLike, DimLike, Expr | None], None]) -> None:
    """Calls ``body(place, term, guard)`` for a lane's share of so many terms; neighbours in groups where lanes have whole ones."""
    if count % (GROUP * lanes) == 0:
        with nest.loop(count // (GROUP * lanes), LoopKind.UNROLLED) as group, nest.loop(GROUP, LoopKind.VECTOR, GROUP) as k:
            body(group * GROUP + k, (group * lanes + lane) * GROUP + k, None)
        return
    with nest.loop(-(-count // lanes), LoopKind.UNROLLED) as turn:
        term = turn * lanes + lane
        body(turn, term, None if count % lanes == 0 else compare("lt", term, count))
