"""A program as native code: the LLVM IR module that exports ``tc_prepare`` and ``tc_run``.

The ABI is ``runtime/native/tcompile.h``. Kernels are declared and resolved by the linker; nothing is called but
them and the functions of the host's table. Small or single-turn calls go straight to the kernel, others through
``parallel_for`` with a grain that depends on sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tcompile.codegen.cpu_entry_text import Text
from tcompile.codegen.in_place import is_copy
from tcompile.codegen.memory import Plan
from tcompile.codegen.signature import symbol_order
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import For, Kernel, LoopKind, Status
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Copy, If, Instruction, Loop, Program, Require, Role, SetDim
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import Target

# Word offsets in tc_frame and tc_host.
_FRAME = (
    "host", "session", "weights", "arena", "inputs", "outputs", "dims", "output_shapes", "arena_bytes", "scratch_bytes", "scratch",
    "failed_call", "failed_value", "threads", "profile",
)  # fmt: skip
_HOST = ("parallel_for", "grow", "poll", "mark")
_CODES = {status: code for code, status in enumerate(Status, 1)}

# Work is counted in floating-point operations of a well-fed vector unit, some 50 a nanosecond; an element moved
# costs as much as twelve.
_ELEMENT_WORK = 12
_PARALLEL_WORK = 200_000  # less is done sooner than threads answer
_GRAIN_WORK = 100_000  # what a thread takes at once
_POLL_WORK = 1_000_000  # calls of at least this much look for a cancellation first


@dataclass(frozen=True)
class Entry:
    """The module's text, and what the descriptor says of memory (over entry symbols)."""

    text: str
    arena_bytes: DimLike
    scratch_bytes: DimLike


def emit_entry(program: Program, plan: Plan, scratch: dict[Kernel, DimLike], target: Target) -> Entry:
    """The entry module. ``scratch`` holds each kernel's scratch bytes over its dims."""
    run = _Run(program, plan, scratch)
    body = run.function()
    prepared = _prepare(program, plan, run.scratch_bytes)
    declared = [f'declare hidden i32 @"{kernel.name}"(ptr, i64, i64, ptr) nounwind' for kernel in program_kernels(program)]
    attributes = f'attributes #0 = {{ nounwind "no-builtins" "target-cpu"="{target.cpu}" }}'
    text = "\n".join((f'target triple = "{target.triple}"', *declared, _HELPERS, prepared, body, attributes, ""))
    return Entry(text, plan.arena_bytes, run.scratch_bytes)


def _text(program: Program) -> Text:
    return Text(symbol_order(program), frozenset(program.entry_symbols), program.symbols)


def _field(text: Text, name: str, kind: str = "ptr") -> str:
    """A field of the frame, read in the prologue."""
    place = text.once(f"getelementptr i64, ptr %frame, i64 {_FRAME.index(name)}")
    return text.once(f"load {kind}, ptr {place}, align 8")


def _set_field(text: Text, name: str, value: str) -> None:
    place = text.once(f"getelementptr i64, ptr %frame, i64 {_FRAME.index(name)}")
    text.line(f"store i64 {value}, ptr {place}, align 8")


def _function(name: str, text: Text) -> str:
    lines = "\n".join((*text.prologue, "br label %start", "start:", *text.lines))
    return f"define i32 @{name}(ptr %frame) #0 {{\nentry:\n{lines}\n}}"


def _prepare(program: Program, plan: Plan, scratch: DimLike) -> str:
    text = _text(program)
    text.dims = _field(text, "dims")
    _set_field(text, "arena_bytes", text.dim(plan.arena_bytes))
    _set_field(text, "scratch_bytes", text.dim(scratch))
    _write_shapes(program, text, at_entry=True)
    text.line("ret i32 0")
    return _function("tc_prepare", text)


def _write_shapes(program: Program, text: Text, *, at_entry: bool) -> None:
    """The outputs' extents; before the run -1 for what only the run knows, after it the rest."""
    shapes = _field(text, "output_shapes")
    entry = set(program.entry_symbols)
    extents = [extent for buffer in program.outputs for extent in buffer.shape]
    for k, extent in enumerate(extents):
        known = dims.symbols(extent) <= entry
        if at_entry or not known:
            place = text.once(f"getelementptr i64, ptr {shapes}, i64 {k}")
            text.line(f"store i64 {text.dim(extent) if known or not at_entry else -1}, ptr {place}, align 8")


