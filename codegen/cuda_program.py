"""A program as the plan that ``runtime/cuda_plan.py`` reads and walks: plain JSON, nothing in it is executed by Python.

Expressions over symbols stand as numbers, names, ``["+", [factor, atom, ...], ...]`` and ``[function, a, b]`` with the
functions of ``ir/dims.py``. Buffers are numbered in the order of their first use; ``offset`` is a place in the arena (TEMP)
or in the weights (WEIGHT), both in bytes. Steps mirror the instructions of ``ir/program.py`` one to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tcompile.codegen.cuda_c import Launch as LaunchShape
from tcompile.codegen.cuda_c import function_name
from tcompile.codegen.in_place import is_copy
from tcompile.codegen.lifetimes import shared
from tcompile.codegen.memory import Plan
from tcompile.codegen.pitch import equal_pitches
from tcompile.codegen.signature import signature
from tcompile.ir import dims
from tcompile.ir.dims import Call as DimCall
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.loops import Check, Kernel, Status
from tcompile.ir.loops_interpret import walk as statements
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Copy, If, Instruction, Loop, Program, Require, Role, SetDim
from tcompile.ir.program_text import program_buffers, program_kernels

FORMAT = 1
CODES = {status: code for code, status in enumerate(Status, 1)}
Json = Any


@dataclass(frozen=True)
class KernelFacts:
    """What the plan says of a kernel: its launch, and what the compiler and the static model tell."""

    launch: LaunchShape
    facts: Mapping[str, Json] = field(default_factory=dict)


def encode_expression(expr: DimLike) -> Json:
    """An expression as JSON holds it."""
    if not isinstance(expr, Dim):
        return int(expr)
    if len(expr.terms) == 1 and expr.terms[0][1] == 1 and len(expr.terms[0][0]) == 1:
        return _atom(expr.terms[0][0][0])
    return ["+", *([factor, *map(_atom, monomial)] for monomial, factor in expr.terms)]


def _atom(atom: dims.Atom) -> Json:
    if isinstance(atom, DimCall):
        return [atom.fn, *map(encode_expression, atom.args)]
    return atom.name


def _bound(expr: DimLike | None) -> Json:
    return None if expr is None else encode_expression(expr)


def _shown(expr: DimLike | None) -> int | str | None:
    return str(expr) if isinstance(expr, Dim) else expr


def encode_program(program: Program, places: Plan, kernels: Mapping[Kernel, KernelFacts]) -> dict[str, Json]:
    """The plan of a program without what the artifact adds: target, code and weights."""
    return _Encoder(program, places, kernels).content()


class _Encoder:
    def __init__(self, program: Program, places: Plan, kernels: Mapping[Kernel, KernelFacts]) -> None:
        self.program, self.places, self.facts = program, places, kernels
        self.buffers = {buffer: k for k, buffer in enumerate(dict.fromkeys((*program.inputs, *program.outputs, *program_buffers(program))))}
        self.kernels = {kernel: k for k, kernel in enumerate(program_kernels(program))}

    def content(self) -> dict[str, Json]:
        program, places = self.program, self.places
        signed = signature(program)
        entry, steps = set(program.entry_symbols), self._block(program.body)
        return {
            "format": FORMAT,
            "name": program.name,
            "symbols": [[s.name, *map(_bound, (s.lo, s.hi)), *map(_shown, (s.lo, s.hi))] for s in signed.symbols],
            "entry_symbols": signed.entry_symbols,
            "inputs": [self.buffers[buffer] for buffer in program.inputs],
            "outputs": [self.buffers[buffer] for buffer in program.outputs],
            "output_names": list(program.output_names),
            "buffers": [self._buffer(buffer, entry) for buffer in self.buffers],
            "arena": encode_expression(places.arena_bytes),
            "arena_bound": dims.upper_bound(places.arena_bytes, program.symbols),
            "kernels": [self._kernel(kernel) for kernel in self.kernels],
            "steps": steps,
            "shares": [list(pair) for pair in shared(program)],
            "notes": dict(sorted(program.notes.items())),
        }

    def _buffer(self, buffer: Buffer, entry: set[str]) -> dict[str, Json]:
        role = Role.GROWING if buffer in self.places.growing else buffer.role
        found = {"name": buffer.name, "role": str(role), "dtype": buffer.dtype.onnx, "shape": list(map(encode_expression, buffer.shape))}
        found["text"] = list(map(_shown, buffer.shape))
        found["item"] = buffer.dtype.bytes
        if role is Role.WEIGHT:
            found["offset"] = self.places.weight_offsets[buffer]
        elif role is Role.TEMP:
            slot = self.places.slot_of.get(buffer)
            found["offset"] = encode_expression(self.places.offsets[buffer] if slot is None else self.places.slot_start(slot))
        if buffer.pitch is not None:
            found["pitch"] = [buffer.pitch.axis, buffer.pitch.symbol]
        return found

    def _kernel(self, kernel: Kernel) -> dict[str, Json]:
        facts = self.facts[kernel]
        return {
            "name": kernel.name,
            "function": function_name(kernel),
            "params": len(kernel.params),
            "dims": list(kernel.dims),
            "grid": list(map(encode_expression, facts.launch.grid)),
            "block": list(facts.launch.block),
            "shared": facts.launch.shared_bytes,
            "checks": checks(kernel),
            "flops": encode_expression(kernel.flops),
            "bytes": encode_expression(sum((dims.product(param.shape) * param.dtype.bytes for param in kernel.params), 0)),
            "record": {str(key): str(value) for key, value in sorted(kernel.tags.items())},
            "facts": dict(facts.facts),
        }

    # Steps --------------------------------------------------------------------------------------------

    def _block(self, body: Iterable[Instruction]) -> list[dict[str, Json]]:
        return [step for instruction in body if (step := self._step(instruction)) is not None]

    def _step(self, instruction: Instruction) -> dict[str, Json] | None:
        match instruction:
            case Call():
                return self._launch(instruction)
            case Copy(target=target, source=source):
                if self.places.same_place(target, source):
                    return None
                size = encode_expression(instruction.size * target.dtype.bytes)
                return {"do": "copy", "target": self.buffers[target], "source": self.buffers[source], "bytes": size}
            case BindDim(symbol=symbol, range=range_):
                low, high = map(_bound, (range_.lo, range_.hi))
                text = f"{symbol} in {range_.lo}..{'' if range_.hi is None else range_.hi}"
                head = {"do": "bind", "symbol": symbol, "buffer": self.buffers[instruction.buffer], "low": low, "high": high}
                return {**head, "text": text, "nodes": list(instruction.source)}
            case SetDim():
                return {"do": "set", "symbol": instruction.symbol, "value": encode_expression(instruction.expr)}
            case Allocate():
                return {"do": "allocate", "buffer": self.buffers[instruction.buffer]}
            case If():
                blocks = {"then": self._block(instruction.then), "else": self._block(instruction.otherwise)}
                return {"do": "if", "condition": self.buffers[instruction.cond], **blocks}
            case Loop(trip=trip, cond=cond):
                head = {"do": "loop", "counter": instruction.counter, "trip": _bound(trip)}
                return {**head, "condition": None if cond is None else self.buffers[cond], "body": self._block(instruction.body)}
            case Require(message=message):
                status = Status.BROADCAST if message.startswith("broadcast") else Status.SHAPE
                head = {"do": "require", "value": encode_expression(instruction.expr), "status": CODES[status], "text": message}
                return {**head, "nodes": list(instruction.source)}
        raise TypeError(f"not an instruction: {instruction!r}")

    def _launch(self, call: Call) -> dict[str, Json] | None:
        equal = equal_pitches(call)
        moves = is_copy(call.kernel, equal)
        if moves and self.places.same_place(*call.buffers):
            return None
        step = {
            "do": "launch",
            "kernel": self.kernels[call.kernel],
            "buffers": [self.buffers[buffer] for buffer in call.buffers],
            "dims": list(map(encode_expression, call.dims)),
            "nodes": list(call.source),
        }
        if moves:  # does nothing where both buffers are one and these expressions are equal
            values = dict(zip(call.kernel.dims, call.dims, strict=True))
            pairs = [(values[name], dims.substitute(other, values)) for name, other in equal.items()]
            step["moves"] = [[encode_expression(a), encode_expression(b)] for a, b in pairs]
        return step


def checks(kernel: Kernel) -> bool:
    """Whether a run of the kernel may stop the program."""
    return any(isinstance(stmt, Check) for stmt in statements(kernel.body))
