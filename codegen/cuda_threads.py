"""Items of work on the threads of a GPU: the grid and block loops around a body, and memory of a thread that is too large for it.

for i in n: for j in m: f(i, j)
-->
grid g in ceil(n*m / 256): block t in 256:
    let item = g*256 + t; if item < n*m: let i = item // m; let j = item % m; f(i, j)
"""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.codegen.scalar import compare
from tcompile.codegen.schedule import Names
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Ranges, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import TensorType, Value
from tcompile.ir.loops import Access, Alloc, Block, Expr, For, If, Index, Let, Load, LoopKind, Param, Space, Stmt, Store

THREADS = 256  # of a block where nothing asks for another number
LOCAL_BYTES = 512  # of constant scratch that a thread may keep for itself


def on_threads(count: DimLike, body: Block, item: str, names: Names, threads: int = THREADS) -> Block:
    """A thread for each item; ``item`` is the name that the body has for its number."""
    if isinstance(count, int) and count < threads:
        threads = max(-(-count // 32) * 32, 32)
    grid, block = names("g"), names("t")
    place = dims.symbol(grid) * threads + dims.symbol(block)
    if dims.mod(count, threads) != 0:
        body = (If(compare("lt", dims.symbol(item), count), body),)
    inner = For(block, threads, (Let(item, Index(place)), *body), LoopKind.BLOCK)
    return (For(grid, dims.ceildiv(count, threads), (inner,), LoopKind.GRID),)


def split_item(item: str, loops: Sequence[For]) -> tuple[Block, DimLike]:
    """Lets that give every loop's variable from the number of an item, and the number of items."""
    count = dims.product(loop.extent for loop in loops)
    ranges: Ranges = {item: Range(0, count - 1)}
    lets: list[Stmt] = []
    for k, loop in enumerate(loops):
        inner = dims.product(other.extent for other in loops[k + 1 :])
        if count == 0:  # code that never runs
            lets.append(Let(loop.var, Index(0)))
            continue
        index = dims.floordiv(dims.symbol(item), inner, ranges)
        if any(other.extent != 1 for other in loops[:k]):
            index = dims.mod(index, loop.extent, ranges)
        lets.append(Let(loop.var, Index(index)))
    return tuple(lets), count


def one_thread(body: Block, names: Names) -> Block:
    """Work that is in order from its first statement to its last."""
    inner = For(names("t"), 1, body, LoopKind.BLOCK)
    return (For(names("g"), 1, (inner,), LoopKind.GRID),)


# Memory of a thread -----------------------------------------------------------------------------------------


def spilled(body: Block, item: DimLike, count: DimLike, names: Names) -> tuple[Block, list[tuple[Param, Value]]]:
    """A thread's scratch that is large or of run-time size moves to memory: element k of all threads lies together.

    alloc b[n]; b[k]  -->  scratch[k * count + item]
    """
    mover = _Mover(item, count, names)
    return mover.block(body), mover.params


class _Mover(Rewriter):
    def __init__(self, item: DimLike, count: DimLike, names: Names) -> None:
        super().__init__()
        self.item, self.count, self.names = item, count, names
        self.params: list[tuple[Param, Value]] = []
        self.moved: dict[str, tuple[str, Shape]] = {}

    def statement(self, stmt: Stmt) -> Block:
        if isinstance(stmt, Alloc) and stmt.space is Space.STACK and not _fits(stmt.dtype, stmt.shape):
            name = self.names("p")
            size = dims.product(stmt.shape) * self.count
            value = Value("scratch", TensorType(stmt.dtype, (size,)))
            self.params.append((Param(name, stmt.dtype, (size,), Access.OUT), value))
            self.moved[stmt.name] = name, stmt.shape
            return ()
        if isinstance(stmt, Store) and stmt.buffer in self.moved:
            name, index = self._place(stmt.buffer, self.shape(stmt.indices))
            return (Store(name, index, self.expr(stmt.value), self.optional(stmt.mask)),)
        return super().statement(stmt)

    def rebuild(self, expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer in self.moved:
            name, index = self._place(expr.buffer, self.shape(expr.indices))
            return Load(name, index, expr.dtype, self.optional(expr.mask))
        return super().rebuild(expr)

    def _place(self, buffer: str, indices: Shape) -> tuple[str, Shape]:
        name, shape = self.moved[buffer]
        flat: DimLike = 0
        for index, extent in zip(indices, shape, strict=True):
            flat = flat * extent + index
        return name, (flat * self.count + self.item,)


def _fits(dtype: DType, shape: Shape) -> bool:
    size = dims.product(shape)
    return isinstance(size, int) and size * dtype.bytes <= LOCAL_BYTES
