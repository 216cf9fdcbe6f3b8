"""The cost model of finished CPU kernels: bytes that one turn moves, and cycles that its arithmetic takes on one core.

    for k in 1280: x = load a[k]; acc0 = fma(x, load b[..], acc0); ...      -->  1280 * max(FMAs / ports, loads / ports, latency)

It reads the loops that code is generated from, so that one model serves templates and scheduled kernels alike, and its
results are expressions over the kernel's dims. Profiles print them beside what was measured. What only a run knows
(loops until something holds, extents read from memory) has no estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tcompile.codegen.cost_fit import fitted
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import (
    Access,
    Alloc,
    Block,
    Cast,
    Const,
    Expr,
    For,
    If,
    Index,
    Kernel,
    Let,
    Load,
    LoopKind,
    Op,
    Select,
    Space,
    Stmt,
    Store,
    Var,
    While,
)
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.target import Target

_UNIT = 16  # parts of a cycle that costs are counted in: integers, so that they multiply with expressions
_LONGEST = 400  # characters of an expression that is still worth its place in an artifact: longer ones are fitted
_STORE_PORTS = 1
_OTHER_PORTS = 2  # vector units that add, compare and move besides those of multiplications
_TURN_CYCLES = 1  # of a loop's own counting

# Cycles of one vector register: divisions by their throughput, functions by the length of their polynomials.
_SLOW = {
    "div": 5, "sqrt": 7, "rsqrt": 8, "pow": 40, "fmod": 40, "mod": 20, "erf": 15, "tanh": 13, "sigmoid": 9, "silu": 8, "exp": 10,
    "log": 14,
}  # fmt: skip
_FUNCTIONS = frozenset(("log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh"))
_FUNCTION_CYCLES = 25
_MULTIPLIES = frozenset({"fma", "mul"})


class _Unknown(Exception):
    """Only a run knows."""


def moved_bytes_and_cycles(kernel: Kernel, target: Target) -> tuple[DimLike, DimLike]:
    """``moved_bytes`` and ``cycles`` of a kernel, from going through it once."""
    walk = _Walk(kernel, target)
    try:
        total = walk.block_cost(kernel.body).total()
    except _Unknown:
        return _moved(kernel), 0
    return _moved(kernel, walk), _short(dims.floordiv(total, _UNIT))


def cycles(kernel: Kernel, target: Target) -> DimLike:
    """Cycles of one core for the whole kernel, what it loads being in the L1 cache; 0 where only a run knows."""
    return moved_bytes_and_cycles(kernel, target)[1]


def moved_bytes(kernel: Kernel) -> DimLike:
    """Bytes of the kernel's tensors, each counted once (one that is read and written twice), and no more than it touches."""
    return moved_bytes_and_cycles(kernel, _ANY)[0]


def _moved(kernel: Kernel, walk: _Walk | None = None) -> DimLike:
    """Bytes of the parameters; of those of a finished ``walk``, what it touched. A symbolic number of elements is fewer only of a
    table, of which memory decides what is read."""
    total: DimLike = 0
    for param in kernel.params:
        size = dims.product(param.shape)
        touched = size if walk is None else walk.touched.get(param.name, size)
        if isinstance(size, int) and (isinstance(touched, int) or (walk is not None and param.name in walk.tables)):
            size = dims.minimum(size, touched)
        total = total + dims.ceildiv(size * param.dtype.bits, 8) * (2 if param.access is Access.INOUT else 1)
    return _short(total)


_ANY = Target("any", "", "")


def _short(extent: DimLike) -> DimLike:
    if isinstance(extent, int) or len(str(extent)) <= _LONGEST:
        return extent
    short = fitted(extent)
    return 0 if short is None else short


