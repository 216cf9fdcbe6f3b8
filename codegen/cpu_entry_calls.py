"""The part of the entry that finds buffers and calls kernels.

Small or single-turn calls go straight to the kernel, others through ``parallel_for`` with a grain that depends on
sizes only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.cpu_entry_frame import CODES, field, host_function
from tcompile.codegen.cpu_entry_text import Text
from tcompile.codegen.in_place import is_copy
from tcompile.codegen.memory import Plan
from tcompile.codegen.pitch import equal_pitches
from tcompile.codegen.signature import symbol_order
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import For, Kernel, LoopKind, Status
from tcompile.ir.program import Buffer, Call, Program, Role

# Work is counted in floating-point operations of a well-fed vector unit, some 50 a nanosecond; an element moved
# costs as much as twelve.
_ELEMENT_WORK = 12
PARALLEL_WORK = 600_000  # less is done sooner than threads answer: a few microseconds
_GRAIN_WORK = 200_000  # what a thread takes at once
_POLL_WORK = 1_000_000  # calls of at least this much look for a cancellation first


def new_text(program: Program) -> Text:
    """An empty function over a program's symbols."""
    return Text(symbol_order(program), frozenset(program.entry_symbols), program.symbols)


@dataclass
class Slot:
    """Memory of the entry's frame that holds a growing buffer's pointer and size."""

    number: int
    pointer: str
    capacity: str


