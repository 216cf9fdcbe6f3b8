"""A reduction loop on vector lanes.

The order of the sum changes, once: it depends on the extent and the vector width alone, never on threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.loop_rewrite import Rewriter, substitute
from tcompile.codegen.scalar import identity, op
from tcompile.codegen.schedule import Names
from tcompile.codegen.schedule_access import KNOWN, accesses, has_loops
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.loops import Alloc, Block, Expr, For, If, Load, LoopKind, Op, Space, Stmt, Store
from tcompile.ir.loops_interpret import walk


@dataclass(frozen=True)
class Accumulation:
    """``acc[0] = fn(acc[0], ...)``, the last statement of a loop body."""

    store: Store
    fn: str


def accumulation(loop: For) -> Accumulation | None:
    """The accumulation that a loop ends in, where its other statements leave the accumulator alone."""
    last = loop.body[-1] if loop.body else None
    if not isinstance(last, Store) or last.mask is not None or last.indices != (0,) or not isinstance(last.value, Op):
        return None
    fn = "add" if last.value.fn == "fma" else last.value.fn
    uses = [part for part in last.value.args if isinstance(part, Load) and part.buffer == last.buffer]
    if fn not in ("add", "mul", "min", "max", "and", "or") or len(uses) != 1 or uses[0].indices != (0,):
        return None
    touched = [access.buffer for access in accesses(loop.body, loop.var)]
    return Accumulation(last, fn) if touched.count(last.buffer) == 2 else None


def lanes_of(loop: For, width: int, unroll: int, names: Names) -> Block | None:
    """A reduction loop on lanes: ``unroll`` vectors of partial results, joined in a fixed tree.

    for k in n: acc[0] = acc[0] + f(k)
    -->
    lanes[u, l] = 0
    for o in n // (U*W): for u in U: for l in W: lanes[u, l] = lanes[u, l] + f(o*U*W + u*W + l)
    (the rest in vectors, the rest of that in one masked vector, into lanes[0])
    lanes[0, l] = sum over u, then halves of the lanes; acc[0] = acc[0] + lanes[0, 0]
    """
    found = accumulation(loop)
    if found is None or has_loops(loop.body) or any(isinstance(stmt, If | Alloc) for stmt in walk(loop.body)):
        return None
    return _LanesOf(loop, found, width, unroll, names).block()


class _LanesOf:
    def __init__(self, loop: For, found: Accumulation, width: int, unroll: int, names: Names) -> None:
        self.loop, self.found, self.width, self.names = loop, found, width, names
        if isinstance(loop.extent, int):
            unroll = max(1, min(unroll, loop.extent // width))
        self.unroll = unroll
        self.dtype = found.store.value.dtype
        self.lanes = names("b")
        self.lane = names("i")

    def block(self) -> Block:
        n, w, u = self.loop.extent, self.width, self.unroll
        start: DimLike = 0
        body: list[Stmt] = [Alloc(self.lanes, self.dtype, (u, w), Space.REGISTER)]
        body += [self._lane_loop(w, (Store(self.lanes, (k, self._l), identity(self.found.fn, self.dtype)),)) for k in range(u)]
        for step in dict.fromkeys((u * w, w)):
            turns = dims.floordiv(n - start, step)
            body += self._main(turns, start, step // w)
            start = start + turns * step
        body += self._vector(start, 0, dims.mod(n, w))
        return (*body, *self._join())

    @property
    def _l(self) -> DimLike:
        return dims.symbol(self.lane)

    def _main(self, turns: DimLike, start: DimLike, vectors: int) -> list[Stmt]:
        if turns == 0:
            return []
        outer = self.names("i")
        base = start + dims.symbol(outer) * (vectors * self.width)
        inner = [stmt for k in range(vectors) for stmt in self._vector(base + k * self.width, k, self.width)]
        return [For(outer, turns, tuple(inner))]

    def _vector(self, start: DimLike, row: int, extent: DimLike) -> list[Stmt]:
        """One vector's worth of iterations from ``start`` on, into a row of lanes."""
        if extent == 0:
            return []
        body = substitute(self.loop.body, {self.loop.var: start + self._l}, KNOWN)
        return [self._lane_loop(extent, redirected(body, self.found.store.buffer, self.lanes, (row, self._l)))]

    def _lane_loop(self, extent: DimLike, body: Block) -> For:
        return For(self.lane, extent, body, LoopKind.VECTOR, self.width)

    def _join(self) -> list[Stmt]:
        """Rows into row 0, then a tree of halves: lane l with lane l + W/2, and so on."""
        rows = [self._lane_loop(self.width, (self._add_row(k),)) for k in range(1, self.unroll)]
        parts: list[Expr] = [Load(self.lanes, (0, lane), self.dtype) for lane in range(self.width)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [op(self.found.fn, a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
        store = self.found.store
        return [*rows, Store(store.buffer, (0,), op(self.found.fn, Load(store.buffer, (0,), self.dtype), parts[0]))]

    def _add_row(self, row: int) -> Store:
        first, other = (Load(self.lanes, (k, self._l), self.dtype) for k in (0, row))
        return Store(self.lanes, (0, self._l), op(self.found.fn, first, other))


def redirected(block: Block, old: str, new: str, indices: Shape) -> Block:
    """A block whose accesses of one buffer go to fixed indices of another."""
    return _Redirect(old, new, indices).block(block)


class _Redirect(Rewriter):
    """Accesses of one buffer become accesses of another at fixed indices."""

    def __init__(self, old: str, new: str, indices: Shape) -> None:
        super().__init__()
        self.old, self.new, self.indices = old, new, indices

    def rebuild(self, expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer == self.old:
            return Load(self.new, self.indices, expr.dtype)
        return super().rebuild(expr)

    def statement(self, stmt: Stmt) -> Block:
        if isinstance(stmt, Store) and stmt.buffer == self.old:
            return (Store(self.new, self.indices, self.expr(stmt.value), self.optional(stmt.mask)),)
        return super().statement(stmt)
