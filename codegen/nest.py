"""A block of Loop IR under construction: loops and branches open as context managers, names are fresh.

Names start with ``%`` while a kernel is built, so that they never meet a dimension symbol of the model;
``codegen/canonical.py`` gives the final ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Ranges, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Alloc, Block, Check, Expr, For, If, Let, LoopKind, Prefetch, Space, Status, Stmt, Store, Var, While


class Nest:
    """Appends statements to the innermost open block. ``ranges`` grows by every variable it binds."""

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges: dict[str, Range] = dict(ranges or {})
        self._blocks: list[list[Stmt]] = [[]]
        self._numbers = itertools.count()
        self._scope_numbers = itertools.count(1)
        self.scopes: list[int] = [0]  # identities of the open blocks, outermost first
        self.independent: set[str] = set()  # loop variables whose iterations neither share nor order anything
        self.folds: set[str] = set()  # loop variables of loops that do nothing in order but accumulate

    def fresh(self, hint: str) -> str:
        """A name that nothing else in this kernel has."""
        return f"%{hint}{next(self._numbers)}"

    def emit(self, statement: Stmt) -> None:
        """Appends a statement."""
        self._blocks[-1].append(statement)

    def block(self) -> Block:
        """The finished outermost block."""
        (body,) = self._blocks
        return tuple(body)

    @contextmanager
    def nested(self) -> Iterator[list[Stmt]]:
        """Collects statements into a block of their own, for the caller to place."""
        body: list[Stmt] = []
        self._blocks.append(body)
        self.scopes.append(next(self._scope_numbers))
        try:
            yield body
        finally:
            self._blocks.pop()
            self.scopes.pop()

    @contextmanager
    def loop(
        self, extent: DimLike, kind: LoopKind = LoopKind.SERIAL, width: int = 1, *, independent: bool = False, folds: bool = False
    ) -> Iterator[DimLike]:
        """A loop over 0 .. extent-1; yields the index. One turn needs no loop."""
        if extent == 1 and kind is LoopKind.SERIAL:
            yield 0
            return
        name = self.fresh("i")
        self.ranges[name] = Range(0, extent - 1)
        if independent:
            self.independent.add(name)
        if folds:
            self.folds.add(name)
        with self.nested() as body:
            yield dims.symbol(name)
        self.emit(For(name, extent, tuple(body), kind, width))

    @contextmanager
    def loops(self, shape: Sequence[DimLike], *, independent: bool = False, folds: bool = False) -> Iterator[Shape]:
        """Nested serial loops, the first outermost; yields the indices."""
        with ExitStack() as stack:
            yield tuple(stack.enter_context(self.loop(extent, independent=independent, folds=folds)) for extent in shape)

    @contextmanager
    def while_(self, cond: Expr) -> Iterator[None]:
        """A loop as long as ``cond``, which must read what the body changes through buffers."""
        with self.nested() as body:
            yield
        self.emit(While(cond, tuple(body)))

    @contextmanager
    def branch(self, cond: Expr) -> Iterator[None]:
        """Statements under a condition."""
        with self.nested() as body:
            yield
        self.emit(If(cond, tuple(body)))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The other side of the branch that was closed last."""
        with self.nested() as body:
            yield
        before = self._blocks[-1].pop()
        assert isinstance(before, If) and not before.otherwise, before
        self.emit(If(before.cond, before.then, tuple(body)))

    def let(self, value: Expr, hint: str = "x") -> Var:
        """Names the value of an expression."""
        name = self.fresh(hint)
        self.emit(Let(name, value))
        return Var(name, value.dtype)

    def let_index(self, value: Expr, known: Range | None = None) -> DimLike:
        """Names an i64 value for use in indices; ``known`` is what later code may rely on."""
        name = self.fresh("x")
        self.ranges[name] = known or Range(-(2**63), 2**63 - 1)
        self.emit(Let(name, value))
        return dims.symbol(name)

    def alloc(self, dtype: DType, shape: Sequence[DimLike], space: Space = Space.STACK) -> str:
        """A buffer for the rest of the open block."""
        name = self.fresh("b")
        self.emit(Alloc(name, dtype, tuple(shape), space))
        return name

    def store(self, buffer: str, index: DimLike | Shape, value: Expr, mask: Expr | None = None) -> None:
        """buffer[index] = value."""
        self.emit(Store(buffer, index if isinstance(index, tuple) else (index,), value, mask))

    def check(self, cond: Expr, status: Status) -> None:
        """Stops the run unless ``cond``."""
        self.emit(Check(cond, status))

    def prefetch(self, buffer: str, index: DimLike, *, near: bool = False) -> None:
        """Asks for the cache line of an element of a flat buffer."""
        self.emit(Prefetch(buffer, (index,), near))