class Calls:
    """A run under construction: ``calls`` counts kernel calls, ``requirements`` checks, both in program order."""

    def __init__(self, program: Program, plan: Plan, scratch: dict[Kernel, DimLike], *, bounds: bool = False) -> None:
        self.program, self.plan, self.scratch, self.bounds = program, plan, scratch, bounds
        self.text = new_text(program)
        self.calls = 0
        self.requirements = 0
        self.allocas: list[str] = []
        self.slots: dict[Buffer | Kernel, Slot] = {}
        self.scratch_bytes: DimLike = 0
        self.arguments = 1
        self.functions: list[str] = []

    def argument_place(self) -> str:
        """Where the arguments of calls stand, on the stack of a function."""
        return f"%args = alloca [{self.arguments} x i64], align 16"

    def end_profile(self) -> None:
        """The call before ends here, as far as profiles go."""
        marked, go = self.text.label("marked"), self.text.label("go")
        self.text.branch(self.profiled(), marked, go)
        self.text.line("call void @tc_mark(ptr %frame, i64 -1)")
        self.text.start(go)

    def profiled(self) -> str:
        return self.text.once(f"icmp ne i64 {field(self.text, 'profile', 'i64')}, 0")

    # Buffers ------------------------------------------------------------------------------------------

    def address(self, buffer: Buffer) -> str:
        """Where a buffer lies, as a pointer operand."""
        text, plan = self.text, self.plan
        if buffer in plan.growing:
            return text.value(f"load ptr, ptr {self.slot(buffer, plan.growing[buffer]).pointer}, align 8")
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
        place = text.once(f"getelementptr ptr, ptr {field(text, name)}, i64 {position}")
        return text.once(f"load ptr, ptr {place}, align 8")

    def _displaced(self, name: str, offset: DimLike) -> str:
        base = field(self.text, name)
        return base if offset == 0 else self.text.once(f"getelementptr i8, ptr {base}, i64 {self.text.dim(offset)}")

    def slot(self, owner: Buffer | Kernel, number: int) -> Slot:
        if owner not in self.slots:
            pointer, capacity = f"%slot{number}", f"%capacity{number}"
            self.allocas += [
                f"{pointer} = alloca ptr, align 8",
                f"{capacity} = alloca i64, align 8",
                f"store ptr null, ptr {pointer}, align 8",
                f"store i64 -1, ptr {capacity}, align 8",
            ]
            self.slots[owner] = Slot(number, pointer, capacity)
        return self.slots[owner]

    def grow(self, slot: Slot, size: str) -> None:
        """The slot's block holds at least ``size`` bytes from here on."""
        text = self.text
        held = text.value(f"load i64, ptr {slot.capacity}, align 8")
        enough, more, failed = text.label("enough"), text.label("more"), text.label("failed")
        text.branch(text.value(f"icmp sgt i64 {size}, {held}"), more, enough)
        kept = text.value(f"call i64 @llvm.smax.i64(i64 {held}, i64 0)")
        function, session = host_function(text, "grow"), field(text, "session")
        block = text.value(f"call ptr {function}(ptr {session}, i64 {slot.number}, i64 {size}, i64 {kept})")
        text.line(f"store ptr {block}, ptr {slot.pointer}, align 8")
        text.line(f"store i64 {size}, ptr {slot.capacity}, align 8")
        text.line(f"br i1 {text.value(f'icmp eq ptr {block}, null')}, label %{failed}, label %{enough}")
        text.begin(failed)
        self.fail(str(CODES[Status.MEMORY]), self.calls, size)
        text.begin(enough)

    def fail(self, status: str, site: int, value: str = "0") -> None:
        """Leaves with a status."""
        result = self.text.value(f"call i32 @tc_fail(ptr %frame, i32 {status}, i64 {site}, i64 {value})")
        self.text.line(f"ret i32 {result}")

    def poll(self) -> None:
        """Leaves where the host wants the run to end."""
        text = self.text
        status = text.value(f"call i32 {host_function(text, 'poll')}(ptr {field(text, 'session')})")
        self.leave_unless_zero(status, self.calls)

    def leave_unless_zero(self, status: str, site: int) -> None:
        with self.text.where_failed(status):
            self.fail(status, site)

    # Calls --------------------------------------------------------------------------------------------

    def call(self, call: Call) -> None:
        text = self.text
        marked, go = text.label("marked"), text.label("go")
        text.branch(self.profiled(), marked, go)
        text.line(f"call void @tc_mark(ptr %frame, i64 {self.calls})")
        text.start(go)
        if not is_copy(call.kernel, equal_pitches(call)):
            self._launch(call)
        elif not self.plan.same_place(*call.buffers):
            self._launch_apart(call)
        self.calls += 1

    def _launch_apart(self, call: Call) -> None:
        """Runs a copy, unless the caller gave one memory for what is copied and where to."""
        text = self.text
        apart, done = text.label("apart"), text.label("done")
        differs = text.value(f"icmp ne ptr {', '.join(map(self.address, call.buffers))}")
        for dim, other in equal_pitches(call).items():
            mine = text.dim(dict(zip(call.kernel.dims, call.dims, strict=True))[dim])
            theirs = text.dim(dims.substitute(other, dict(zip(call.kernel.dims, call.dims, strict=True))))
            differs = text.value(f"or i1 {differs}, {text.value(f'icmp ne i64 {mine}, {theirs}')}")
        text.branch(differs, apart, done)
        self._launch(call)
        text.start(done)

    def _launch(self, call: Call) -> None:
        text, kernel, number = self.text, call.kernel, self.calls
        values = dict(zip(kernel.dims, call.dims, strict=True))
        work = work_of(kernel, values)
        if not isinstance(work, int) or work >= _POLL_WORK:
            self.poll()
        scratch = self._scratch(call)
        self._arguments(call)
        if self.bounds:
            self._check_sizes(call, values)
        extent = _parallel_extent(kernel, values)
        if extent is None or scratch.own:
            status = self._direct(kernel, "1" if extent is None else text.dim(extent), scratch.pointer)
        else:
            status = self._maybe_parallel(kernel, extent, work, scratch.pointer)
        self.leave_unless_zero(status, number)

    def _arguments(self, call: Call) -> None:
        text = self.text
        words = [("ptr", self.address(buffer)) for buffer in call.buffers] + [("i64", text.dim(expr)) for expr in call.dims]
        self.arguments = max(self.arguments, len(words))
        for k, (kind, value) in enumerate(words):
            place = text.once(f"getelementptr i64, ptr %args, i64 {k}")
            text.line(f"store {kind} {value}, ptr {place}, align 8")

    def _check_sizes(self, call: Call, values: dict[str, DimLike]) -> None:
        """Checked builds: what the kernel takes for the size of a buffer is held there."""
        text = self.text
        for buffer, param in zip(call.buffers, call.kernel.params, strict=True):
            size = dims.substitute(dims.product(param.shape), values, self.program.symbols) * param.dtype.bytes
            held = self._held(buffer)
            if held is None:
                slot = self.slot(buffer, self.plan.growing[buffer])
                self._stop_beyond(text.dim(size), text.value(f"load i64, ptr {slot.capacity}, align 8"))
            elif size != held:
                self._stop_beyond(text.dim(size), text.dim(held))
        scratch = self.scratch_of(call)
        if self.entry_bound(scratch) is not None and scratch != 0:
            self._stop_beyond(text.dim(scratch), field(text, "scratch_bytes", "i64"))

    def _held(self, buffer: Buffer) -> DimLike | None:
        """The bytes that there are for a buffer; None where the host's slot knows."""
        if buffer in self.plan.growing:
            return None
        if buffer in self.plan.slot_of:
            return self.plan.slots[self.plan.slot_of[buffer]]
        shape = list(buffer.shape)
        if buffer.pitch is not None:
            shape[buffer.pitch.axis] = dims.symbol(buffer.pitch.symbol)
        return dims.product(shape) * buffer.dtype.bytes

    def _stop_beyond(self, size: str, held: str) -> None:
        text = self.text
        beyond, go = text.label("beyond"), text.label("go")
        text.branch(text.value(f"icmp sgt i64 {size}, {held}"), beyond, go)
        self.fail(str(CODES[Status.BOUNDS]), self.calls, size)
        text.begin(go)

    def _direct(self, kernel: Kernel, extent: str, scratch: str) -> str:
        return self.text.value(f'call i32 @"{kernel.name}"(ptr %args, i64 0, i64 {extent}, ptr {scratch})')

    def _maybe_parallel(self, kernel: Kernel, extent: DimLike, work: DimLike, scratch: str) -> str:
        text = self.text
        if (isinstance(extent, int) and extent <= 1) or (isinstance(work, int) and work < PARALLEL_WORK):
            return self._direct(kernel, text.dim(extent), scratch)
        turns, amount = text.dim(extent), text.dim(work)
        several = text.value(f"icmp sgt i64 {turns}, 1")
        enough = text.value(f"icmp sge i64 {amount}, {PARALLEL_WORK}")
        threads = text.once(f"icmp sgt i64 {field(text, 'threads', 'i64')}, 1")
        worth = text.value(f"and i1 {several}, {enough}")
        parallel, direct, after = text.label("parallel"), text.label("direct"), text.label("after")
        text.branch(text.value(f"and i1 {worth}, {threads}"), parallel, direct)
        each = text.value(f"udiv i64 {amount}, {turns}")
        some = text.value(f"call i64 @llvm.smax.i64(i64 {each}, i64 1)")
        grain = text.value(f"udiv i64 {_GRAIN_WORK}, {some}")
        least = text.value(f"call i64 @llvm.smax.i64(i64 {grain}, i64 1)")
        function, session = host_function(text, "parallel_for"), field(text, "session")
        shared = text.value(f'call i32 {function}(ptr {session}, ptr @"{kernel.name}", ptr %args, i64 {turns}, i64 {least})')
        text.line(f"br label %{after}")
        text.begin(direct)
        alone = self._direct(kernel, turns, scratch)
        text.start(after)
        return text.value(f"phi i32 [ {shared}, %{parallel} ], [ {alone}, %{direct} ]")

    def scratch_of(self, call: Call) -> DimLike:
        """The bytes of scratch that a call needs."""
        return dims.substitute(self.scratch[call.kernel], dict(zip(call.kernel.dims, call.dims, strict=True)), self.program.symbols)

    def _scratch(self, call: Call) -> _Scratch:
        """The thread's scratch; a growing slot where only the run knows how much the kernel needs."""
        kernel, size = call.kernel, self.scratch_of(call)
        bound = self.entry_bound(size)
        if bound is not None:
            self.scratch_bytes = dims.maximum(self.scratch_bytes, bound, self.program.symbols)
            return _Scratch(field(self.text, "scratch"))
        slot = self.slot(kernel, len(self.plan.growing) + sum(isinstance(owner, Kernel) and owner is not kernel for owner in self.slots))
        self.grow(slot, self.text.dim(size))
        return _Scratch(self.text.value(f"load ptr, ptr {slot.pointer}, align 8"), own=True)

    def entry_bound(self, size: DimLike) -> DimLike | None:
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


def work_of(kernel: Kernel, values: dict[str, DimLike]) -> DimLike:
    """The work of a call: floating-point operations, and elements moved by what they cost."""
    moved = sum((dims.product(param.shape) for param in kernel.params), 0)
    return dims.substitute(kernel.flops + moved * _ELEMENT_WORK, values)
