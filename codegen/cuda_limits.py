"""Bounds of kernels' dims over a program, and the checks of the limits that its kernels were compiled under.

call k(a, b) {n}       -->      require 2147483647 - 4*n >= 0
                                call k(a, b) {n}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcompile.codegen.cuda_emit_limits import INT_MAX, terms_of
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Ranges
from tcompile.ir.loops import Kernel
from tcompile.ir.program import BindDim, Call, If, Instruction, Loop, Program, Require, SetDim

Limits = Mapping[Kernel, tuple[DimLike, ...]]
MESSAGE = "a kernel's indices go beyond 2**31 - 1; give the model's symbols bounds, then it is compiled for 64-bit indices"


def dim_ranges(program: Program) -> dict[Kernel, Ranges]:
    """For each kernel, ranges that hold the values of its dims in all calls."""
    found: dict[Kernel, dict[str, Range]] = {}
    for call in _calls(program.body):
        known = found.setdefault(call.kernel, {})
        for name, expr in zip(call.kernel.dims, call.dims, strict=True):
            here = Range(dims.lower_bound(expr, program.symbols) or 0, dims.upper_bound(expr, program.symbols))
            known[name] = _joined(known[name], here) if name in known else here
    return found


def with_limits(program: Program, limits: Limits) -> Program:
    """The program with a Require before each call whose kernel has limits, once where nothing has changed since."""
    return replace(program, body=_checked(program.body, limits, program.symbols))


def _checked(body: tuple[Instruction, ...], limits: Limits, symbols: Ranges) -> tuple[Instruction, ...]:
    made: list[Instruction] = []
    seen: set[DimLike] = set()
    for instruction in body:
        match instruction:
            case Call():
                values = dict(zip(instruction.kernel.dims, instruction.dims, strict=True))
                for one in limits.get(instruction.kernel, ()):
                    room = INT_MAX - dims.substitute(one, values)
                    implied = any(all(factor >= 0 for _, factor in terms_of(room - other)) for other in seen)
                    if not implied and not dims.nonnegative(room, symbols):
                        seen.add(room)
                        made.append(Require(room, MESSAGE, instruction.source))
                made.append(instruction)
            case If():
                made.append(
                    If(instruction.cond, _checked(instruction.then, limits, symbols), _checked(instruction.otherwise, limits, symbols))
                )
                seen.clear()
            case Loop():
                made.append(replace(instruction, body=_checked(instruction.body, limits, symbols)))
                seen.clear()
            case _:
                if isinstance(instruction, SetDim | BindDim):
                    seen = {room for room in seen if instruction.symbol not in dims.symbols(room)}
                made.append(instruction)
    return tuple(made)


def _calls(body: tuple[Instruction, ...]) -> list[Call]:
    found: list[Call] = []
    for instruction in body:
        match instruction:
            case Call():
                found.append(instruction)
            case If():
                found += [*_calls(instruction.then), *_calls(instruction.otherwise)]
            case Loop():
                found += _calls(instruction.body)
    return found


def _joined(a: Range, b: Range) -> Range:
    return Range(min(a.lo, b.lo), None if a.hi is None or b.hi is None else max(a.hi, b.hi))