@dataclass
class _Site:
    """Numbers of calls and requirements, in program order."""

    calls: int = 0
    requirements: int = 0


@dataclass
class _Slot:
    """Memory of the entry's frame that holds a growing buffer's pointer and size."""

    number: int
    pointer: str
    capacity: str


@dataclass
class _Run:
    program: Program
    plan: Plan
    scratch: dict[Kernel, DimLike]
    site: _Site = field(default_factory=_Site)

    def __post_init__(self) -> None:
        self.text = _text(self.program)
        self.allocas: list[str] = []
        self.slots: dict[Buffer | Kernel, _Slot] = {}
        self.scratch_bytes: DimLike = 0
        self.arguments = 1

    def function(self) -> str:
        text = self.text
        text.dims = _field(text, "dims")
        self.block(self.program.body)
        _write_shapes(self.program, text, at_entry=False)
        self._hand_out()
        marked = text.label("marked")
        done = text.label("done")
        text.branch(self._profiled(), marked, done)
        text.line(f"call void @tc_mark(ptr %frame, i64 {self.site.calls})")
        text.start(done)
        text.line("ret i32 0")
        text.prologue[:0] = [f"%args = alloca [{self.arguments} x i64], align 16", *self.allocas]
        return _function("tc_run", text)

    def _hand_out(self) -> None:
        """Pointers of growing outputs."""
        outputs = _field(self.text, "outputs")
        for k, buffer in enumerate(self.program.outputs):
            if buffer in self.plan.growing:
                place = self.text.once(f"getelementptr ptr, ptr {outputs}, i64 {k}")
                self.text.line(f"store ptr {self.address(buffer)}, ptr {place}, align 8")

    def _profiled(self) -> str:
        return self.text.once(f"icmp ne i64 {_field(self.text, 'profile', 'i64')}, 0")

    # Buffers ------------------------------------------------------------------------------------------

    def address(self, buffer: Buffer) -> str:
        """Where a buffer lies, as a pointer operand."""
        text, plan = self.text, self.plan
        if buffer in plan.growing:
            return text.value(f"load ptr, ptr {self._slot(buffer, plan.growing[buffer]).pointer}, align 8")
        match buffer.role:
            case Role.INPUT:
                return self._listed("inputs", self.program.inputs.index(buffer))
            case Role.OUTPUT:
                return self._listed("outputs", self.program.outputs.index(buffer))
            case Role.WEIGHT:
                return self._displaced("weights", plan.weight_offsets[buffer])
        if buffer in plan.offsets:
            return self._displaced("arena", plan.offsets[buffer])
        return self._displaced("arena", plan.slot_start(plan.slot_of[buffer]))

    def _listed(self, name: str, position: int) -> str:
        text = self.text
        place = text.once(f"getelementptr ptr, ptr {_field(text, name)}, i64 {position}")
        return text.once(f"load ptr, ptr {place}, align 8")

    def _displaced(self, name: str, offset: DimLike) -> str:
        base = _field(self.text, name)
        return base if offset == 0 else self.text.once(f"getelementptr i8, ptr {base}, i64 {self.text.dim(offset)}")

    def _slot(self, owner: Buffer | Kernel, number: int) -> _Slot:
        if owner not in self.slots:
            pointer, capacity = f"%slot{number}", f"%capacity{number}"
            self.allocas += [
                f"{pointer} = alloca ptr, align 8",
                f"{capacity} = alloca i64, align 8",
                f"store ptr null, ptr {pointer}, align 8",
                f"store i64 -1, ptr {capacity}, align 8",
            ]
            self.slots[owner] = _Slot(number, pointer, capacity)
        return self.slots[owner]

    def _grow(self, slot: _Slot, size: str) -> None:
        """The slot's block holds at least ``size`` bytes from here on."""
        text = self.text
        held = text.value(f"load i64, ptr {slot.capacity}, align 8")
        enough, more, failed = text.label("enough"), text.label("more"), text.label("failed")
        text.branch(text.value(f"icmp sgt i64 {size}, {held}"), more, enough)
        kept = text.value(f"call i64 @llvm.smax.i64(i64 {held}, i64 0)")
        function, session = self._host("grow"), _field(text, "session")
        block = text.value(f"call ptr {function}(ptr {session}, i64 {slot.number}, i64 {size}, i64 {kept})")
        text.line(f"store ptr {block}, ptr {slot.pointer}, align 8")
        text.line(f"store i64 {size}, ptr {slot.capacity}, align 8")
        text.line(f"br i1 {text.value(f'icmp eq ptr {block}, null')}, label %{failed}, label %{enough}")
        text.begin(failed)
        self._fail(str(_CODES[Status.MEMORY]), self.site.calls, size)
        text.begin(enough)

    def _host(self, name: str) -> str:
        text = self.text
        place = text.once(f"getelementptr ptr, ptr {_field(text, 'host')}, i64 {_HOST.index(name)}")
        return text.once(f"load ptr, ptr {place}, align 8")

    def _fail(self, status: str, site: int, value: str = "0") -> None:
        """Leaves with a status."""
        result = self.text.value(f"call i32 @tc_fail(ptr %frame, i32 {status}, i64 {site}, i64 {value})")
        self.text.line(f"ret i32 {result}")

    # Instructions -------------------------------------------------------------------------------------

    def block(self, body: tuple[Instruction, ...]) -> None:
        for instruction in body:
            match instruction:
                case Call():
                    self._call(instruction)
                case BindDim():
                    self._bind(instruction)
                case SetDim():
                    self.text.set_dim(instruction.symbol, self.text.dim(instruction.expr))
                case Allocate():
                    self._allocate(instruction.buffer)
                case Copy():
                    self._copy(instruction)
                case If():
                    self._if(instruction)
                case Loop():
                    self._loop(instruction)
                case Require():
                    self._require(instruction)

    def _allocate(self, buffer: Buffer) -> None:
        size = self.text.dim(dims.product(buffer.shape) * buffer.dtype.bytes)
        self._grow(self._slot(buffer, self.plan.growing[buffer]), size)

    def _copy(self, copy: Copy) -> None:
        if self.plan.same_place(copy.target, copy.source):
            return
        target, source = self.address(copy.target), self.address(copy.source)
        self.text.line(f"call void @tc_copy(ptr {target}, ptr {source}, i64 {self.text.dim(copy.size * copy.target.dtype.bytes)})")

    def _bind(self, bind: BindDim) -> None:
        text = self.text
        got = text.value(f"load i64, ptr {self.address(bind.buffer)}, align 8")
        text.set_dim(bind.symbol, got)
        site = self._requirement()
        if bind.range.lo != -(2**63):
            self._stop_if(f"icmp slt i64 {got}, {text.dim(bind.range.lo)}", Status.DIMENSION, site, got)
        if bind.range.hi is not None and bind.range.hi != 2**63 - 1:
            self._stop_if(f"icmp sgt i64 {got}, {text.dim(bind.range.hi)}", Status.DIMENSION, site, got)

    def _require(self, require: Require) -> None:
        got = self.text.dim(require.expr)
        status = Status.BROADCAST if require.message.startswith("broadcast") else Status.SHAPE
        self._stop_if(f"icmp slt i64 {got}, 0", status, self._requirement(), got)

    def _requirement(self) -> int:
        self.site.requirements += 1
        return -self.site.requirements

    def _stop_if(self, condition: str, status: Status, site: int, value: str) -> None:
        text = self.text
        stop, go = text.label("stop"), text.label("go")
        text.branch(text.value(condition), stop, go)
        self._fail(str(_CODES[status]), site, value)
        text.begin(go)

    def _truth(self, buffer: Buffer) -> str:
        byte = self.text.value(f"load i8, ptr {self.address(buffer)}, align 1")
        return self.text.value(f"icmp ne i8 {byte}, 0")

    def _if(self, branch: If) -> None:
        text = self.text
        then, otherwise, after = text.label("then"), text.label("else"), text.label("endif")
        text.branch(self._truth(branch.cond), then, otherwise)
        self.block(branch.then)
        text.line(f"br label %{after}")
        text.begin(otherwise)
        self.block(branch.otherwise)
        text.start(after)

    def _loop(self, loop: Loop) -> None:
        text = self.text
        head, body, after = text.label("head"), text.label("body"), text.label("after")
        trip = None if loop.trip is None else text.dim(loop.trip)
        text.set_dim(loop.counter, "0")
        text.start(head)
        if trip is not None:
            more = text.label("more")
            text.branch(text.value(f"icmp slt i64 {text.dim(dims.symbol(loop.counter))}, {trip}"), more, after)
        if loop.cond is not None:
            text.branch(self._truth(loop.cond), body, after)
        self._poll()
        self.block(loop.body)
        count = text.dim(dims.symbol(loop.counter))
        text.set_dim(loop.counter, text.value(f"add i64 {count}, 1"))
        text.line(f"br label %{head}")
        text.begin(after)

    def _poll(self) -> None:
        """Leaves where the host wants the run to end."""
        text = self.text
        status = text.value(f"call i32 {self._host('poll')}(ptr {_field(text, 'session')})")
        self._leave_unless_zero(status, self.site.calls)

    def _leave_unless_zero(self, status: str, site: int) -> None:
        text = self.text
        failed, go = text.label("failed"), text.label("go")
        text.branch(text.value(f"icmp ne i32 {status}, 0"), failed, go)
        self._fail(status, site)
        text.begin(go)

    # Calls --------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        text = self.text
        marked, go = text.label("marked"), text.label("go")
        text.branch(self._profiled(), marked, go)
        text.line(f"call void @tc_mark(ptr %frame, i64 {self.site.calls})")
        text.start(go)
        if not is_copy(call.kernel):
            self._launch(call)
        elif not self.plan.same_place(*call.buffers):
            self._launch_apart(call)
        self.site.calls += 1

    def _launch_apart(self, call: Call) -> None:
        """Runs a copy, unless the caller gave one memory for what is copied and where to."""
        text = self.text
        apart, done = text.label("apart"), text.label("done")
        source, target = map(self.address, call.buffers)
        text.branch(text.value(f"icmp ne ptr {source}, {target}"), apart, done)
        self._launch(call)
        text.start(done)

    def _launch(self, call: Call) -> None:
        text, kernel, number = self.text, call.kernel, self.site.calls
        values = dict(zip(kernel.dims, call.dims, strict=True))
        work = _work(kernel, values)
        if not isinstance(work, int) or work >= _POLL_WORK:
            self._poll()
        scratch = self._scratch(kernel, values)
        self._arguments(call)
        extent = _parallel_extent(kernel, values)
        if extent is None or scratch.own:
            status = self._direct(kernel, "1" if extent is None else text.dim(extent), scratch.pointer)
        else:
            status = self._maybe_parallel(kernel, extent, work, scratch.pointer)
        self._leave_unless_zero(status, number)

    def _arguments(self, call: Call) -> None:
        text = self.text
        words = [("ptr", self.address(buffer)) for buffer in call.buffers] + [("i64", text.dim(expr)) for expr in call.dims]
        self.arguments = max(self.arguments, len(words))
        for k, (kind, value) in enumerate(words):
            place = text.once(f"getelementptr i64, ptr %args, i64 {k}")
            text.line(f"store {kind} {value}, ptr {place}, align 8")

    def _direct(self, kernel: Kernel, extent: str, scratch: str) -> str:
        return self.text.value(f'call i32 @"{kernel.name}"(ptr %args, i64 0, i64 {extent}, ptr {scratch})')

    def _maybe_parallel(self, kernel: Kernel, extent: DimLike, work: DimLike, scratch: str) -> str:
        text = self.text
        if (isinstance(extent, int) and extent <= 1) or (isinstance(work, int) and work < _PARALLEL_WORK):
            return self._direct(kernel, text.dim(extent), scratch)
        turns, amount = text.dim(extent), text.dim(work)
        several = text.value(f"icmp sgt i64 {turns}, 1")
        enough = text.value(f"icmp sge i64 {amount}, {_PARALLEL_WORK}")
        threads = text.once(f"icmp sgt i64 {_field(text, 'threads', 'i64')}, 1")
        worth = text.value(f"and i1 {several}, {enough}")
        parallel, direct, after = text.label("parallel"), text.label("direct"), text.label("after")
        text.branch(text.value(f"and i1 {worth}, {threads}"), parallel, direct)
        each = text.value(f"udiv i64 {amount}, {turns}")
        some = text.value(f"call i64 @llvm.smax.i64(i64 {each}, i64 1)")
        grain = text.value(f"udiv i64 {_GRAIN_WORK}, {some}")
        least = text.value(f"call i64 @llvm.smax.i64(i64 {grain}, i64 1)")
        function, session = self._host("parallel_for"), _field(text, "session")
        shared = text.value(f'call i32 {function}(ptr {session}, ptr @"{kernel.name}", ptr %args, i64 {turns}, i64 {least})')
        text.line(f"br label %{after}")
        text.begin(direct)
        alone = self._direct(kernel, turns, scratch)
        text.start(after)
        return text.value(f"phi i32 [ {shared}, %{parallel} ], [ {alone}, %{direct} ]")

    def _scratch(self, kernel: Kernel, values: dict[str, DimLike]) -> _Scratch:
        """The thread's scratch; a growing slot where only the run knows how much the kernel needs."""
        size = dims.substitute(self.scratch[kernel], values, self.program.symbols)
        bound = self._entry_bound(size)
        if bound is not None:
            self.scratch_bytes = dims.maximum(self.scratch_bytes, bound, self.program.symbols)
            return _Scratch(_field(self.text, "scratch"))
        slot = self._slot(kernel, len(self.plan.growing) + sum(isinstance(owner, Kernel) and owner is not kernel for owner in self.slots))
        self._grow(slot, self.text.dim(size))
        return _Scratch(self.text.value(f"load ptr, ptr {slot.pointer}, align 8"), own=True)

    def _entry_bound(self, size: DimLike) -> DimLike | None:
        """A size over entry symbols that the given one never exceeds; None where the run alone knows."""
        entry = set(self.program.entry_symbols)
        for _ in range(8):
            free = dims.symbols(size) - entry
            if not free:
                return size
            name = sorted(free)[0]
            high = self.program.symbols[name].hi
            parts = dims.linear(size, name)
            if high is None or parts is None or not dims.nonnegative(parts[0], self.program.symbols):
                return None
            size = parts[0] * high + parts[1]
        return None


