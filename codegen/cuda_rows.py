"""Rows on a GPU: reductions and what is fused around them, a warp or a block for each row.

    block of 8 warps, a warp for each row (or a block for each row):
        for elements e = lane, lane + 32, ...: acc = acc (+) x[row, e]            what later stages need stays in registers
        acc = acc (+) the acc of the lane 16 away, then 8, 4, 2, 1                 all lanes hold the same sum
        (a block: the sums of its warps meet in shared memory, and every thread adds them in order)
        for elements e = lane, lane + 32, ...: y[row, e] = f(x[row, e], acc)

The order of a sum depends on the extents alone. Rows of run-time length go through their elements again in every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tcompile.codegen.access import unravel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_rows import RowBuffer, RowLoops, Rows, lower_arg_reduce, lower_reduce, lower_rows
from tcompile.codegen.scalar import accumulator, cast, compare, identity, index_value, op
from tcompile.codegen.templates import Built, template
from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape, product
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node
from tcompile.ir.loops import Alloc, Barrier, Expr, For, Load, LoopKind, Shuffle, Space
from tcompile.ir.target import GpuTarget, Target

WARP_ROW = 1024  # elements of a row up to which a warp takes it
MANY_ROWS = 2  # rows for each multiprocessor from which a warp for each is enough
BLOCK = 256  # threads of a block
SLOTS = 32  # elements that a thread has for itself at most, where the extent is known
KEPT = 64  # registers for kept values
_KEEP_FROM_COST = 8
_LANES = 32


class CudaRows(RowLoops):
    """The rows of one kernel. ``threads`` work on a row, 32 or a whole block."""

    def __init__(self, draft: Draft, rows: Rows, target: GpuTarget) -> None:
        super().__init__(draft, rows)
        self.size, self.count = product(rows.inner), product(rows.outer)
        self.threads = _threads(self.size, self.count, target)
        self.per_block = BLOCK // _LANES if self.threads == _LANES else 1
        if isinstance(self.count, int) and self.threads == _LANES:
            self.per_block = max(min(self.per_block, self.count), 1)
        self.slots: DimLike = dims.ceildiv(self.size, self.threads, self.nest.ranges)
        self.known = isinstance(self.slots, int) and self.slots <= SLOTS
        self.registers = 0  # taken by kept values
        self.shared: list[Alloc] = []
        self.thread: DimLike = 0
        self.lane: DimLike = 0
        self.warp: DimLike = 0
        self.slot: DimLike = 0
        self.at: Shape = ()
        draft.tags["rows"] = f"{self.threads} threads a row"

    # Rows ---------------------------------------------------------------------------------------------

    @contextmanager
    def around(self) -> Iterator[Shape]:
        nest, threads = self.nest, self.threads * self.per_block
        with nest.loop(dims.ceildiv(self.count, self.per_block, nest.ranges), LoopKind.GRID, independent=True) as block:
            name = nest.fresh("i")
            nest.ranges[name] = Range(0, threads - 1)
            nest.independent.add(name)
            with nest.nested() as body:
                self.thread = thread = dims.symbol(name)
                self.lane, self.warp = dims.mod(thread, _LANES, nest.ranges), self._named(dims.floordiv(thread, _LANES, nest.ranges))
                if self.per_block == 1:
                    yield self._row(block)
                else:
                    row = block * self.per_block + self.warp
                    if dims.mod(self.count, self.per_block) == 0:
                        yield self._row(row)
                    else:
                        with nest.branch(compare("lt", row, self.count)):
                            yield self._row(row)
            for alloc in self.shared:
                nest.emit(alloc)
            nest.emit(For(name, threads, tuple(body), LoopKind.BLOCK))

    def _named(self, value: DimLike) -> DimLike:
        return value if isinstance(value, int) else self.nest.let_index(index_value(value), Range(0, BLOCK // _LANES - 1))

    def _row(self, number: DimLike) -> Shape:
        """The indices of a row, named."""
        ranges = self.nest.ranges
        flat = self.nest.let_index(index_value(number), Range(0, self.count - 1)) if not isinstance(number, int) else number
        places = unravel(flat, self.rows.outer, ranges)
        if len([i for i in places if i != 0]) < 2:
            return places
        return tuple(
            i if isinstance(i, int) else self.nest.let_index(index_value(i), Range(0, extent - 1))
            for i, extent in zip(places, self.rows.outer, strict=True)
        )

    # Elements -----------------------------------------------------------------------------------------

    def _thread(self) -> DimLike:
        """This thread's number among those of its row."""
        return self.lane if self.threads == _LANES else self.thread

    @contextmanager
    def _each(self, *, folds: bool) -> Iterator[Shape]:
        """This thread's elements, ``threads`` apart."""
        nest, kind = self.nest, LoopKind.UNROLLED if self.known else LoopKind.SERIAL
        with nest.loop(self.slots, kind, independent=not folds, folds=folds) as slot:
            element = slot * self.threads + self._thread()
            if dims.mod(self.size, self.threads) == 0:
                yield self._element(slot, element)
            else:
                with nest.branch(compare("lt", element, self.size)):
                    yield self._element(slot, element)

    def _element(self, slot: DimLike, element: DimLike) -> Shape:
        ranges = dict(self.nest.ranges)
        flat = element
        if len([extent for extent in self.rows.inner if extent != 1]) > 1 or dims.mod(self.size, self.threads) != 0:
            flat = self.nest.let_index(index_value(element), Range(0, self.size - 1))
            ranges = self.nest.ranges
        self.slot, self.at = slot, unravel(flat, self.rows.inner, ranges)
        return self.at

    @contextmanager
    def elements(self) -> Iterator[Shape]:
        with self._each(folds=False) as at:
            yield at

    @contextmanager
    def once(self) -> Iterator[None]:
        with self.nest.branch(compare("eq", self._thread(), 0)):
            yield

    # Sums ---------------------------------------------------------------------------------------------

    def fold(self, fn: str, dtype: DType, element: Callable[[Shape], Expr], keep: Callable[[Shape], None] | None = None) -> Expr:
        nest, wide = self.nest, accumulator(dtype)
        total = nest.alloc(wide, (1,), Space.REGISTER)
        nest.store(total, 0, identity(fn, wide))
        with self._each(folds=True) as at:
            if keep is not None:
                keep(at)
            nest.store(total, 0, op(fn, Load(total, (0,), wide), cast(element(at), wide)))
        value: Expr = nest.let(Load(total, (0,), wide))
        for distance in (16, 8, 4, 2, 1):
            value = nest.let(op(fn, value, Shuffle(value, distance)))
        return value if self.threads == _LANES else self._across_warps(fn, value)

    def _across_warps(self, fn: str, value: Expr) -> Expr:
        nest, warps = self.nest, self.threads // _LANES
        sums = nest.fresh("b")
        self.shared.append(Alloc(sums, value.dtype, (warps,), Space.SHARED))
        with nest.branch(compare("eq", self.lane, 0)):
            nest.store(sums, self.warp, value)
        nest.emit(Barrier())
        total: Expr = Load(sums, (0,), value.dtype)
        for warp in range(1, warps):
            total = op(fn, total, Load(sums, (warp,), value.dtype))
        return nest.let(total)

    # Kept values --------------------------------------------------------------------------------------

    def keeps(self, cost: int, loads: bool) -> bool:
        if not self.known or (cost < _KEEP_FROM_COST and not loads):
            return False
        return self.registers + int(self.slots) <= KEPT

    def kept(self, dtype: DType) -> RowBuffer:
        assert isinstance(self.slots, int)
        self.registers += self.slots
        return _Kept(self, self.nest.alloc(dtype, (self.slots,), Space.REGISTER), dtype)


