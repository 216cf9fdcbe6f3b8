"""An outer loop on vector lanes, its inner loops around the vectors: sums over a strided axis run at unit stride."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.codegen.schedule import Names
from tcompile.codegen.schedule_access import KNOWN, dependent, mentions
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Alloc, Block, Expr, For, If, Index, Let, Load, LoopKind, Space, Stmt, Store, Var, While
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk


def distribute(loop: For, width: int, names: Names) -> Block | None:
    """An outer loop on lanes: its body's statements become vectors of iterations, its inner loops stay around them.

    for i in n: acc[0] = 0; for k in m: acc[0] += x[k*n + i]; y[i] = acc[0]
    -->
    for o in n // W: acc[0, l] = 0 (l in W); for k in m: acc[0, l] += x[k*n + o*W + l]; y[o*W + l] = acc[0, l]
    (and once more for the last n % W iterations)

    None where an inner extent or branch differs between iterations.
    """
    variant = {loop.var} | dependent(loop.body, loop.var)
    if not _uniform_control(loop.body, variant):
        return None
    turns = dims.floordiv(loop.extent, width)
    rest = dims.mod(loop.extent, width)
    result: list[Stmt] = []
    outer = names("i")
    if turns != 0:
        start: DimLike = dims.symbol(outer) * width
        body = _Distributed(loop, width, width, start, names).whole()
        result.append(For(outer, turns, body))
    if rest != 0:
        tail = _Distributed(loop, width, rest, turns * width, names).whole()
        once = names("i")
        result += tail if turns == 0 else [For(once, 1, tail)]
    return tuple(result)


def _uniform_control(block: Block, variant: set[str]) -> bool:
    for stmt in walk(block):
        match stmt:
            case While():
                return False
            case If(cond=cond) if mentions(cond, variant) or any(isinstance(part, Load | Var) for part in postorder(cond)):
                return False
            case For(extent=extent, kind=kind) if not dims.symbols(extent).isdisjoint(variant) or kind is LoopKind.VECTOR:
                return False
            case Alloc(shape=shape) if not dims.shape_symbols(shape).isdisjoint(variant):
                return False
    return True


class _Distributed(Rewriter):
    """The body of a loop for ``lanes`` iterations from ``start`` on; local buffers and scalars get a lane axis."""

    def __init__(self, loop: For, width: int, lanes: DimLike, start: DimLike, names: Names) -> None:
        super().__init__()
        self.loop, self.width, self.lanes, self.names = loop, width, lanes, names
        self.lane = names("i")
        self.value = start + dims.symbol(self.lane)
        self.expanded: dict[str, Alloc] = {}
        self.scalars: dict[str, tuple[str, DType]] = {}  # Let variables: the buffer that carries them between groups

    def whole(self) -> Block:
        return self.block(self.loop.body)

    def dim(self, expr: DimLike) -> DimLike:
        if self.loop.var not in dims.symbols(expr):
            return expr
        return dims.substitute(expr, {self.loop.var: self.value}, KNOWN)

    def rebuild(self, expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer in self.expanded:
            return Load(expr.buffer, (*self.shape(expr.indices), dims.symbol(self.lane)), expr.dtype, self.optional(expr.mask))
        return super().rebuild(expr)

    def block(self, block: Sequence[Stmt]) -> Block:
        result: list[Stmt] = []
        for is_flat, group in itertools.groupby(block, key=lambda stmt: not isinstance(stmt, For | If | Alloc)):
            stmts = list(group)
            if is_flat:
                result += self._group(stmts)
            else:
                for stmt in stmts:
                    result += self._control(stmt)
        return tuple(result)

    def _control(self, stmt: Stmt) -> Block:
        if isinstance(stmt, Alloc):
            self.expanded[stmt.name] = stmt
            return (replace(stmt, shape=(*self.shape(stmt.shape), self.width)),)
        return super().statement(stmt)

    def _group(self, stmts: list[Stmt]) -> list[Stmt]:
        """Flat statements as one vector loop; scalars defined here are also kept for later groups."""
        allocs: list[Stmt] = []
        body: list[Stmt] = []
        defined = {stmt.name for stmt in stmts if isinstance(stmt, Let)}
        for name in self._needed(stmts, defined):
            buffer, dtype = self.scalars[name]
            body.append(Let(name, Load(buffer, (dims.symbol(self.lane),), dtype)))
        for stmt in stmts:
            new = super().statement(stmt)
            body += self._with_lane(new)
            if isinstance(stmt, Let):
                buffer = self.names("b")
                dtype = stmt.value.dtype
                self.scalars[stmt.name] = buffer, dtype
                allocs.append(Alloc(buffer, dtype, (self.width,), Space.REGISTER))
                body.append(Store(buffer, (dims.symbol(self.lane),), Var(stmt.name, dtype)))
        return [*allocs, For(self.lane, self.lanes, tuple(body), LoopKind.VECTOR, self.width)]

    def _with_lane(self, stmts: Block) -> Iterator[Stmt]:
        for stmt in stmts:
            if isinstance(stmt, Store) and stmt.buffer in self.expanded:
                yield replace(stmt, indices=(*stmt.indices, dims.symbol(self.lane)))
            else:
                yield stmt

    def _needed(self, stmts: list[Stmt], defined: set[str]) -> list[str]:
        used: set[str] = set()
        for stmt in stmts:
            used |= _names_in(stmt)
        return [name for name in self.scalars if name in used - defined]


def _names_in(stmt: Stmt) -> set[str]:
    found: set[str] = set(dims.shape_symbols(stmt.indices)) if isinstance(stmt, Store) else set()
    for part in postorder(*expressions(stmt)):
        match part:
            case Var(name=name):
                found.add(name)
            case Index(expr=expr):
                found |= dims.symbols(expr)
            case Load(indices=indices):
                found |= dims.shape_symbols(indices)
    return found