@dataclass(frozen=True)
class _Scratch:
    pointer: str
    own: bool = False  # not the threads': the kernel runs here alone


def _parallel_extent(kernel: Kernel, values: dict[str, DimLike]) -> DimLike | None:
    first = kernel.body[0] if kernel.body else None
    if not isinstance(first, For) or first.kind is not LoopKind.PARALLEL:
        return None
    return dims.substitute(first.extent, values)


def _work(kernel: Kernel, values: dict[str, DimLike]) -> DimLike:
    moved = sum((dims.product(param.shape) for param in kernel.params), 0)
    return dims.substitute(kernel.flops + moved * _ELEMENT_WORK, values)


_HELPERS = f"""
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)

define internal i32 @tc_fail(ptr %frame, i32 %status, i64 %site, i64 %value) noinline #0 {{
  %call = getelementptr i64, ptr %frame, i64 {_FRAME.index("failed_call")}
  store i64 %site, ptr %call, align 8
  %place = getelementptr i64, ptr %frame, i64 {_FRAME.index("failed_value")}
  store i64 %value, ptr %place, align 8
  ret i32 %status
}}

define internal void @tc_mark(ptr %frame, i64 %call) noinline #0 {{
  %host = load ptr, ptr %frame, align 8
  %place = getelementptr ptr, ptr %host, i64 {_HOST.index("mark")}
  %function = load ptr, ptr %place, align 8
  %at = getelementptr i64, ptr %frame, i64 {_FRAME.index("session")}
  %session = load ptr, ptr %at, align 8
  call void %function(ptr %session, i64 %call)
  ret void
}}

define internal void @tc_copy(ptr %target, ptr %source, i64 %bytes) noinline #0 {{
entry:
  %apart = icmp ne ptr %target, %source
  br i1 %apart, label %begin, label %done
begin:
  %whole = and i64 %bytes, -32
  %any = icmp sgt i64 %whole, 0
  br i1 %any, label %wide, label %rest
wide:
  %i = phi i64 [ 0, %begin ], [ %next, %wide ]
  %from = getelementptr i8, ptr %source, i64 %i
  %to = getelementptr i8, ptr %target, i64 %i
  %block = load <4 x i64>, ptr %from, align 1
  store <4 x i64> %block, ptr %to, align 1
  %next = add i64 %i, 32
  %more = icmp slt i64 %next, %whole
  br i1 %more, label %wide, label %rest
rest:
  %left = icmp slt i64 %whole, %bytes
  br i1 %left, label %narrow, label %done
narrow:
  %j = phi i64 [ %whole, %rest ], [ %after, %narrow ]
  %source.j = getelementptr i8, ptr %source, i64 %j
  %target.j = getelementptr i8, ptr %target, i64 %j
  %byte = load i8, ptr %source.j, align 1
  store i8 %byte, ptr %target.j, align 1
  %after = add i64 %j, 1
  %again = icmp slt i64 %after, %bytes
  br i1 %again, label %narrow, label %done
done:
  ret void
}}
"""
