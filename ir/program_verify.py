"""The verifier of programs. The invariants:

1. A call passes one buffer per parameter, of its dtype, and one value per dim; a kernel's name is its own.
2. Every buffer is written before it is read, on every path; inputs and weights are never written.
3. A GROWING buffer, and an output whose shape the run decides, is allocated before it is written.
4. Symbols are bound before an expression uses them: entry symbols by the inputs, others by BindDim, SetDim or a loop.
5. A buffer is passed twice to one call only where no parameter it stands for is written, or the kernel's aliases say so.
6. A TEMP buffer's shape depends on entry symbols only; a weight has its value.
7. Blocks of a Concurrent end in loops of one trip without a condition, and do not touch what another of them writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Access
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Concurrent, Copy, If, Instruction, Loop, Program, Require, Role, SetDim
from tcompile.ir.program_effects import effects
from tcompile.ir.program_text import program_buffers, program_kernels


def verify_program(program: Program) -> None:
    """Raises InvalidModelError for the first invariant that does not hold."""
    _Verifier(program).run()


class _Verifier:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.entry = set(program.entry_symbols)

    def run(self) -> None:
        names = [kernel.name for kernel in program_kernels(self.program)]
        self._need(len(set(names)) == len(names), "kernels of one name", ", ".join(sorted(names)))
        for buffer in program_buffers(self.program):
            self._buffer(buffer)
        written = {*self.program.inputs, *(b for b in program_buffers(self.program) if b.role is Role.WEIGHT)}
        written, bound = self._block(self.program.body, written, set(self.entry))
        for buffer in self.program.outputs:
            self._need(buffer in written or _empty(buffer), f"output {buffer.name} is never written", "")
            self._bound(buffer.shape, bound, f"the shape of output {buffer.name}")

    def _need(self, holds: bool, broken: str, where: str) -> None:
        if not holds:
            raise InvalidModelError(f"program {self.program.name}: {broken}{f' ({where})' if where else ''}")

    def _buffer(self, buffer: Buffer) -> None:
        if buffer.role is Role.TEMP:
            self._need(dims.shape_symbols(buffer.shape) <= self.entry, f"TEMP {buffer.name} needs symbols of the run", str(buffer.shape))
        if buffer.role is Role.WEIGHT:
            fits = buffer.value is not None and buffer.value.dtype == buffer.dtype.numpy
            self._need(fits, f"weight {buffer.name} lacks a value of {buffer.dtype}", "")
        unknown = dims.shape_symbols(buffer.shape) - self.program.symbols.keys()
        self._need(not unknown, f"{buffer.name} has undeclared symbols", ", ".join(sorted(unknown)))

    def _block(self, body: Iterable[Instruction], written: set[Buffer], bound: set[str]) -> tuple[set[Buffer], set[str]]:
        written, bound = set(written), set(bound)
        for instruction in body:
            self._instruction(instruction, written, bound)
        return written, bound

    def _instruction(self, instruction: Instruction, written: set[Buffer], bound: set[str]) -> None:
        match instruction:
            case Call():
                self._call(instruction, written, bound)
            case BindDim():
                self._read(instruction.buffer, written)
                bound.add(instruction.symbol)
                self._need(instruction.symbol in self.program.symbols, f"{instruction.symbol} is undeclared", "")
            case SetDim():
                self._bound((instruction.expr,), bound, f"set {instruction.symbol}")
                self._need(instruction.symbol in self.program.symbols, f"{instruction.symbol} is undeclared", "")
                bound.add(instruction.symbol)
            case Allocate():
                self._bound(instruction.buffer.shape, bound, f"allocate {instruction.buffer.name}")
            case Copy():
                self._bound((instruction.size,), bound, f"copy to {instruction.target.name}")
                self._need(instruction.target.dtype == instruction.source.dtype, f"copy to {instruction.target.name} of another dtype", "")
                self._read(instruction.source, written)
                self._write(instruction.target, written, bound)
            case If():
                self._read(instruction.cond, written)
                then, otherwise = (self._block(block, written, bound) for block in (instruction.then, instruction.otherwise))
                written |= then[0] & otherwise[0]
                bound |= then[1] & otherwise[1]
            case Loop():
                self._loop(instruction, written, bound)
            case Concurrent():
                self._concurrent(instruction, written, bound)
            case Require():
                self._bound((instruction.expr,), bound, instruction.message)

    def _call(self, call: Call, written: set[Buffer], bound: set[str]) -> None:
        kernel = call.kernel
        self._need(
            len(call.buffers) == len(kernel.params), f"{kernel.name} takes {len(kernel.params)} buffers", f"{len(call.buffers)} given"
        )
        self._need(len(call.dims) == len(kernel.dims), f"{kernel.name} takes {len(kernel.dims)} dims", f"{len(call.dims)} given")
        self._bound(call.dims, bound, f"call of {kernel.name}")
        for buffer, param in zip(call.buffers, kernel.params, strict=True):
            self._need(buffer.dtype == param.stored, f"{kernel.name}: {param.name} is {param.stored}", f"{buffer.name}: {buffer.dtype}")
            if param.access is Access.IN:
                self._read(buffer, written)
        for buffer, param in zip(call.buffers, kernel.params, strict=True):
            if param.access is not Access.IN:
                self._write(buffer, written, bound)
        self._aliases(call)

    def _aliases(self, call: Call) -> None:
        allowed = {frozenset(pair) for pair in call.kernel.aliases}
        for j, b in enumerate(call.buffers):
            for i, a in enumerate(call.buffers[:j]):
                shared = a is b and any(call.kernel.params[k].access is not Access.IN for k in (i, j))
                self._need(not shared or {i, j} in allowed, f"{call.kernel.name} writes {a.name}, which it is given twice", "")

    def _loop(self, loop: Loop, written: set[Buffer], bound: set[str]) -> None:
        self._need(loop.counter in self.program.symbols, f"{loop.counter} is undeclared", "")
        if loop.trip is not None:
            self._bound((loop.trip,), bound, f"trip of {loop.counter}")
        if loop.cond is not None:
            self._read(loop.cond, written)
        inside, _ = self._block(loop.body, written, bound | {loop.counter})
        written |= inside  # what no turn wrote is a stack of no turns
        bound.add(loop.counter)

    def _concurrent(self, concurrent: Concurrent, written: set[Buffer], bound: set[str]) -> None:
        loops = [branch[-1] for branch in concurrent.branches if branch]
        alike = len(loops) == len(concurrent.branches) and all(isinstance(i, Loop) and i.cond is None and i.trip is not None for i in loops)
        self._need(alike and len({loop.trip for loop in loops}) == 1, "concurrent blocks that do not end in loops of one trip", "")
        plain = all(isinstance(i, Call | Copy) for branch in concurrent.branches for i in branch[:-1])
        self._need(plain, "concurrent blocks of other things than calls, copies and a loop", "")
        for a, b in combinations([effects(branch) for branch in concurrent.branches], 2):
            self._need(not a.meets(b), "concurrent blocks that depend on each other", ", ".join(a.names_shared(b)))
        results = [self._block(branch, written, bound) for branch in concurrent.branches]
        for inside, symbols in results:
            written |= inside
            bound |= symbols

    def _read(self, buffer: Buffer, written: set[Buffer]) -> None:
        self._need(buffer in written or _empty(buffer), f"{buffer.name} is read before it is written", "")

    def _write(self, buffer: Buffer, written: set[Buffer], bound: set[str]) -> None:
        self._need(buffer.role not in (Role.INPUT, Role.WEIGHT), f"{buffer.name} is read-only", str(buffer.role))
        written.add(buffer)

    def _bound(self, exprs: Iterable[DimLike], bound: set[str], where: str) -> None:
        missing = dims.shape_symbols(exprs) - bound
        self._need(not missing, f"symbols used before they are bound: {', '.join(sorted(missing))}", where)


def _empty(buffer: Buffer) -> bool:
    """Whether a buffer has no elements, so that nobody need write it."""
    return any(extent == 0 for extent in buffer.shape)