class _Kept(RowBuffer):
    """A register for each of a thread's elements."""

    loops: CudaRows

    def put(self, at: Shape, value: Expr) -> None:
        self.loops.nest.store(self.name, self.loops.slot, value)

    def get(self, at: Shape, guard: Expr | None) -> Expr:
        if at != self.loops.at:
            raise _AnotherElement
        return Load(self.name, (self.loops.slot,), self.dtype, guard)


class _AnotherElement(InvalidModelError):
    """A stage reads what another thread keeps."""

    def __init__(self) -> None:
        super().__init__("a row value is read at another element than it was kept for")


class _KeepsNothing(CudaRows):
    def keeps(self, cost: int, loads: bool) -> bool:
        return False


def _threads(size: DimLike, count: DimLike, target: GpuTarget) -> int:
    """Threads of a row: a warp for short rows where there are many, else a block."""
    many = not isinstance(count, int) or count >= MANY_ROWS * target.sms
    if isinstance(size, int) and (size <= 128 or (size <= WARP_ROW and many)):
        return _LANES
    if isinstance(size, int) and size > BLOCK * SLOTS:
        return min(max(BLOCK, 1 << (size // SLOTS).bit_length()), target.max_threads)
    return BLOCK


def _rows(lower: Callable, node: Node, scope: Scope, target: Target) -> list[Draft | Built]:
    assert isinstance(target, GpuTarget), target
    try:
        drafts = lower(node, scope, partial(CudaRows, target=target))
    except _AnotherElement:
        drafts = lower(node, scope, partial(_KeepsNothing, target=target))
    return [_built(draft) for draft in drafts]


def _built(draft: Draft) -> Built:
    kernel, values = draft.finish()
    return Built(kernel, values)


@template("fused.rows", "cuda")
def rows(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """Reductions over trailing axes and what is between them."""
    return _rows(lower_rows, node, scope, target)


@template("reduce", "cuda")
def reduce(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """A bare reduction, where its rows are long or few; others get a thread for each result."""
    return _rows(lower_reduce, node, scope, target) if _worth(node, tuple(node.attrs["axes"]), target) else None


@template("arg_reduce", "cuda")
def arg_reduce(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """The position of an extremum, as ``reduce``."""
    return _rows(lower_arg_reduce, node, scope, target) if _worth(node, (node.attrs["axis"],), target) else None


def _worth(node: Node, axes: tuple[int, ...], target: Target) -> bool:
    """Whether threads should share a row: where its elements lie together, or there are too few rows for a thread each."""
    assert isinstance(target, GpuTarget)
    x = node.inputs[0]
    size = product(x.shape[k] for k in axes)
    if isinstance(size, int) and size < 16:
        return False
    rest = product(x.shape[k] for k in range(x.rank) if k not in axes)
    trailing = axes == tuple(range(x.rank - len(axes), x.rank))
    return trailing or (isinstance(rest, int) and rest < target.sms * 32)
