"""REGISTER buffers: SSA values while a kernel is emitted, phis where control flow meets; never memory.

Alloc(REGISTER) [8, 3, 16] used by vector loops of width 16  ->  24 values of 16 lanes
used one element at a time                                   ->  one value per element
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from tcompile.codegen.cpu_emit_values import Value
from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Alloc, Block, Check, For, If, Kernel, Let, Load, LoopKind, Space, Stmt, Store, While
from tcompile.ir.loops_evaluate import postorder

Key = tuple[int, ...]


@dataclass
class Registers:
    """One REGISTER buffer: ``values`` by leading indices and vector number (``lanes`` 0: element number)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    lanes: int
    values: dict[Key, Value] = field(default_factory=dict)

    def elements(self) -> Iterable[Key]:
        """The keys of all values."""
        *outer, last = self.shape or (1,)
        count = -(-last // self.lanes) if self.lanes else last
        return itertools.product(*map(range, outer), range(count))


def lanes_of(kernel: Kernel) -> dict[str, int]:
    """The lanes that each REGISTER buffer is held in (0: scalars). Raises InvalidModelError for an index that is no constant."""
    found = {alloc.name: 0 for alloc in _allocs(kernel.body) if alloc.space is Space.REGISTER}
    if found:
        _Uses(found).block(kernel.body, frozenset(), None)
    return found


def _allocs(block: Block) -> Iterable[Alloc]:
    for stmt in block:
        if isinstance(stmt, Alloc):
            yield stmt
        elif isinstance(stmt, For | While):
            yield from _allocs(stmt.body)
        elif isinstance(stmt, If):
            yield from _allocs(stmt.then)
            yield from _allocs(stmt.otherwise)


class _Uses:
    """Walks a kernel and notes how REGISTER buffers are indexed."""

    def __init__(self, found: dict[str, int]) -> None:
        self.found = found
        self.seen: set[tuple[int, str | None]] = set()

    def block(self, block: Block, constants: frozenset[str], lane: For | None) -> None:
        for stmt in block:
            self.statement(stmt, constants, lane)

    def statement(self, stmt: Stmt, constants: frozenset[str], lane: For | None) -> None:
        match stmt:
            case For(kind=LoopKind.VECTOR):
                self.block(stmt.body, constants, stmt)
            case For():
                fixed = stmt.kind is LoopKind.UNROLLED or stmt.extent == 1
                self.block(stmt.body, constants | {stmt.var} if fixed else constants - {stmt.var}, lane)
            case While():
                self.expressions((stmt.cond,), constants, lane)
                self.block(stmt.body, constants, lane)
            case If():
                self.expressions((stmt.cond,), constants, lane)
                self.block(stmt.then, constants, lane)
                self.block(stmt.otherwise, constants, lane)
            case Store():
                self.access(stmt.buffer, stmt.indices, constants, lane)
                self.expressions((stmt.value,) if stmt.mask is None else (stmt.value, stmt.mask), constants, lane)
            case Let():
                self.expressions((stmt.value,), constants, lane)
            case Check():
                self.expressions((stmt.cond,), constants, lane)

    def expressions(self, roots: tuple, constants: frozenset[str], lane: For | None) -> None:
        for expr in postorder(*roots):
            if isinstance(expr, Load):
                self.access(expr.buffer, expr.indices, constants, lane)

    def access(self, name: str, indices: Shape, constants: frozenset[str], lane: For | None) -> None:
        if name not in self.found:
            return
        variable = dims.shape_symbols(indices) - constants
        if lane is not None and indices and dims.linear(indices[-1], lane.var) is not None and lane.var in variable:
            variable -= {lane.var}
            self._agree(name, lane.width)
        if variable:
            raise InvalidModelError(
                f"register buffer {name}: expected constant indices after unrolling, got [{', '.join(map(str, indices))}]",
                hint="unroll the loop, or put the buffer on the STACK",
            )

    def _agree(self, name: str, width: int) -> None:
        if self.found[name] not in (0, width):
            raise InvalidModelError(f"register buffer {name}: used by vector loops of {self.found[name]} and of {width} lanes")
        self.found[name] = width
