"""What a block of Loop IR touches: steps of its accesses along a variable, what depends on it, what is never read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Alloc, Atomic, Block, Expr, For, Index, Let, Load, Stmt, Store, Var, While
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk


class Known(dict):
    """Ranges of names alone: loop variables and dims are not negative, scalars (``%x``) may be anything."""

    def get(self, name: str, default: object = None) -> Range:
        return Range(-(2**62), None) if name.startswith("%x") else Range(0, None)

    def __bool__(self) -> bool:
        return True


KNOWN = Known()


@dataclass(frozen=True)
class Access:
    """One load or store. ``step`` is how many elements it moves when a variable grows by one; None: not constant."""

    buffer: str
    dtype: DType
    is_store: bool
    step: DimLike | None


def accesses(block: Block, var: str) -> list[Access]:
    """All loads and stores of a block, each expression once, as a function of a loop variable."""
    variant = {var} | dependent(block, var)
    found = []
    for stmt in walk(block):
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Load):
                found.append(Access(expr.buffer, expr.dtype, False, _step(expr.indices, var, variant)))
        if isinstance(stmt, Store):
            found.append(Access(stmt.buffer, stmt.value.dtype, True, _step(stmt.indices, var, variant)))
    return found


def load_steps(block: Block, var: str) -> list[tuple[Load, DimLike | None]]:
    """Every load of a block once, with its step along a loop variable."""
    variant = {var} | dependent(block, var)
    found: dict[int, tuple[Load, DimLike | None]] = {}
    for stmt in walk(block):
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Load) and id(expr) not in found:
                found[id(expr)] = expr, _step(expr.indices, var, variant)
    return list(found.values())


def dependent(block: Block, var: str) -> set[str]:
    """Names of scalars whose value depends on a loop variable."""
    found = {var}
    for stmt in walk(block):
        if isinstance(stmt, Let) and mentions(stmt.value, found):
            found.add(stmt.name)
    return found - {var}


def indices_of(block: Block) -> Iterator[DimLike]:
    """Every index expression of a block: of accesses, values and extents."""
    for stmt in walk(block):
        match stmt:
            case For(extent=extent):
                yield extent
            case Alloc(shape=shape):
                yield from shape
            case Store(indices=indices) | Atomic(indices=indices):
                yield from indices
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Load):
                yield from expr.indices
            elif isinstance(expr, Index):
                yield expr.expr


def has_loops(block: Block) -> bool:
    """Whether a block holds a loop."""
    return any(isinstance(stmt, For | While) for stmt in walk(block))


def only_loop(block: Block) -> For | None:
    """The loop that is all of a block."""
    return block[0] if len(block) == 1 and isinstance(block[0], For) else None


def _step(indices: Shape, var: str, variant: set[str]) -> DimLike | None:
    step: DimLike = 0
    for index in indices:
        if dims.symbols(index).isdisjoint(variant):
            continue
        parts = dims.linear(index, var)
        if parts is None or not dims.symbols(parts[1]).isdisjoint(variant):
            return None
        step = step + parts[0]
    return step


def mentions(expr: Expr, names: set[str]) -> bool:
    """Whether an expression uses any of some scalar or loop variables."""
    for part in postorder(expr):
        if isinstance(part, Var) and part.name in names:
            return True
        if isinstance(part, Index) and not dims.symbols(part.expr).isdisjoint(names):
            return True
        if isinstance(part, Load) and not dims.shape_symbols(part.indices).isdisjoint(names):
            return True
    return False


def drop_unused(block: Block) -> Block:
    """Removes scalars and register buffers that nothing reads."""
    while True:
        used, loaded = _uses(block)
        cleaned = _Cleaner(used, loaded).block(block)
        if cleaned == block or _count(cleaned) == _count(block):
            return cleaned
        block = cleaned


def _uses(block: Block) -> tuple[set[str], set[str]]:
    used: set[str] = set()
    loaded: set[str] = set()
    for index in indices_of(block):
        used |= dims.symbols(index)
    for stmt in walk(block):
        for part in postorder(*expressions(stmt)):
            if isinstance(part, Var):
                used.add(part.name)
            elif isinstance(part, Load):
                loaded.add(part.buffer)
    return used, loaded


class _Cleaner(Rewriter):
    def __init__(self, used: set[str], loaded: set[str]) -> None:
        super().__init__()
        self.used, self.loaded = used, loaded
        self.local: set[str] = set()

    def statement(self, stmt: Stmt) -> Block:
        match stmt:
            case Let(name=name) if name not in self.used:
                return ()
            case Alloc(name=name) if name not in self.loaded:
                self.local.add(name)
                return ()
            case Store(buffer=buffer) if buffer in self.local:
                return ()
            case For():
                body = self.block(stmt.body)
                return (replace(stmt, body=body),) if body else ()
        return super().statement(stmt)


def _count(block: Block) -> int:
    return sum(1 for _ in walk(block))
