"""Statements: stores, branches, checks, and the kinds of loops. One ``Statements`` emits the body of one kernel.

A vector loop is a loop over full vectors and a tail: masked where the target masks all element sizes the body
accesses, else one element at a time; of constant length, as one shorter vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen import cpu_emit_registers as registers
from tcompile.codegen import cpu_emit_scratch as scratch
from tcompile.codegen.cpu_emit_bounds import Bounds
from tcompile.codegen.cpu_emit_control import Control, State, roots, walk
from tcompile.codegen.cpu_emit_function import Block as Code
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_index import Lane
from tcompile.codegen.cpu_emit_memory import Buffer
from tcompile.codegen.cpu_emit_registers import Registers
from tcompile.codegen.cpu_emit_values import Value
from tcompile.codegen.cpu_entry_frame import CODES
from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import I64
from tcompile.ir.loops import (
    Alloc,
    Block,
    Check,
    Expr,
    For,
    If,
    Index,
    Kernel,
    Let,
    Load,
    LoopKind,
    Prefetch,
    Space,
    Status,
    Stmt,
    Store,
    While,
)
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.target import Target

_UNBOUNDED = Range(-(2**63), 2**63 - 1)


class Statements(Control):
    """Emits statements at the current place of ``fn``."""

    def __init__(self, fn: Function, target: Target, kernel: Kernel, *, bounds: bool = False) -> None:
        super().__init__(fn, target)
        self.target = target
        self.scratch = scratch.plan(kernel)
        self.register_lanes = registers.lanes_of(kernel)
        self.first = kernel.body[0] if kernel.body else None
        self._failures: dict[Status, Code] = {}
        if bounds:
            self.memory.bounds = Bounds(fn, self.names, lambda inside: self._leave_unless(inside, Status.BOUNDS))

    # Blocks --------------------------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        """Statements with the names they bind, which end with the block."""
        values, ranges = dict(self.names.values), dict(self.names.ranges)
        variables, buffers = dict(self.variables), dict(self.buffers)
        for stmt in block:
            self._STATEMENTS[type(stmt)](self, stmt)
        self.names.values, self.names.ranges, self.variables, self.buffers = values, ranges, variables, buffers

    def _nested(self, block: Block) -> None:
        memo = self.forget()
        self.block(block)
        self.recall(memo)

    def _let(self, stmt: Let) -> None:
        made = self.value(stmt.value)
        if stmt.name in self.variables or stmt.name in self.names.values:
            self.forget()  # it meant something else before
        if stmt.value.dtype == I64:
            self.names.values[stmt.name] = int(made.name) if made.literal and not made.lanes else made
            self.names.ranges[stmt.name] = self._range(stmt.value)
        self.variables[stmt.name] = made

    def _range(self, made: Expr) -> Range:
        """What is known of a named index: divisions of what is not negative are short."""
        if not isinstance(made, Index):
            return _UNBOUNDED
        low, high = (bound(made.expr, self.names.ranges) for bound in (dims.lower_bound, dims.upper_bound))
        return Range(_UNBOUNDED.lo if low is None else low, _UNBOUNDED.hi if high is None else high)

    def _alloc(self, stmt: Alloc) -> None:
        if stmt.space is Space.REGISTER:
            shape = tuple(stmt.shape)
            if not all(isinstance(extent, int) for extent in shape):
                raise InvalidModelError(f"register buffer {stmt.name}: expected a constant shape, got {list(shape)}")
            self.buffers[stmt.name] = Registers(stmt.name, stmt.dtype, shape, self.register_lanes[stmt.name])
            return
        if stmt.space is not Space.STACK:
            raise UnsupportedError(f"buffer {stmt.name}: no {stmt.space} memory on a CPU")
        self.buffers[stmt.name] = Buffer(stmt.name, stmt.dtype, stmt.shape, self._stack(stmt), stmt.name)
        self.touched(stmt.name)

    def _stack(self, stmt: Alloc) -> Value:
        offset = self.scratch.offsets[id(stmt)]
        if offset is None:
            size = scratch.bytes_of(stmt)
            return Value(self.fn.alloca(f"[{max(size, 16)} x i8]", 64 if size >= 64 else 16))
        place = index.as_value(index.value(self.names, offset))
        return Value(self.fn.pure(f"getelementptr i8, ptr %scratch, i64 {place.name}", place.depth), place.depth)

    def _store(self, stmt: Store) -> None:
        mask = None if stmt.mask is None else self.value(stmt.mask)
        if mask is not None and mask.name == "true":
            mask = None
        made, buffer = self.value(stmt.value), self._buffer(stmt.buffer)
        if isinstance(buffer, Registers):
            active = self.active if buffer.lanes else None
            both = mask if active is None else active if mask is None else ops.binary(self.fn, "and", "i1", mask, active)
            self.write_register(buffer, stmt.indices, made, both)
        else:
            self.memory.store(buffer, stmt.indices, made, mask, self.active, self.lanes)
        self.touched(stmt.buffer)

    def _prefetch(self, stmt: Prefetch) -> None:
        buffer = self._buffer(stmt.buffer)
        assert isinstance(buffer, Buffer), stmt.buffer
        self.memory.prefetch(buffer, stmt.indices, near=stmt.near)

    def _check(self, stmt: Check) -> None:
        cond = self.value(stmt.cond)
        if cond.lanes and self.active is not None:
            idle = ops.binary(self.fn, "xor", "i1", self.active, Value("true"))
            cond = ops.binary(self.fn, "or", "i1", cond, idle)
        self._leave_unless(cond, stmt.status)

    def _leave_unless(self, cond: Value, status: Status) -> None:
        if cond.lanes:
            cond = ops.all_lanes(self.fn, cond)
        if cond.name == "true":
            return
        following = self.fn.block()
        self.fn.effect(f"br i1 {cond.name}, label %{following.label}, label %{self._failure(status).label}")
        self.fn.enter(following)
        self.fn.checked()

    def _failure(self, status: Status) -> Code:
        if status not in self._failures:
            made = self._failures[status] = self.fn.block(f"fail{CODES[status]}")
            made.lines.append(f"ret i32 {CODES[status]}")
        return self._failures[status]

    # Branches ------------------------------------------------------------------------------------------------

    def _if(self, stmt: If) -> None:
        cond = self.value(stmt.cond)
        if cond.lanes:
            cond = ops.extract(self.fn, cond, "i1", "0")  # uniform by contract
        if cond.literal:
            self._nested(stmt.then if cond.name == "true" else stmt.otherwise)
            return
        before, state = self.fn.current, self.state()
        ends = [self._branch(block, state) for block in (stmt.then, stmt.otherwise)]
        merge = self.fn.block()
        before.lines.append(f"br i1 {cond.name}, label %{ends[0][0].label}, label %{ends[1][0].label}")
        for _, last, _ in ends:
            last.lines.append(f"br label %{merge.label}")
        self.fn.enter(merge)
        self.merge([(last, after) for _, last, after in ends], state)

    def _branch(self, block: Block, state: State) -> tuple[Code, Code, State]:
        self.restore(state)
        first = self.fn.block()
        self.fn.push(first, unconditional=False)
        self._nested(block)
        after = self.state()
        return first, self.fn.pop(), after

    # Loops ---------------------------------------------------------------------------------------------------

    def _for(self, loop: For) -> None:
        match loop.kind:
            case LoopKind.UNROLLED:
                self._unrolled(loop)
            case LoopKind.VECTOR:
                self._vector(loop)
            case LoopKind.PARALLEL:
                self._parallel(loop)
            case LoopKind.SERIAL:
                self._serial(loop)
            case _:
                raise UnsupportedError(f"loop {loop.var}: a CPU has no {loop.kind} loops")

    def _bound(self, loop: For, place: int | Value | Lane) -> None:
        self.names.values[loop.var] = place
        self.variables.pop(loop.var, None)
        self.names.ranges[loop.var] = Range(0, loop.extent - 1)

    def _body(self, loop: For, place: int | Value | Lane) -> None:
        """The body for one value of the variable."""
        outer = self.names.values.get(loop.var), self.names.ranges.get(loop.var), self.variables.get(loop.var)
        self._bound(loop, place)
        self._nested(loop.body)
        for table, old in zip((self.names.values, self.names.ranges, self.variables), outer, strict=True):
            table.pop(loop.var, None)
            if old is not None:
                table[loop.var] = old

    def _unrolled(self, loop: For) -> None:
        if not isinstance(loop.extent, int):
            raise InvalidModelError(f"unrolled loop {loop.var}: expected a constant extent, got {loop.extent}")
        for place in range(loop.extent):
            self._body(loop, place)

    def _serial(self, loop: For) -> None:
        extent = index.value(self.names, loop.extent)
        if self.lanes:
            raise InvalidModelError(f"serial loop {loop.var} inside a vector loop", hint="unroll it, or make the loop around it serial")
        if isinstance(extent, int) and extent <= 1:
            if extent == 1:
                self._body(loop, 0)
            return
        self.counted(0, extent, 1, loop.body, lambda place: self._body(loop, place))

    def _parallel(self, loop: For) -> None:
        if loop is not self.first:
            raise InvalidModelError(f"parallel loop {loop.var}: expected the first statement of the kernel")
        begin, end = Value("%begin"), Value("%end")
        self.counted(begin, end, 1, loop.body, lambda place: self._body(loop, place))

    def _vector(self, loop: For) -> None:
        if self.lanes:
            raise InvalidModelError(f"vector loop {loop.var} inside another")
        if loop.width == 1:
            self._serial(loop)
            return
        extent = index.value(self.names, loop.extent)
        if isinstance(extent, int):
            self._constant_lanes(loop, extent)
        else:
            self._any_lanes(loop, extent)

    def _with_lanes(self, loop: For, start: int | Value, lanes: int, active: Value | None = None) -> None:
        self.lanes, self.active = lanes, active
        self._body(loop, Lane(start, lanes, loop.width))
        self.lanes, self.active = 0, None

    def _constant_lanes(self, loop: For, extent: int) -> None:
        full, rest = divmod(max(extent, 0), loop.width)
        if full > 1 and not self._uses_registers(loop):
            self.counted(0, full * loop.width, loop.width, loop.body, lambda start: self._with_lanes(loop, start, loop.width))
        else:
            for number in range(full):
                self._with_lanes(loop, number * loop.width, loop.width)
        start = full * loop.width
        if rest == 1:
            self._body(loop, start)
        elif rest and self._masks(loop):
            mask = Value("<" + ", ".join(f"i1 {k < rest}".lower() for k in range(loop.width)) + ">", 0, loop.width)
            self._with_lanes(loop, start, loop.width, mask)
        elif rest:
            self._with_lanes(loop, start, rest)

    def _any_lanes(self, loop: For, extent: Value) -> None:
        high = dims.upper_bound(loop.extent, self.names.ranges)
        if high is not None and high <= loop.width and (self._uses_registers(loop) or self._masks(loop)):
            # one vector holds all: lane 0 is element 0, so that registers may be indexed
            some = self._first_lanes(extent, loop.width)
            self.counted(0, extent, loop.width, loop.body, lambda start: self._with_lanes(loop, 0, loop.width, some), once=True)
            return
        full = ops.binary(self.fn, "and", "i64", extent, Value(str(-loop.width)))
        self.counted(0, full, loop.width, loop.body, lambda start: self._with_lanes(loop, start, loop.width))
        if not self._masks(loop):
            self.counted(full, extent, 1, loop.body, lambda place: self._body(loop, place))
            return
        rest = ops.binary(self.fn, "sub", "i64", extent, full)
        some = self._first_lanes(rest, loop.width)
        self.counted(full, extent, loop.width, loop.body, lambda start: self._with_lanes(loop, start, loop.width, some), once=True)

    def _first_lanes(self, count: Value, lanes: int) -> Value:
        """The mask of the first ``count`` lanes, which is at most ``lanes``: 32 bits compare in half the registers of 64."""
        few = ops.convert(self.fn, "trunc", "i64", "i32", count)
        return ops.binary(self.fn, "icmp slt", "i32", ops.iota(lanes, "i32"), few)

    def _masks(self, loop: For) -> bool:
        """Whether a masked tail needs no lane-by-lane access: the target masks every width that lanes access."""
        return all(size in self.target.mask_bytes for size in self._accessed(loop.body))

    def _accessed(self, block: Block) -> frozenset[int]:
        """Element sizes of the memory accesses of a block."""
        found: set[int] = set()
        for stmt in walk(block):
            for expr in postorder(*roots(stmt)):
                if isinstance(expr, Load):
                    found.add(expr.dtype.bytes)
            if isinstance(stmt, Store):
                found.add(stmt.value.dtype.bytes)
        return frozenset(found)

    def _uses_registers(self, loop: For) -> bool:
        """Whether a body indexes registers by the lane variable, so that the start must be a constant."""
        accesses = [(stmt.buffer, stmt.indices) for stmt in walk(loop.body) if isinstance(stmt, Store)]
        for stmt in walk(loop.body):
            accesses += [(expr.buffer, expr.indices) for expr in postorder(*roots(stmt)) if isinstance(expr, Load)]
        return any(name in self.register_lanes and loop.var in dims.shape_symbols(indices) for name, indices in accesses)

    def _while(self, stmt: While) -> None:
        if self.lanes:
            raise InvalidModelError("While inside a vector loop")
        stored = self.stored(stmt.body)
        outer_depth, preheader = self.fn.depth, self.fn.current
        for name in sorted(stored):
            self.touched(name)
        header = self.fn.block()
        self.fn.push(header, unconditional=True, stored=self.groups(stmt.body))
        phis = self.open_phis(stored)
        memo = self.forget()
        cond, test = self.value(stmt.cond), self.fn.current
        self.recall(memo)
        body = self.fn.block()
        state = self.state()
        self.fn.push(body, unconditional=False)
        self._nested(stmt.body)
        latch = self.fn.pop()
        self.close_phis(phis, header, preheader, latch)
        exit_block = self.fn.block()
        latch.lines.append(f"br label %{header.label}")
        test.lines.append(f"br i1 {cond.name}, label %{body.label}, label %{exit_block.label}")
        self.fn.pop()
        preheader.lines.append(f"br label %{header.label}")
        self.fn.enter(exit_block)
        self.restore(state)
        self.leave(outer_depth)
        for name in sorted(stored):
            self.touched(name)

    _STATEMENTS: ClassVar[dict[type, Callable[[Statements, Stmt], None]]] = {
        Let: _let,
        Alloc: _alloc,
        Store: _store,
        Check: _check,
        Prefetch: _prefetch,
        If: _if,
        For: _for,
        While: _while,
    }
