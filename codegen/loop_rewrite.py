"""Rebuilding Loop IR: one visitor that schedules, renaming and substitution share.

Expressions that were one object stay one object, and what does not change is returned as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges, Shape, Symbol
from tcompile.ir.loops import (
    Alloc,
    Atomic,
    Barrier,
    Bitcast,
    Block,
    Cast,
    Check,
    CommitAsync,
    Const,
    CopyAsync,
    Expr,
    For,
    If,
    Index,
    Let,
    Load,
    Op,
    Prefetch,
    Select,
    Shuffle,
    Stmt,
    Store,
    Tile,
    TileOp,
    Var,
    WaitAsync,
    While,
)


class Rewriter:
    """Rebuilds blocks, statements and expressions; subclasses override the parts they change."""

    def __init__(self) -> None:
        self._exprs: dict[int, tuple[Expr, Expr]] = {}  # the old expression is kept: its id is the key
        self._indices: dict[DimLike, DimLike] = {}

    # Hooks --------------------------------------------------------------------------------------------

    def dim(self, expr: DimLike) -> DimLike:
        """What an index expression becomes."""
        return expr

    def buffer(self, name: str) -> str:
        """What the name of a buffer becomes where it is used."""
        return name

    def variable(self, var: Var) -> Expr:
        """What a scalar variable becomes."""
        return var

    # The walk -----------------------------------------------------------------------------------------

    def block(self, block: Iterable[Stmt]) -> Block:
        """A block rebuilt; a statement may become several."""
        return tuple(new for stmt in block for new in self.statement(stmt))

    def statement(self, stmt: Stmt) -> Block:
        """The statements that replace one."""
        match stmt:
            case For():
                return (replace(stmt, extent=self.index(stmt.extent), body=self.block(stmt.body)),)
            case While():
                return (While(self.expr(stmt.cond), self.block(stmt.body)),)
            case If():
                return (If(self.expr(stmt.cond), self.block(stmt.then), self.block(stmt.otherwise)),)
            case Let():
                return (Let(stmt.name, self.expr(stmt.value)),)
            case Store():
                return (Store(self.buffer(stmt.buffer), self.shape(stmt.indices), self.expr(stmt.value), self.optional(stmt.mask)),)
            case Alloc():
                return (replace(stmt, shape=self.shape(stmt.shape)),)
            case Check():
                return (Check(self.expr(stmt.cond), stmt.status),)
            case Prefetch():
                return (Prefetch(self.buffer(stmt.buffer), self.shape(stmt.indices), stmt.near),)
        return self.together(stmt)

    def together(self, stmt: Stmt) -> Block:
        """What replaces a statement of threads that work together."""
        match stmt:
            case Barrier() | CommitAsync() | WaitAsync():
                return (stmt,)
            case CopyAsync():
                target, source = self.tile(Tile(stmt.target, stmt.target_indices)), self.tile(Tile(stmt.source, stmt.source_indices))
                mask = self.optional(stmt.mask)
                return (CopyAsync(target.buffer, target.indices, source.buffer, source.indices, stmt.elements, mask),)
            case Atomic():
                place = self.tile(Tile(stmt.buffer, stmt.indices))
                return (Atomic(stmt.fn, place.buffer, place.indices, self.expr(stmt.value), self.optional(stmt.mask)),)
            case TileOp():
                return (TileOp(stmt.name, tuple(map(self.tile, stmt.operands))),)
        raise TypeError(f"not a Loop IR statement: {stmt!r}")

    def tile(self, tile: Tile) -> Tile:
        """What an operand of a tile operation becomes."""
        return Tile(self.buffer(tile.buffer), self.shape(tile.indices))

    def index(self, expr: DimLike) -> DimLike:
        """``dim``, remembered."""
        if isinstance(expr, int):
            return expr
        known = self._indices.get(expr)
        if known is None:
            known = self._indices[expr] = self.dim(expr)
        return known

    def shape(self, shape: Shape) -> Shape:
        return tuple(map(self.index, shape))

    def optional(self, expr: Expr | None) -> Expr | None:
        return None if expr is None else self.expr(expr)

    def expr(self, expr: Expr) -> Expr:
        """An expression rebuilt, once for each object."""
        known = self._exprs.get(id(expr))
        if known is None:
            known = self._exprs[id(expr)] = (expr, self.rebuild(expr))
        return known[1]

    def rebuild(self, expr: Expr) -> Expr:
        """What an expression becomes, its operands rebuilt first."""
        match expr:
            case Const():
                return expr
            case Var():
                return self.variable(expr)
            case Index():
                new = self.index(expr.expr)
                return expr if new == expr.expr else Index(new, expr.dtype)
            case Load():
                return self._load(expr)
            case Op():
                args = tuple(map(self.expr, expr.args))
                return expr if _same(args, expr.args) else Op(expr.fn, args, expr.dtype)
            case Cast():
                arg = self.expr(expr.arg)
                return expr if arg is expr.arg else Cast(arg, expr.dtype, expr.saturate)
            case Bitcast():
                arg = self.expr(expr.arg)
                return expr if arg is expr.arg else Bitcast(arg, expr.dtype)
            case Shuffle():
                arg = self.expr(expr.arg)
                return expr if arg is expr.arg else Shuffle(arg, expr.xor)
            case Select():
                parts = (self.expr(expr.cond), self.expr(expr.then), self.expr(expr.otherwise))
                return expr if _same(parts, (expr.cond, expr.then, expr.otherwise)) else Select(*parts)
        raise TypeError(f"not a Loop IR expression: {expr!r}")

    def _load(self, load: Load) -> Expr:
        indices, mask, buffer = self.shape(load.indices), self.optional(load.mask), self.buffer(load.buffer)
        if buffer == load.buffer and indices == load.indices and mask is load.mask:
            return load
        return Load(buffer, indices, load.dtype, mask)


class Substitution(Rewriter):
    """Replaces variables of index expressions, and with them the scalar variables of the same names."""

    def __init__(self, values: Mapping[str, DimLike], ranges: Ranges | None = None) -> None:
        super().__init__()
        self.values, self.ranges = values, ranges

    def dim(self, expr: DimLike) -> DimLike:
        if dims.symbols(expr).isdisjoint(self.values):
            return expr
        return dims.substitute(expr, self.values, self.ranges)

    def variable(self, var: Var) -> Expr:
        if var.name not in self.values:
            return var
        new = self.values[var.name]
        if isinstance(new, int):
            return Const(new, var.dtype)
        name = _only_symbol(new)
        return Var(name, var.dtype) if name is not None else Index(new, var.dtype)


def substitute(block: Block, values: Mapping[str, DimLike], ranges: Ranges | None = None) -> Block:
    """A block with loop variables or dims replaced by expressions."""
    return Substitution(values, ranges).block(block)


def _same(a: tuple, b: tuple) -> bool:
    return all(x is y for x, y in zip(a, b, strict=True))


def _only_symbol(expr: DimLike) -> str | None:
    if isinstance(expr, int) or len(expr.terms) != 1:
        return None
    monomial, factor = expr.terms[0]
    return monomial[0].name if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Symbol) else None