@dataclass
class _Cost:
    """Straight-line work in units of a vector register's operations, and ``loops``: the cost of finished loops."""

    target: Target
    multiplies: int = 0
    others: int = 0
    loads: int = 0
    stores: int = 0
    slow: int = 0  # units
    chains: dict[tuple, int] = field(default_factory=dict)  # accumulators: operations on each, one after the other
    loops: DimLike = 0

    def total(self) -> DimLike:
        """Units: the busiest of the resources, or the longest chain."""
        return self.busy() + self.loops

    def busy(self) -> int:
        """Units of the straight-line part."""
        t = self.target
        arithmetic = max(self.multiplies / t.fma_ports, (self.multiplies + self.others) / (t.fma_ports + _OTHER_PORTS))
        latency = max(self.chains.values(), default=0) * t.fma_latency
        return int(_UNIT * max(arithmetic, self.loads / t.load_ports, self.stores / _STORE_PORTS, latency)) + self.slow

    def add(self, other: _Cost) -> None:
        """The work of a block that runs in line."""
        for name in ("multiplies", "others", "loads", "stores", "slow"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for key, count in other.chains.items():
            self.chains[key] = self.chains.get(key, 0) + count
        self.loops = self.loops + other.loops


class _Walk:
    """Goes through a kernel once. ``middle``: the value that stands for each loop variable, that of the middle turn."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.target = target
        self.params = {param.name for param in kernel.params}
        self.middle: dict[str, DimLike] = {}
        self.extents: dict[str, DimLike] = {}
        self.known = set(kernel.dims)
        self.registers: set[str] = set()
        self.turns: DimLike = 1
        self.touched: dict[str, DimLike] = {}
        self.tables: set[str] = set()  # what is read where memory says
        self.lanes: tuple[str, int] | None = None  # of the vector loop around

    # Statements ---------------------------------------------------------------------------------------

    def block_cost(self, block: Block) -> _Cost:
        """What one turn of a block costs."""
        cost, seen = _Cost(self.target), set[int]()
        for stmt in block:
            self._statement(stmt, cost, seen)
        return cost

    def _statement(self, stmt: Stmt, cost: _Cost, seen: set[int]) -> None:
        match stmt:
            case For():
                self._loop(stmt, cost)
            case If():
                self._expressions(cost, seen, stmt.cond)
                self._branch(stmt, cost)
            case While():
                raise _Unknown
            case Let():
                self._let(stmt)
                self._expressions(cost, seen, stmt.value)
            case Alloc():
                if stmt.space is Space.REGISTER:
                    self.registers.add(stmt.name)
            case Store():
                self._store(stmt, cost, seen)

    def _let(self, stmt: Let) -> None:
        """An index with a name: what it is in the middle turn; a remainder, the middle of its range. One that memory decides
        has no number there, which matters only to an extent that it is part of."""
        with suppress(_Unknown):
            inner = dims.arguments(stmt.value.expr, "mod") if isinstance(stmt.value, Index) else None
            middle = dims.floordiv(self._at_middle(inner[1]) - 1, 2) if inner else self._value(stmt.value)
            if middle is not None:
                self.extents[stmt.name], self.middle[stmt.name] = inner[1] if inner else 1, middle

    def _loop(self, loop: For, cost: _Cost) -> None:
        extent = self._at_middle(loop.extent)
        self.extents[loop.var], self.middle[loop.var] = extent, dims.floordiv(extent - 1, 2)
        if loop.kind is LoopKind.VECTOR:
            self._vector(loop, extent, cost)
            return
        with self._repeated(extent):
            body = self.block_cost(loop.body)
        if loop.kind is LoopKind.UNROLLED and isinstance(extent, int):
            for _ in range(min(extent, 64)):
                cost.add(body)
            return
        cost.loops = cost.loops + extent * (body.total() + _TURN_CYCLES * _UNIT // 4)

    def _vector(self, loop: For, extent: DimLike, cost: _Cost) -> None:
        outer, self.lanes = self.lanes, (loop.var, loop.width)
        with self._repeated(extent):
            body = self.block_cost(loop.body)
        self.lanes = outer
        steps = dims.ceildiv(extent, loop.width)
        if steps == 1:
            cost.add(body)
        else:
            cost.loops = cost.loops + steps * (body.total() + _TURN_CYCLES * _UNIT // 4)

    @contextmanager
    def _repeated(self, extent: DimLike) -> Iterator[None]:
        outer, self.turns = self.turns, self.turns * extent
        try:
            yield
        finally:
            self.turns = outer

    def _branch(self, stmt: If, cost: _Cost) -> None:
        """The branch of the middle turn; what only one turn does (``i == last``) by its share."""
        then, otherwise = self.block_cost(stmt.then), self.block_cost(stmt.otherwise)
        if isinstance(stmt.cond, Op) and stmt.cond.fn == "eq":
            shares = [self.extents[name] for name in self._names(stmt.cond) if name in self.extents]
            if shares:
                cost.loops = cost.loops + otherwise.total() + dims.floordiv(then.total(), dims.maximum(self._at_middle(shares[-1]), 1))
                return
        taken = self._holds(stmt.cond)
        cost.add(otherwise if taken is False else then)

    def _names(self, cond: Op) -> list[str]:
        return [name for arg in cond.args if isinstance(arg, Index) for name in sorted(dims.symbols(arg.expr))]

    def _holds(self, cond: Expr) -> bool | None:
        """Whether a comparison of indices holds in the middle turn."""
        if not isinstance(cond, Op) or cond.fn not in _COMPARE or len(cond.args) != 2:
            return None
        values = [self._value(arg) for arg in cond.args]
        return _COMPARE[cond.fn](*values) if all(isinstance(value, int) for value in values) else None

    def _value(self, expr: Expr) -> DimLike | None:
        """What an expression of indices is in the middle turn; None for others."""
        match expr:
            case Select():
                holds = self._holds(expr.cond)
                return None if holds is None else self._value(expr.then if holds else expr.otherwise)
            case Const(value=int() as value):
                return value
            case Index():
                return self._at_middle(expr.expr)
        return None

    def _at_middle(self, extent: DimLike) -> DimLike:
        """An extent in the middle turn of the loops around. Raises _Unknown where memory decides it."""
        if isinstance(extent, int):
            return extent
        names = dims.symbols(extent)
        if not names <= self.known | set(self.middle):
            raise _Unknown
        moving = {name: self.middle[name] for name in names if name in self.middle}
        return dims.substitute(extent, moving) if moving else extent

    # Expressions --------------------------------------------------------------------------------------

    def _store(self, stmt: Store, cost: _Cost, seen: set[int]) -> None:
        self._expressions(cost, seen, stmt.value, *(() if stmt.mask is None else (stmt.mask,)))
        if stmt.buffer in self.registers:
            if isinstance(stmt.value, Op) and any(_same_place(stmt, arg) for arg in stmt.value.args):
                key = (stmt.buffer, stmt.indices)
                cost.chains[key] = cost.chains.get(key, 0) + 1
            return
        self._touch(stmt.buffer)
        cost.stores += self._accesses(stmt.indices, stmt.value.dtype.bytes)

    def _touch(self, buffer: str) -> None:
        if buffer in self.params:
            self.touched[buffer] = self.touched.get(buffer, 0) + self.turns

    def _expressions(self, cost: _Cost, seen: set[int], *roots: Expr) -> None:
        for expr in postorder(*roots, done=seen):
            match expr:
                case Load():
                    if expr.buffer not in self.registers:
                        self._touch(expr.buffer)
                        if any(dims.symbols(index) - self.known - self.middle.keys() for index in expr.indices):
                            self.tables.add(expr.buffer)
                        cost.loads += self._accesses(expr.indices, expr.dtype.bytes)
                case Op():
                    self._operation(expr, cost)
                case Cast() | Select():
                    cost.others += self._registers(expr.dtype.bytes)

    def _operation(self, expr: Op, cost: _Cost) -> None:
        count = self._registers(max(expr.dtype.bytes, *(arg.dtype.bytes for arg in expr.args)))
        if expr.fn in _MULTIPLIES:
            cost.multiplies += count
        elif expr.fn in _SLOW or expr.fn in _FUNCTIONS:
            cost.slow += _UNIT * count * _SLOW.get(expr.fn, _FUNCTION_CYCLES)
        else:
            cost.others += count

    def _registers(self, size: int) -> int:
        """Vector registers of one value on all lanes."""
        return 1 if self.lanes is None else -(-self.lanes[1] * size // self.target.vector_bytes)

    def _accesses(self, indices: tuple[DimLike, ...], size: int) -> int:
        """Loads or stores of one value on all lanes: one a register where lanes are neighbours, one where all are the same."""
        if self.lanes is None:
            return 1
        name, width = self.lanes
        if not any(name in dims.symbols(index) for index in indices):
            return 1
        last = dims.linear(indices[-1], name)
        neighbours = last is not None and last[0] == 1 and not any(name in dims.symbols(index) for index in indices[:-1])
        return self._registers(size) if neighbours else width


_COMPARE = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}  # type: Mapping[str, object]


def _same_place(stmt: Store, expr: Expr) -> bool:
    """Whether an operand is what the store writes over: an accumulator. ``Var``s were loaded before."""
    return isinstance(expr, Load) and not isinstance(expr, Var) and (expr.buffer, expr.indices) == (stmt.buffer, stmt.indices)
