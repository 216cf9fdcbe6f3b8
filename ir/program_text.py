"""Prints a program: its signature, its instructions, its buffers and the kernels they call; ``ir/program_parse.py`` reads it back.

    program add(x: f32[n], y: f32[n]) -> (z: f32[n])
      entry symbol n in 0..
      call k0_add(x, y, z) dims (n)  ; Add_0

Names that are not plain words, paths or numbers stand in quotes. Weights print without their values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tcompile.ir.dims import DimLike, Range
from tcompile.ir.loops import Kernel
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Concurrent, Copy, If, Instruction, Loop, Program, Require, Role, SetDim

_PLAIN = re.compile(r"[\w./~:-]+", re.ASCII)


def print_program(program: Program, *, kernels: bool = True) -> str:
    """The text of a program, with its kernels below unless ``kernels`` is off."""
    lines = [_head(program), *_block(program.body, 1), *_buffers(program)]
    if kernels:
        from tcompile.ir.loops_text import print_kernel

        for kernel in program_kernels(program):
            lines += ["", print_kernel(kernel).rstrip()]
    return "\n".join(lines) + "\n"


def walk(body: Iterable[Instruction]) -> Iterator[Instruction]:
    """All instructions in program order: an If, Loop or Concurrent, then what is in it."""
    for instruction in body:
        yield instruction
        for block in blocks_of(instruction):
            yield from walk(block)


def blocks_of(instruction: Instruction) -> tuple[tuple[Instruction, ...], ...]:
    """The blocks inside an instruction, in program order."""
    match instruction:
        case If():
            return instruction.then, instruction.otherwise
        case Loop():
            return (instruction.body,)
        case Concurrent():
            return instruction.branches
    return ()


def program_kernels(program: Program) -> list[Kernel]:
    """The kernels of a program, each once, in the order of their first call."""
    return list(dict.fromkeys(i.kernel for i in walk(program.body) if isinstance(i, Call)))


def buffers_of(instruction: Instruction) -> tuple[Buffer, ...]:
    """The buffers that an instruction itself touches."""
    match instruction:
        case Call():
            return instruction.buffers
        case BindDim() | Allocate():
            return (instruction.buffer,)
        case Copy():
            return (instruction.target, instruction.source)
        case If():
            return (instruction.cond,)
        case Loop() if instruction.cond is not None:
            return (instruction.cond,)
    return ()


def program_buffers(program: Program) -> list[Buffer]:
    """Every buffer of a program, inputs and outputs first, the rest in the order of their first use."""
    used = (buffer for instruction in walk(program.body) for buffer in buffers_of(instruction))
    return list(dict.fromkeys((*program.inputs, *program.outputs, *used)))


def plain(name: str) -> str:
    """A name as it stands in the text."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


def _head(program: Program) -> str:
    inputs = ", ".join(map(_declared, program.inputs))
    named = zip(program.outputs, program.output_names, strict=True)
    outputs = ", ".join(f"{_declared(buffer)}{'' if buffer.name == name else f' as {plain(name)}'}" for buffer, name in named)
    lines = [f"program {plain(program.name)}({inputs}) -> ({outputs})"]
    for name, known in program.symbols.items():
        lines.append(f"  {'entry ' if name in program.entry_symbols else ''}symbol {name} in {_range(known)}")
    lines += [f"  note {json.dumps(key)} {json.dumps(value)}" for key, value in program.notes.items()]
    return "\n".join(lines)


def _declared(buffer: Buffer) -> str:
    pitch = "" if buffer.pitch is None else f" pitch {buffer.pitch.axis} {buffer.pitch.symbol}"
    return f"{plain(buffer.name)}: {buffer.dtype}[{', '.join(map(str, buffer.shape))}]{pitch}"


def _range(known: Range) -> str:
    return f"{known.lo}..{'' if known.hi is None else known.hi}"


def _buffers(program: Program) -> list[str]:
    own = [buffer for buffer in program_buffers(program) if buffer.role not in (Role.INPUT, Role.OUTPUT)]
    return ["", *(f"  {buffer.role} {_declared(buffer)}" for buffer in own)] if own else []


def _block(body: Iterable[Instruction], depth: int) -> Iterator[str]:
    for instruction in body:
        head, *blocks = _lines(instruction)
        yield f"{'  ' * depth}{head}"
        for label, block in blocks:
            if label:
                yield f"{'  ' * depth}{label}"
            yield from _block(block, depth + 1)


def _lines(instruction: Instruction) -> list:
    match instruction:
        case Call(kernel=kernel, buffers=buffers, dims=values):
            shapes = f" dims ({_list(values)})" if values else ""
            return [f"call {plain(kernel.name)}({', '.join(map(_name, buffers))}){shapes}{_source(instruction.source)}"]
        case BindDim(symbol=symbol, buffer=buffer, range=known):
            return [f"bind {symbol} = {_name(buffer)} in {_range(known)}{_source(instruction.source)}"]
        case SetDim(symbol=symbol, expr=expr):
            return [f"set {symbol} = {expr}"]
        case Allocate(buffer=buffer):
            return [f"allocate {_name(buffer)}"]
        case Copy(target=target, source=source, size=size):
            return [f"copy {_name(target)} = {_name(source)} ({size})"]
        case If(cond=cond, then=then, otherwise=otherwise):
            return [f"if {_name(cond)}", ("", then), ("else", otherwise)]
        case Loop(counter=counter, trip=trip, cond=cond, body=body):
            limit = "" if trip is None else f" < {trip}"
            return [f"loop {counter}{limit}{'' if cond is None else f' while {_name(cond)}'}", ("", body)]
        case Concurrent(branches=(first, *others)):
            return ["concurrent", ("", first), *(("and", branch) for branch in others)]
        case Require(expr=expr, message=message):
            return [f"require {expr} >= 0: {json.dumps(message)}{_source(instruction.source)}"]
    raise TypeError(f"not a program instruction: {instruction!r}")


def _name(buffer: Buffer) -> str:
    return plain(buffer.name)


def _list(values: Iterable[DimLike]) -> str:
    return ", ".join(map(str, values))


def _source(source: tuple[str, ...]) -> str:
    return f"  ; {', '.join(map(plain, source))}" if source else ""
