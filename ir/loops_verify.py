"""The verifier of the Loop IR. The invariants of a kernel:

1. Parameters, dims, loop variables, Lets and Allocs have names of their own: nothing shadows a name in scope.
2. Every name is bound before it is used: buffers by a parameter or Alloc, index symbols by dims, loops or i64 Lets.
3. An access has the buffer's dtype and one index per axis; IN parameters are not stored to.
4. Operations fit the elementwise table; masks and conditions are bool; a Bitcast keeps the width.
5. A PARALLEL loop is a statement of the kernel's own block, the only loop there, and no store stands beside it.
6. An UNROLLED extent is constant. A VECTOR loop has at least 2 lanes and holds no other loop than unrolled ones, no While
   and no Alloc; the condition of an If in it is the same for all lanes.
7. A REGISTER buffer has a constant shape, and its indices are constant after unrolling, but for the last, or in a load of a
   square the one before it (a column), which may add a vector loop's variable.
8. No access that always happens lies outside its buffer wherever the loops' ranges prove that; ``unproved_accesses``
   lists those that nothing proves to be inside.
9. ``aliases`` are pairs of different parameters of one dtype.
10. A GPU kernel is one nest whose threads meet uniformly: ``ir/loops_verify_gpu.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tcompile.errors import InvalidModelError
from tcompile.ir import dims, elementwise
from tcompile.ir.dims import DimLike, Range, Ranges, Shape
from tcompile.ir.dtypes import BOOL, I64, DType
from tcompile.ir.loops import (
    ATOMICS,
    Access,
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
    Kernel,
    Let,
    Load,
    LoopKind,
    Op,
    Prefetch,
    Select,
    Shuffle,
    Space,
    Stmt,
    Store,
    Tile,
    TileOp,
    Var,
    WaitAsync,
    While,
)
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk
from tcompile.ir.loops_verify_gpu import verify_gpu
from tcompile.ir.tileops import Fragment, tile_spec


def verify_kernel(kernel: Kernel, ranges: Ranges | None = None) -> None:
    """Raises InvalidModelError naming the first invariant that does not hold. ``ranges`` are those of the kernel's dims."""
    _Verifier(kernel, ranges or {}).run()


def unproved_accesses(kernel: Kernel, ranges: Ranges | None = None) -> list[str]:
    """The unmasked accesses that the ranges of loops and dims do not prove to lie inside their buffers, as text."""
    verifier = _Verifier(kernel, ranges or {})
    verifier.run()
    return verifier.unproved


@dataclass
class _Buffer:
    dtype: DType
    shape: Shape
    space: Space = Space.GLOBAL
    writable: bool = True


@dataclass
class _Scope:
    """What is bound here. ``lanes``: names whose values differ between lanes; ``fixed``: variables of unrolled loops."""

    buffers: dict[str, _Buffer] = field(default_factory=dict)
    variables: dict[str, DType] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    lanes: frozenset[str] = frozenset()
    vector: str = ""
    fixed: frozenset[str] = frozenset()
    extents: tuple[DimLike, ...] = ()  # of the loops around
    maybe: bool = False  # under a condition


