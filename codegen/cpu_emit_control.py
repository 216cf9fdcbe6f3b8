"""Control flow with SSA values: loops behind guards, joins, and what both do to register buffers.

Loops are bottom-tested behind a guard (none where the extent is a constant), so that the block before the loop
runs only when its body does, and what leaves the loop can go there. Register buffers become phis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_expressions import Expressions, storage_type
from tcompile.codegen.cpu_emit_function import Block as Code
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_memory import Buffer
from tcompile.codegen.cpu_emit_registers import Key, Registers
from tcompile.codegen.cpu_emit_values import Value, is_narrow, vector
from tcompile.ir.loops import Block, Check, Expr, For, If, Let, Stmt, Store, While
from tcompile.ir.target import Target

State = dict[tuple[str, Key], Value]  # the values of all registers


class Control(Expressions):
    """Loops and joins at the current place of a function."""

    def __init__(self, fn: Function, target: Target) -> None:
        super().__init__(fn, target)
        self._stores: dict[int, tuple[Block, frozenset[str]]] = {}

    # Joins ---------------------------------------------------------------------------------------------------

    def merge(self, ends: list[tuple[Code, State]], before: State) -> None:
        for key in dict.fromkeys(key for _, after in ends for key in after):
            values = [after.get(key) or self.register(self.buffers[key[0]], key[1]) for _, after in ends]
            if values[0] is values[1]:
                continue
            sources = ", ".join(f"[ {_raw(value)}, %{last.label} ]" for value, (last, _) in zip(values, ends, strict=True))
            buffer = self.buffers[key[0]]
            name = self.fn.value(f"phi {_register_type(buffer)} {sources}")
            buffer.values[key[1]] = _register(buffer, name, self.fn.depth)

    def state(self) -> State:
        return {
            (name, key): value
            for name, buffer in self.buffers.items()
            if isinstance(buffer, Registers)
            for key, value in buffer.values.items()
        }

    def restore(self, state: State) -> None:
        for buffer in self.buffers.values():
            if isinstance(buffer, Registers):
                buffer.values = {}
        for (name, key), value in state.items():
            self.buffers[name].values[key] = value

    # Loops ---------------------------------------------------------------------------------------------------

    def counted(
        self, start: int | Value, stop: int | Value, step: int, body: Block, emit: Callable[[Value], None], *, once: bool = False
    ) -> None:
        """for place = start; place < stop; place += step: emit(place). ``once``: one turn at most."""
        stored = self.stored(body)
        guarded = not (isinstance(start, int) and isinstance(stop, int) and start < stop)
        first, last = index.as_value(start), index.as_value(stop)
        guard: Code | None = None
        cond = ""
        if guarded:
            cond = ops.binary(self.fn, "icmp slt", "i64", first, last)
            before = self.state()
            guard = self.fn.current
            preheader = self.fn.block()
            self.fn.push(preheader, unconditional=False)
        else:
            preheader = self.fn.current
            before = {}
        for name in sorted(stored):
            self.touched(name)
        if once:
            emit(first)
            end = self.fn.current
        else:
            end = self._loop(preheader, first, last, step, body, emit)
        if guard is None:
            return
        end = self.fn.pop()
        after = self.state()
        exit_block = self.fn.block()
        guard.lines.append(f"br i1 {cond.name}, label %{preheader.label}, label %{exit_block.label}")
        end.lines.append(f"br label %{exit_block.label}")
        self.fn.enter(exit_block)
        self.merge([(end, after), (guard, before)], before)

    def _loop(self, preheader: Code, first: Value, last: Value, step: int, body: Block, emit: Callable[[Value], None]) -> Code:
        """A loop of at least one turn; ends in its exit block."""
        outer_depth = self.fn.depth
        header = self.fn.block()
        self.fn.push(header, unconditional=True, stored=self.groups(body))
        place = Value(self.fn.name(), self.fn.depth)
        header.lines.append("")
        phis = self.open_phis(self.stored(body))
        emit(place)
        latch = self.fn.current
        following = self.fn.value(f"add nuw nsw i64 {place.name}, {step}")
        more = self.fn.value(f"icmp slt i64 {following}, {last.name}")
        exit_block = self.fn.block()
        self.fn.effect(f"br i1 {more}, label %{header.label}, label %{exit_block.label}{_turns(first, last, step)}")
        header.lines[0] = f"{place.name} = phi i64 [ {first.name}, %{preheader.label} ], [ {following}, %{latch.label} ]"
        self.close_phis(phis, header, preheader, latch)
        self.fn.pop()
        preheader.lines.append(f"br label %{header.label}")
        self.fn.enter(exit_block)
        self.leave(outer_depth)
        return exit_block

    def open_phis(self, stored: frozenset[str]) -> list[tuple[int, Registers, Key, str, Value]]:
        """A phi for each register that a loop may change; lines to be filled when the loop is written."""
        header, made = self.fn.current, []
        for name in sorted(stored):
            buffer = self.buffers.get(name)
            if not isinstance(buffer, Registers):
                continue
            for key in buffer.elements():
                before, phi = self.register(buffer, key), self.fn.name()
                made.append((len(header.lines), buffer, key, phi, before))
                header.lines.append("")
                buffer.values[key] = _register(buffer, phi, self.fn.depth)
        return made

    def close_phis(self, phis: list[tuple[int, Registers, Key, str, Value]], header: Code, preheader: Code, latch: Code) -> None:
        for line, buffer, key, phi, before in phis:
            after = buffer.values[key]
            header.lines[line] = (
                f"{phi} = phi {_register_type(buffer)} [ {_raw(before)}, %{preheader.label} ], [ {_raw(after)}, %{latch.label} ]"
            )

    def leave(self, depth: int) -> None:
        """Registers assigned in scopes that ended: their values dominate what follows at ``depth``."""
        for buffer in self.buffers.values():
            if isinstance(buffer, Registers):
                for key, value in buffer.values.items():
                    if value.depth > depth:
                        buffer.values[key] = _register(buffer, _raw(value), depth)

    # What a block stores to ----------------------------------------------------------------------------------

    def stored(self, block: Block) -> frozenset[str]:
        """Names of the buffers that a block stores to and that are known here."""
        known = self._stores.get(id(block))
        if known is None or known[0] is not block:
            names = frozenset(stmt.buffer for stmt in walk(block) if isinstance(stmt, Store))
            known = self._stores[id(block)] = (block, names)
        return frozenset(name for name in known[1] if name in self.buffers)

    def groups(self, block: Block) -> frozenset[str]:
        """Groups that a block stores to, of buffers it allocates itself too: a load of those must not leave it either."""
        self.stored(block)
        names = self._stores[id(block)][1]
        return frozenset(buffer.group if isinstance(buffer := self.buffers.get(name), Buffer) else name for name in names)


def _register_type(buffer: Registers) -> str:
    return vector(storage_type(buffer.dtype), buffer.lanes)


def _register(buffer: Registers, name: str, depth: int) -> Value:
    return Value(None, depth, buffer.lanes, name) if is_narrow(buffer.dtype) else Value(name, depth, buffer.lanes)


def _raw(value: Value) -> str:
    """The text of a register: the stored bits of a narrow float."""
    return value.bits if value.bits is not None else value.name


def walk(block: Block) -> Iterator[Stmt]:
    """Every statement of a block, nested ones after the one that holds them."""
    for stmt in block:
        yield stmt
        if isinstance(stmt, For | While):
            yield from walk(stmt.body)
        elif isinstance(stmt, If):
            yield from walk(stmt.then)
            yield from walk(stmt.otherwise)


def roots(stmt: Stmt) -> tuple[Expr, ...]:
    """The expressions that a statement evaluates itself."""
    match stmt:
        case Store(value=value, mask=mask):
            return (value,) if mask is None else (value, mask)
        case Let(value=value):
            return (value,)
        case Check(cond=cond) | If(cond=cond) | While(cond=cond):
            return (cond,)
    return ()


def _turns(first: Value, last: Value, step: int) -> str:
    """The branch weights of a loop with known bounds.

    Registers go to the loop that LLVM thinks runs most: without weights, the deepest one, which would spill a
    micro-kernel's accumulators for the constants of its epilogue.
    """
    if not (first.literal and last.literal):
        return ""
    turns = -(-(int(last.name) - int(first.name)) // step)
    return f', !prof !{{!"branch_weights", i32 {min(max(turns - 1, 1), 1 << 30)}, i32 1}}'
