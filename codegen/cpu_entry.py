"""A program as native code: the LLVM IR module that exports ``tc_prepare`` and ``tc_run``.

The ABI is ``runtime/native/tcompile.h``. Kernels are declared and resolved by the linker; nothing is called but
them and the functions of the host's table. Control flow is here, calls are in ``cpu_entry_calls.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.cpu_entry_calls import new_text
from tcompile.codegen.cpu_entry_concurrent import ConcurrentCalls
from tcompile.codegen.cpu_entry_frame import CODES, HELPERS, field, set_field
from tcompile.codegen.cpu_entry_text import Text, function
from tcompile.codegen.memory import Plan
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Kernel, Status
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Concurrent, Copy, If, Instruction, Loop, Program, Require, SetDim
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import Target


@dataclass(frozen=True)
class Entry:
    """The module's text, and what the descriptor says of memory (over entry symbols).

    ``growing_scratch``: the kernels whose scratch only the run knows the size of, in the order of their slots.
    """

    text: str
    arena_bytes: DimLike
    scratch_bytes: DimLike
    growing_scratch: tuple[Kernel, ...] = ()


def emit_entry(program: Program, plan: Plan, scratch: dict[Kernel, DimLike], target: Target, *, bounds: bool = False) -> Entry:
    """The entry module. ``scratch`` holds each kernel's scratch bytes over its dims; ``bounds`` checks the sizes that kernels are told."""
    run = _Run(program, plan, scratch, bounds=bounds)
    body = run.function()
    prepared = _prepare(program, plan, run.scratch_bytes)
    declared = [f'declare hidden i32 @"{kernel.name}"(ptr, i64, i64, ptr) nounwind' for kernel in program_kernels(program)]
    attributes = f'attributes #0 = {{ nounwind "no-builtins" "target-cpu"="{target.cpu}" }}'
    text = "\n".join((f'target triple = "{target.triple}"', *declared, HELPERS, prepared, *run.functions, body, attributes, ""))
    return Entry(text, plan.arena_bytes, run.scratch_bytes, tuple(owner for owner in run.slots if isinstance(owner, Kernel)))


def _prepare(program: Program, plan: Plan, scratch: DimLike) -> str:
    text = new_text(program)
    text.dims = field(text, "dims")
    set_field(text, "arena_bytes", text.dim(plan.arena_bytes))
    set_field(text, "scratch_bytes", text.dim(scratch))
    _write_shapes(program, text, at_entry=True)
    text.line("ret i32 0")
    return function("tc_prepare", text)


def _write_shapes(program: Program, text: Text, *, at_entry: bool) -> None:
    """The outputs' extents; before the run -1 for what only the run knows, after it the rest."""
    shapes = field(text, "output_shapes")
    entry = set(program.entry_symbols)
    extents = [extent for buffer in program.outputs for extent in buffer.shape]
    for k, extent in enumerate(extents):
        known = dims.symbols(extent) <= entry
        if at_entry or not known:
            place = text.once(f"getelementptr i64, ptr {shapes}, i64 {k}")
            text.line(f"store i64 {text.dim(extent) if known or not at_entry else -1}, ptr {place}, align 8")


class _Run(ConcurrentCalls):
    """``tc_run``, instruction by instruction."""

    def function(self) -> str:
        text = self.text
        text.dims = field(text, "dims")
        self.block(self.program.body)
        _write_shapes(self.program, text, at_entry=False)
        self._hand_out()
        marked = text.label("marked")
        done = text.label("done")
        text.branch(self.profiled(), marked, done)
        text.line(f"call void @tc_mark(ptr %frame, i64 {self.calls})")
        text.start(done)
        text.line("ret i32 0")
        text.prologue[:0] = [self.argument_place(), *self.allocas]
        return function("tc_run", text)

    def _hand_out(self) -> None:
        """Pointers of growing outputs."""
        outputs = field(self.text, "outputs")
        for k, buffer in enumerate(self.program.outputs):
            if buffer in self.plan.growing:
                place = self.text.once(f"getelementptr ptr, ptr {outputs}, i64 {k}")
                self.text.line(f"store ptr {self.address(buffer)}, ptr {place}, align 8")

    # Instructions -------------------------------------------------------------------------------------

    def block(self, body: tuple[Instruction, ...]) -> None:
        for instruction in body:
            match instruction:
                case Call():
                    self.call(instruction)
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
                case Concurrent():
                    self.concurrent(instruction)
                case Require():
                    self._require(instruction)

    def _allocate(self, buffer: Buffer) -> None:
        size = self.text.dim(dims.product(buffer.shape) * buffer.dtype.bytes)
        self.grow(self.slot(buffer, self.plan.growing[buffer]), size)

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
        self.requirements += 1
        return -self.requirements

    def _stop_if(self, condition: str, status: Status, site: int, value: str) -> None:
        text = self.text
        stop, go = text.label("stop"), text.label("go")
        text.branch(text.value(condition), stop, go)
        self.fail(str(CODES[status]), site, value)
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
        self.poll()
        self.block(loop.body)
        count = text.dim(dims.symbol(loop.counter))
        text.set_dim(loop.counter, text.value(f"add i64 {count}, 1"))
        text.line(f"br label %{head}")
        text.begin(after)
