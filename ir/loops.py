"""The Loop IR: one kernel as loops, scalar expressions and stores. Immutable; the whole grammar is here.

    kernel  ::= Kernel(name, params, dims, body)
    stmt    ::= For | While | If | Let | Store | Alloc | Check | Prefetch | Block-as-tuple
    expr    ::= Const | Var | Index | Load | Op | Cast | Bitcast | Select

Every expression is a scalar of one element type; a ``vector`` loop makes its body run on ``width`` lanes at
once. Indices are ``Dim`` expressions over loop variables, the kernel's dims and i64 ``Let`` variables.
Buffers are row-major over the shape their declaration gives. An expression object that occurs twice (the same
Python object) is evaluated once where both uses stand in one block without a store between them to what it loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import BOOL, I64, DType


class LoopKind(StrEnum):
    """How a loop runs. The GPU kinds bind the loop variable to a hardware index."""

    SERIAL = "serial"
    UNROLLED = "unrolled"  # constant extent; expanded when code is generated
    VECTOR = "vector"  # lanes; full vectors, then one masked tail; body holds no loop but unrolled ones
    PARALLEL = "parallel"  # outermost only: the range [begin, end) that a worker is given
    GRID = "grid"
    BLOCK = "block"
    WARP = "warp"
    LANE = "lane"


class Space(StrEnum):
    """Where a buffer lives."""

    GLOBAL = "global"
    SHARED = "shared"
    STACK = "stack"  # per-thread scratch: a slice of the scratch area, any size known from dims
    REGISTER = "register"  # constant shape; every index constant after unrolling (a vector lane index is)


# Expressions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Const:
    value: int | float | bool
    dtype: DType


@dataclass(frozen=True, eq=False)
class Var:
    """A scalar bound by ``Let``. (An i64 Let variable may also appear as a symbol in indices.)"""

    name: str
    dtype: DType


@dataclass(frozen=True, eq=False)
class Index:
    """The i64 value of an index expression."""

    expr: DimLike
    dtype: DType = I64


@dataclass(frozen=True, eq=False)
class Load:
    """buffer[indices]; out of bounds is an error unless ``mask`` (a bool expression) is false, which gives 0."""

    buffer: str
    indices: Shape
    dtype: DType
    mask: Expr | None = None


@dataclass(frozen=True, eq=False)
class Op:
    """A function of the elementwise table (``ir/elementwise.py``), ``fma`` included. Never traps, never poison."""

    fn: str
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, eq=False)
class Cast:
    """A conversion as the graph's ``convert``: float to int truncates and saturates (NaN gives 0)."""

    arg: Expr
    dtype: DType
    saturate: bool = True


@dataclass(frozen=True, eq=False)
class Bitcast:
    """The same bits as another type of the same width."""

    arg: Expr
    dtype: DType


@dataclass(frozen=True, eq=False)
class Select:
    """``then`` where cond, else ``otherwise``; both are evaluated."""

    cond: Expr
    then: Expr
    otherwise: Expr

    @property
    def dtype(self) -> DType:
        return self.then.dtype


Expr = Const | Var | Index | Load | Op | Cast | Bitcast | Select


# Statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class For:
    """for var in 0 .. extent-1. ``width`` is the number of lanes of a vector loop."""

    var: str
    extent: DimLike
    body: Block
    kind: LoopKind = LoopKind.SERIAL
    width: int = 1


@dataclass(frozen=True, eq=False)
class While:
    """Runs ``body`` as long as ``cond``, evaluated before each turn, is true."""

    cond: Expr
    body: Block


@dataclass(frozen=True, eq=False)
class If:
    """``cond`` must be uniform over vector lanes."""

    cond: Expr
    then: Block
    otherwise: Block = ()


@dataclass(frozen=True, eq=False)
class Let:
    """Binds a name for the rest of the block."""

    name: str
    value: Expr


@dataclass(frozen=True, eq=False)
class Store:
    """buffer[indices] = value, where ``mask`` holds."""

    buffer: str
    indices: Shape
    value: Expr
    mask: Expr | None = None


@dataclass(frozen=True, eq=False)
class Alloc:
    """A buffer for the rest of the block; its contents start undefined."""

    name: str
    dtype: DType
    shape: Shape
    space: Space = Space.STACK


@dataclass(frozen=True, eq=False)
class Check:
    """Leaves the kernel with a status unless ``cond`` holds (on every active lane)."""

    cond: Expr
    status: Status


@dataclass(frozen=True, eq=False)
class Prefetch:
    """A hint that the element at ``indices`` of a buffer is read soon: it may be fetched into the L2 cache.

    Changes no value, so it may name an element outside of the buffer.
    """

    buffer: str
    indices: Shape


class Status(StrEnum):
    """Why a run stopped; the entry adds which node."""

    INDEX = "index out of range"
    DIMENSION = "dimension out of its declared range"
    BROADCAST = "extents that cannot be broadcast"
    SHAPE = "a shape that does not fit its tensor"
    MEMORY = "out of memory"


Stmt = For | While | If | Let | Store | Alloc | Check | Prefetch
Block = tuple[Stmt, ...]


class Access(StrEnum):
    """What a kernel does with a parameter."""

    IN = "in"
    OUT = "out"
    INOUT = "inout"


@dataclass(frozen=True)
class Param:
    """A buffer argument. Parameters are assumed not to overlap, unless equal names in ``Kernel.aliases``."""

    name: str
    dtype: DType
    shape: Shape
    access: Access = Access.IN


@dataclass(frozen=True, eq=False)
class Kernel:
    """One compiled function over buffers and dims.

    ``body``'s first For may be PARALLEL: any contiguous part of its range may run on any thread, with the same
    bits. ``aliases`` holds pairs of parameter positions that the caller may pass the same buffer for (element for
    element the same address: in-place elementwise updates).
    """

    name: str
    params: tuple[Param, ...]
    dims: tuple[str, ...]
    body: Block
    aliases: tuple[tuple[int, int], ...] = ()
    flops: DimLike = 0  # per run, for the profile and the choice to go parallel
    tags: dict[str, str] = field(default_factory=dict)  # schedule choices, for inspect


def index(expr: DimLike) -> Expr:
    """An index expression as a value."""
    return Index(expr)


def true() -> Expr:
    """The constant true."""
    return Const(True, BOOL)