class _Verifier:
    def __init__(self, kernel: Kernel, ranges: Ranges) -> None:
        self.kernel = kernel
        self.scope = _Scope(ranges=dict(ranges))
        self.where = ""
        self.unproved: list[str] = []

    def run(self) -> None:
        kernel = self.kernel
        for name in kernel.dims:
            self.variable(name, I64)
        for param in kernel.params:
            self.buffer(param.name, _Buffer(param.dtype, param.shape, writable=param.access is not Access.IN))
        for a, b in kernel.aliases:
            count = len(kernel.params)
            fits = a != b and 0 <= a < count and 0 <= b < count and kernel.params[a].dtype == kernel.params[b].dtype
            self.need(fits, f"aliases ({a}, {b}) are no two parameters of one dtype")
        self.symbols(kernel.flops)
        self.parallel()
        self.block(kernel.body)
        self.where = ""
        verify_gpu(kernel, self.need)

    def need(self, holds: bool, problem: str) -> None:
        if not holds:
            raise InvalidModelError(f"kernel {self.kernel.name}{self.where}: {problem}")

    def parallel(self) -> None:
        inner = [stmt for top in self.kernel.body if isinstance(top, For) for stmt in walk(top.body)]
        inner += [stmt for top in self.kernel.body if not isinstance(top, For) for stmt in walk((top,))]
        self.need(not any(_is_parallel(stmt) for stmt in inner), "a parallel loop is not a statement of the kernel's own block")
        if any(map(_is_parallel, self.kernel.body)):
            beside = [stmt for stmt in self.kernel.body if isinstance(stmt, For | While | Store | If)]
            self.need(len(beside) == 1, "a parallel loop has loops or stores beside it, which every worker would run")

    # Scopes -------------------------------------------------------------------------------------------

    @contextmanager
    def nested(self, **changes: object) -> Iterator[None]:
        outer = self.scope
        state = dict(vars(outer)) | changes
        self.scope = _Scope(**(state | {key: dict(state[key]) for key in ("buffers", "variables", "ranges")}))
        yield
        self.scope = outer

    def buffer(self, name: str, buffer: _Buffer) -> None:
        self.fresh(name)
        self.symbols(*buffer.shape)
        self.scope.buffers[name] = buffer

    def variable(self, name: str, dtype: DType, known: Range | None = None) -> None:
        self.fresh(name)
        self.scope.variables[name] = dtype
        if known is not None:
            self.scope.ranges[name] = known

    def fresh(self, name: str) -> None:
        self.need(name not in self.scope.buffers and name not in self.scope.variables, f"{name} is bound twice")

    def symbols(self, *exprs: DimLike) -> None:
        """Every symbol of index expressions is an integer in scope."""
        for name in dims.shape_symbols(exprs):
            self.need(name in self.scope.variables, f"{name} is used in an index before it is bound")
            self.need(self.scope.variables[name] == I64, f"{name} is used in an index but is {self.scope.variables[name]}")

    # Statements ---------------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        with self.nested():
            for stmt in block:
                self.where = f": {_head(stmt)}"
                for expr in postorder(*expressions(stmt)):
                    self.expr(expr)
                self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Store():
                self.store(stmt)
            case Let():
                self.let(stmt)
            case Alloc():
                self.alloc(stmt)
            case Check(cond=cond):
                self.condition(cond, uniform=False)
            case Prefetch():
                self.prefetch(stmt)
            case If():
                self.condition(stmt.cond, uniform=True)
                with self.nested(maybe=True):
                    self.block(stmt.then)
                    self.block(stmt.otherwise)
            case While():
                self.need(not self.scope.vector, "a While stands in a vector loop")
                self.condition(stmt.cond, uniform=True)
                with self.nested(maybe=True):
                    self.block(stmt.body)
            case For():
                self.loop(stmt)
            case _:
                self.together(stmt)

    def together(self, stmt: Stmt) -> None:
        """The statements of threads that work together."""
        match stmt:
            case Barrier() | CommitAsync() | WaitAsync():
                self.need(not self.scope.vector, f"{_head(stmt)} stands in a vector loop")
            case CopyAsync():
                self.copy_async(stmt)
            case Atomic():
                buffer = self.access(stmt.buffer, stmt.indices, guarded=stmt.mask is not None)
                self.need(buffer.writable and buffer.space in (Space.GLOBAL, Space.SHARED), f"{stmt.buffer} is no memory to write to")
                self.need(stmt.value.dtype == buffer.dtype, f"{stmt.buffer} is {buffer.dtype}, the value {stmt.value.dtype}")
                fits = stmt.value.dtype.kind in ATOMICS.get(stmt.fn, "") and stmt.value.dtype.bits >= 8
                self.need(fits, f"no atomic {stmt.fn} of {stmt.value.dtype} gives the same bits in any order")
                self.mask(stmt.mask)
            case TileOp():
                self.tile_op(stmt)
            case _:
                self.need(False, f"not a Loop IR statement: {stmt!r}")

    def copy_async(self, copy: CopyAsync) -> None:
        self.need(not self.scope.vector, "a CopyAsync stands in a vector loop")
        target = self.access(copy.target, copy.target_indices, guarded=False)
        source = self.access(copy.source, copy.source_indices, guarded=copy.mask is not None)
        self.need(target.space is Space.SHARED, f"{copy.target} is no shared memory")
        self.need(source.space is Space.GLOBAL, f"{copy.source} is no global memory")
        self.need(target.dtype == source.dtype, f"{copy.target} is {target.dtype}, {copy.source} {source.dtype}")
        size = copy.elements * target.dtype.bytes
        self.need(size in (4, 8, 16), f"an asynchronous copy of {size} bytes; it copies 4, 8 or 16")
        self.mask(copy.mask)

    def tile_op(self, op: TileOp) -> None:
        self.need(not self.scope.vector, "a TileOp stands in a vector loop")
        spec = tile_spec(op.name)
        self.need(len(op.operands) == len(spec.fragments), f"{op.name} takes {len(spec.fragments)} operands, got {len(op.operands)}")
        chosen = [self.fragment(op.name, tile, fragment) for tile, fragment in zip(op.operands, spec.fragments, strict=True)]
        free = {dtype for dtype, fragment in zip(chosen, spec.fragments, strict=True) if len(fragment.dtypes) > 1}
        self.need(len(free) <= 1, f"{op.name} of {' and '.join(sorted(map(str, free)))}: expected one dtype")

    def fragment(self, op: str, tile: Tile, fragment: Fragment) -> DType:
        buffer = self.access(tile.buffer, tile.indices, guarded=False)
        names = " or ".join(map(str, fragment.dtypes))
        self.need(buffer.dtype in fragment.dtypes, f"{op}: {fragment.name} is {names}, {tile.buffer} {buffer.dtype}")
        self.need(buffer.space is fragment.space, f"{op}: {fragment.name} lies in {fragment.space} memory, {tile.buffer} does not")
        start: DimLike = 0
        for index, extent in zip(tile.indices, buffer.shape, strict=True):
            start = start * extent + index
        room = dims.product(buffer.shape) - fragment.elements(buffer.dtype) - start
        self.need(dims.nonnegative(room, self.scope.ranges), f"{op}: {fragment.name} reaches beyond {tile.buffer}")
        return buffer.dtype

    def loop(self, loop: For) -> None:
        self.symbols(loop.extent)
        vector, unrolled = loop.kind is LoopKind.VECTOR, loop.kind is LoopKind.UNROLLED
        self.need(not unrolled or isinstance(loop.extent, int), f"the extent {loop.extent} of an unrolled loop is not constant")
        self.need(not vector or loop.width >= 2, f"a vector loop of {loop.width} lanes")
        self.need(not self.scope.vector or unrolled, f"a {loop.kind} loop stands in a vector loop")
        self.fresh(loop.var)
        with self.nested(extents=(*self.scope.extents, loop.extent)):
            self.variable(loop.var, I64, Range(0, loop.extent - 1))
            if vector:
                self.scope.vector, self.scope.lanes = loop.var, frozenset((loop.var,))
            if unrolled:
                self.scope.fixed |= {loop.var}
            self.block(loop.body)

    def let(self, let: Let) -> None:
        known = Range(let.value.expr, let.value.expr) if isinstance(let.value, Index) else Range(-(2**63), 2**63 - 1)
        self.variable(let.name, let.value.dtype, known)
        if self.by_lane(let.value):
            self.scope.lanes |= {let.name}

    def alloc(self, alloc: Alloc) -> None:
        self.need(not self.scope.vector, "an Alloc stands in a vector loop")
        if alloc.space is Space.REGISTER:
            self.need(all(isinstance(extent, int) for extent in alloc.shape), f"the register shape {list(alloc.shape)} is not constant")
        self.buffer(alloc.name, _Buffer(alloc.dtype, alloc.shape, alloc.space))

    def store(self, store: Store) -> None:
        buffer = self.access(store.buffer, store.indices, guarded=store.mask is not None)
        self.need(buffer.writable, f"{store.buffer} is an IN parameter")
        self.need(store.value.dtype == buffer.dtype, f"{store.buffer} is {buffer.dtype}, the stored value {store.value.dtype}")
        self.mask(store.mask)

    def prefetch(self, hint: Prefetch) -> None:
        buffer = self.scope.buffers.get(hint.buffer)
        self.need(buffer is not None, f"{hint.buffer} is no buffer in scope")
        self.need(buffer.space is not Space.REGISTER, f"{hint.buffer} is no memory")
        self.need(len(hint.indices) == len(buffer.shape), f"{len(hint.indices)} indices for {hint.buffer} of rank {len(buffer.shape)}")
        self.need(not self.scope.vector, "a Prefetch stands in a vector loop")
        self.symbols(*hint.indices)

    def condition(self, cond: Expr, *, uniform: bool) -> None:
        self.need(cond.dtype == BOOL, f"the condition is {cond.dtype}, not bool")
        self.need(not uniform or not self.by_lane(cond), "the condition differs between lanes")

    def mask(self, mask: Expr | None) -> None:
        self.need(mask is None or mask.dtype == BOOL, f"the mask is {mask.dtype if mask else ''}, not bool")

    # Expressions --------------------------------------------------------------------------------------

    def expr(self, expr: Expr) -> None:
        match expr:
            case Const():
                self.need((expr.dtype == BOOL) == isinstance(expr.value, bool), f"the constant {expr.value!r} of {expr.dtype}")
                self.need(not (expr.dtype.is_integer and isinstance(expr.value, float)), f"the constant {expr.value!r} of {expr.dtype}")
            case Var():
                known = self.scope.variables.get(expr.name)
                self.need(known is not None, f"{expr.name} is used before it is bound")
                self.need(known == expr.dtype, f"{expr.name} is {known}, not {expr.dtype}")
            case Index():
                self.symbols(expr.expr)
            case Load():
                buffer = self.access(expr.buffer, expr.indices, guarded=expr.mask is not None)
                self.need(expr.dtype == buffer.dtype, f"{expr.buffer} is {buffer.dtype}, the load {expr.dtype}")
                self.mask(expr.mask)
            case Op():
                self.op(expr)
            case Select():
                self.need(expr.cond.dtype == BOOL, f"the condition of a select is {expr.cond.dtype}")
                same = expr.then.dtype == expr.otherwise.dtype
                self.need(same, f"select between {expr.then.dtype} and {expr.otherwise.dtype}")
            case Bitcast():
                self.need(expr.arg.dtype.bits == expr.dtype.bits, f"bitcast of {expr.arg.dtype} to {expr.dtype}")
            case Shuffle():
                self.need(0 < expr.xor < 32, f"a shuffle by {expr.xor}; it is by 1 to 31")
            case Cast():
                pass
            case _:
                self.need(False, f"not a Loop IR expression: {expr!r}")

    def op(self, op: Op) -> None:
        try:
            result = elementwise.result_dtype(op.fn, [arg.dtype for arg in op.args])
        except InvalidModelError as error:
            raise InvalidModelError(f"kernel {self.kernel.name}{self.where}: {error}") from error
        self.need(result == op.dtype, f"{op.fn} of {op.args[0].dtype} gives {result}, not {op.dtype}")

    def access(self, name: str, indices: Shape, *, guarded: bool) -> _Buffer:
        buffer = self.scope.buffers.get(name)
        self.need(buffer is not None, f"{name} is no buffer in scope")
        self.need(len(indices) == len(buffer.shape), f"{name} has {len(buffer.shape)} axes but {len(indices)} indices")
        self.symbols(*indices)
        if buffer.space is Space.REGISTER:
            self.register_indices(name, indices)
        if not guarded:
            for index, extent in zip(indices, buffer.shape, strict=True):
                self.inside(name, index, extent)
        return buffer

    def register_indices(self, name: str, indices: Shape) -> None:
        by_columns = len(indices) == 2 and self.scope.vector in dims.symbols(indices[0])
        for axis, index in enumerate(indices):
            lane = self.scope.vector if axis == (0 if by_columns else len(indices) - 1) else ""
            moving = dims.symbols(index) - self.scope.fixed - {lane}
            self.need(not moving, f"the index {index} of register buffer {name} is not constant after unrolling")
            if lane in dims.symbols(index):
                parts = dims.linear(index, lane)
                self.need(parts is not None and parts[0] == 1, f"the index {index} of register buffer {name} does not step by lanes")

    def inside(self, name: str, index: DimLike, extent: DimLike) -> None:
        """0 <= index < extent: refuses what is certainly outside, notes what is not certainly inside."""
        ranges = self.scope.ranges
        if dims.nonnegative(index, ranges) and dims.nonnegative(extent - 1 - index, ranges):
            return
        outside = dims.nonnegative(-1 - index, ranges) or dims.nonnegative(index - extent, ranges)
        self.need(self.scope.maybe or not outside or not self.runs(), f"{name}: index {index} is outside the extent {extent}")
        self.unproved.append(f"{name}: {index} in 0..{extent}{self.where}")

    def runs(self) -> bool:
        """Whether every loop around is certain to have an iteration."""
        return all(dims.nonnegative(extent - 1, self.scope.ranges) for extent in self.scope.extents)

    def by_lane(self, expr: Expr) -> bool:
        """Whether a value may differ between the lanes of the vector loop around."""
        lanes = self.scope.lanes
        return bool(lanes) and any(_symbols_of(node) & lanes for node in postorder(expr))


def _is_parallel(stmt: Stmt) -> bool:
    return isinstance(stmt, For) and stmt.kind is LoopKind.PARALLEL


def _symbols_of(expr: Expr) -> frozenset[str]:
    """The names an expression itself uses, not those of its operands."""
    match expr:
        case Var(name=name):
            return frozenset((name,))
        case Index(expr=index):
            return dims.symbols(index)
        case Load(indices=indices):
            return dims.shape_symbols(indices)
    return frozenset()


def _head(stmt: Stmt) -> str:
    """A statement in a few words, for messages."""
    match stmt:
        case Store():
            return f"store {stmt.buffer}[{', '.join(map(str, stmt.indices))}]"
        case Let() | Alloc():
            return f"{type(stmt).__name__.lower()} {stmt.name}"
        case For():
            return f"{stmt.kind} {stmt.var}"
        case TileOp():
            return f"tile {stmt.name}"
    return type(stmt).__name__.lower()
