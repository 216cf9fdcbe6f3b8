"""The Program IR: what a run does, between the graph and the loops. Buffers, kernel calls and control flow.

The CPU lowers a program to one native entry, CUDA walks it, the interpreter runs it. Invariants: every buffer is
written before it is read; every symbol is bound before an expression uses it (entry symbols by the input
shapes); a buffer's shape may change only through a ``BindDim`` or the loop that owns the symbol.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.loops import Kernel


class Role(StrEnum):
    """Who owns a buffer's memory."""

    INPUT = "input"  # the caller
    OUTPUT = "output"  # the caller, or the session where the shape is known only during the run
    WEIGHT = "weight"  # the artifact, read-only
    TEMP = "temp"  # the arena: the shape depends on entry symbols only
    GROWING = "growing"  # a block of its own that the host grows: the shape depends on symbols bound by the run


@dataclass(frozen=True)
class Pitch:
    """A symbol, at least the axis' extent, that memory is addressed by in its place: the rows behind the extent are others'."""

    axis: int
    symbol: str


@dataclass(frozen=True, eq=False)
class Buffer:
    """Row-major memory of ``shape`` elements; compared by identity."""

    name: str
    dtype: DType
    shape: Shape
    role: Role
    value: np.ndarray | None = None  # of a WEIGHT
    pitch: Pitch | None = None  # of an INPUT or OUTPUT


@dataclass(frozen=True, eq=False)
class Call:
    """Runs a kernel; ``dims`` are the values of the kernel's dims, in order."""

    kernel: Kernel
    buffers: tuple[Buffer, ...]
    dims: tuple[DimLike, ...]
    source: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class BindDim:
    """symbol = the i64 in ``buffer``; stops the run where it is outside ``range``."""

    symbol: str
    buffer: Buffer
    range: Range
    source: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SetDim:
    """symbol = an expression over symbols already bound."""

    symbol: str
    expr: DimLike


@dataclass(frozen=True, eq=False)
class Allocate:
    """Makes sure that a GROWING buffer holds its shape under the symbols' present values."""

    buffer: Buffer


@dataclass(frozen=True, eq=False)
class Copy:
    """target = source, of the same dtype and number of elements (``size``)."""

    target: Buffer
    source: Buffer
    size: DimLike


@dataclass(frozen=True, eq=False)
class If:
    """Runs one of two blocks by a bool buffer of one element."""

    cond: Buffer
    then: tuple[Instruction, ...]
    otherwise: tuple[Instruction, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """for iteration in 0.. while iteration < trip (where given) and the bool in ``cond`` (where given) is true.

    ``counter`` is a symbol that holds the iteration number inside the body and the number of turns after the loop;
    ``trip`` is an expression, or a symbol bound before. ``cond`` is read before each turn.
    """

    counter: str
    trip: DimLike | None
    cond: Buffer | None
    body: tuple[Instruction, ...]


@dataclass(frozen=True, eq=False)
class Concurrent:
    """Runs blocks, each of them once, in any order or at once: none reads or writes what another writes, symbols included.

    A block is a chain of calls and copies that ends in a Loop; the loops have one trip, no condition, and nothing that grows.
    """

    branches: tuple[tuple[Instruction, ...], ...]


@dataclass(frozen=True, eq=False)
class Require:
    """Stops the run unless ``expr`` >= 0."""

    expr: DimLike
    message: str
    source: tuple[str, ...] = ()


Instruction = Call | BindDim | SetDim | Allocate | Copy | If | Loop | Concurrent | Require


@dataclass(eq=False)
class Program:
    """A compiled graph before code generation."""

    name: str
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    output_names: tuple[str, ...]
    body: tuple[Instruction, ...]
    symbols: dict[str, Range]
    entry_symbols: tuple[str, ...]
    notes: dict[str, str] = field(default_factory=dict)
