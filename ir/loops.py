"""The Loop IR: one kernel as loops, scalar expressions and stores. Immutable; the whole grammar is here.

    kernel  ::= Kernel(name, params, dims, body)
    stmt    ::= For | While | If | Let | Store | Alloc | Check | Prefetch | Block-as-tuple
              | Barrier | CopyAsync | CommitAsync | WaitAsync | Atomic | TileOp         (GPU)
    expr    ::= Const | Var | Index | Load | Op | Cast | Bitcast | Select | Shuffle (GPU)

Every expression is a scalar of one element type; a ``vector`` loop makes its body run on ``width`` lanes at
once. Indices are ``Dim`` expressions over loop variables, the kernel's dims and i64 ``Let`` variables.
Buffers are row-major over the shape their declaration gives. An expression object that occurs twice (the same
Python object) is evaluated once where both uses stand in one block without a store between them to what it loads.

A GPU kernel is one nest: up to three ``grid`` loops, in them at most one ``cluster`` loop, then up to three ``block`` loops of
constant extents, then the code of one thread. The innermost of each kind is the hardware's x. Only Lets and SHARED Allocs stand
between these loops. The iterations of the grid loops run in any order and share nothing; those of the block loops run together, and
so do the blocks of a cluster, which share no memory but parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.dtypes import BOOL, I64, DType


class LoopKind(StrEnum):
    """How a loop runs. The GPU kinds bind the loop variable to a hardware index."""

    SERIAL = "serial"
    UNROLLED = "unrolled"  # constant extent; expanded when code is generated
    VECTOR = "vector"  # lanes; full vectors, then one masked tail; body holds no loop but unrolled ones
    PARALLEL = "parallel"  # outermost only: the range [begin, end) that a worker is given
    GRID = "grid"  # one iteration is one thread block, or one cluster of them; the innermost is blockIdx.x
    CLUSTER = "cluster"  # one iteration is one of a few blocks that run at once and may meet
    BLOCK = "block"  # one iteration is one thread of the block; the innermost is threadIdx.x, lanes are its value % 32
    WARP = "warp"
    LANE = "lane"


class Space(StrEnum):
    """Where a buffer lives."""

    GLOBAL = "global"
    SHARED = "shared"  # constant shape, one buffer for all threads of a block; declared outside of the block loops
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


@dataclass(frozen=True, eq=False)
class Shuffle:
    """The value that ``arg`` has on the lane of the warp whose number differs by ``xor`` (1..31). All 32 lanes take part."""

    arg: Expr
    xor: int

    @property
    def dtype(self) -> DType:
        return self.arg.dtype


Expr = Const | Var | Index | Load | Op | Cast | Bitcast | Select | Shuffle


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
    """A hint that the element at ``indices`` of a buffer is read soon: it may be fetched into the L2 cache, or the L1 where ``near``.

    Changes no value, so it may name an element outside of the buffer.
    """

    buffer: str
    indices: Shape
    near: bool = False


class Status(StrEnum):
    """Why a run stopped; the entry adds which node."""

    INDEX = "index out of range"
    DIMENSION = "dimension out of its declared range"
    BROADCAST = "extents that cannot be broadcast"
    SHAPE = "a shape that does not fit its tensor"
    MEMORY = "out of memory"
    BOUNDS = "an access outside of its buffer"  # of checked builds only: a bug of the compiler


# Statements of threads that work together (GPU) -------------------------------------------------------------


class Scope(StrEnum):
    """Which threads meet."""

    CLUSTER = "cluster"
    BLOCK = "block"
    WARP = "warp"


@dataclass(frozen=True, eq=False)
class Barrier:
    """All threads of the scope get here before any goes on; what they stored before, all see after. Never under a
    condition that may differ between them."""

    scope: Scope = Scope.BLOCK


@dataclass(frozen=True, eq=False)
class CopyAsync:
    """Starts copying ``elements`` consecutive elements from a GLOBAL buffer into a SHARED one, by the row-major order of both.

    4, 8 or 16 bytes, both ends aligned to that. Where ``mask`` is false, zeros are written and nothing is read. Who reads them
    awaits the group that the copy was committed to, and meets the copying threads at a Barrier after that.
    """

    target: str
    target_indices: Shape
    source: str
    source_indices: Shape
    elements: int
    mask: Expr | None = None


@dataclass(frozen=True, eq=False)
class CommitAsync:
    """This thread's copies since its last commit become a group, which may be empty."""


@dataclass(frozen=True, eq=False)
class WaitAsync:
    """Waits until all but the newest ``pending`` groups of this thread are written."""

    pending: int = 0


@dataclass(frozen=True, eq=False)
class Atomic:
    """buffer[indices] = fn(buffer[indices], value) in one step, for an ``fn`` of ATOMICS.

    Only what gives the same bits in any order: integers; min and max of floats, where -0.0 is below 0.0 and NaN wins.
    """

    fn: str
    buffer: str
    indices: Shape
    value: Expr
    mask: Expr | None = None


ATOMICS = {"add": "iu", "and": "iu", "or": "iu", "xor": "iu", "min": "iuf", "max": "iuf"}  # to the kinds of dtypes


@dataclass(frozen=True)
class Tile:
    """An operand of a TileOp: the elements of a buffer that start at ``indices``, in row-major order."""

    buffer: str
    indices: Shape


@dataclass(frozen=True, eq=False)
class TileOp:
    """An instruction of a whole warp on fragments, declared in ``ir/tileops.py`` by name. Results come first."""

    name: str
    operands: tuple[Tile, ...]


Stmt = For | While | If | Let | Store | Alloc | Check | Prefetch | Barrier | CopyAsync | CommitAsync | WaitAsync | Atomic | TileOp
Block = tuple[Stmt, ...]


class Access(StrEnum):
    """What a kernel does with a parameter."""

    IN = "in"
    OUT = "out"
    INOUT = "inout"


@dataclass(frozen=True)
class Param:
    """A buffer argument. Parameters are assumed not to overlap, unless equal names in ``Kernel.aliases``.

    ``of`` is the buffer's own dtype where the kernel reads it as words of ``dtype`` instead, several elements each, the
    first in the lowest bits.
    """

    name: str
    dtype: DType
    shape: Shape
    access: Access = Access.IN
    of: DType | None = None

    @property
    def stored(self) -> DType:
        """The dtype of the buffer that is passed."""
        return self.of or self.dtype

    @property
    def elements(self) -> DimLike:
        """Elements of the buffer: those of ``stored``."""
        return product(self.shape) * (self.dtype.bits // self.stored.bits)


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

    def groups(self) -> dict[str, str]:
        """For each parameter, the name of the first one that may be the same buffer."""
        groups = {param.name: param.name for param in self.params}
        for a, b in self.aliases:
            keep, drop = groups[self.params[a].name], groups[self.params[b].name]
            groups = {name: keep if group == drop else group for name, group in groups.items()}
        return groups


def index(expr: DimLike) -> Expr:
    """An index expression as a value."""
    return Index(expr)


def true() -> Expr:
    """The constant true."""
    return Const(True, BOOL)
