"""Reads the text of programs back (the grammar is shown in ``ir/program_text.py``). Blocks are told by indentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from tcompile.errors import Error, InvalidModelError
from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.program import (
    Allocate,
    BindDim,
    Buffer,
    Call,
    Concurrent,
    Copy,
    If,
    Instruction,
    Loop,
    Pitch,
    Program,
    Require,
    Role,
    SetDim,
)

T = TypeVar("T")
_NAME = re.compile(r'"(?:[^"\\]|\\.)*"|[\w./~-]+(?::[\w./~-]+)*', re.ASCII)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_program(text: str, weights: Mapping[str, np.ndarray] | None = None) -> Program:
    """The program of a text printed with its kernels; ``weights`` holds the values of WEIGHT buffers by name.

    Raises InvalidModelError that names the line.
    """
    return _Parser(text, weights or {}).program()


class _AtLine(InvalidModelError):
    pass


class _Line:
    """One line under a cursor."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, token: str) -> bool:
        self._skip()
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise ValueError(f"expected {token!r} at {self.text[self.at :][:40]!r}")

    def name(self) -> str:
        found = self._match(_NAME)
        return json.loads(found) if found.startswith('"') else found

    def string(self) -> str:
        return json.loads(self._match(_STRING))

    def dim(self, *ends: str) -> DimLike:
        """An index expression up to one of the ends, outside parentheses."""
        self._skip()
        depth, start = 0, self.at
        while self.at < len(self.text) and (depth or not self.text.startswith(ends, self.at)):
            depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
            self.at += 1
        return dims.parse(self.text[start : self.at])

    def range(self) -> Range:
        low = self.dim("..")
        self.expect("..")
        self._skip()
        open_end = self.at == len(self.text) or self.text.startswith(";", self.at)
        return Range(low, None if open_end else self.dim("  ;"))

    def list(self, end: str, item: Callable[[], T]) -> tuple[T, ...]:
        items: list[T] = []
        while not self.take(end):
            if items:
                self.expect(",")
            items.append(item())
        return tuple(items)

    def source(self) -> tuple[str, ...]:
        names: list[str] = []
        if self.take(";"):
            names.append(self.name())
            while self.take(","):
                names.append(self.name())
        return tuple(names)

    def end(self) -> None:
        self._skip()
        if self.at < len(self.text):
            raise ValueError(f"expected the end of the line at {self.text[self.at :][:40]!r}")

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(f"expected a name at {self.text[self.at :][:40]!r}")
        self.at = found.end()
        return found.group()

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1


class _Parser:
    def __init__(self, text: str, weights: Mapping[str, np.ndarray]) -> None:
        head, *kernels = text.split("\nkernel ")
        self.lines = [(number, line) for number, line in enumerate(head.split("\n"), 1) if line.strip()]
        self.kernels: dict[str, Kernel] = {}
        for kernel in map(parse_kernel, (f"kernel {part}" for part in kernels)):
            self.kernels[kernel.name] = kernel
        self.weights = weights
        self.buffers: dict[str, Buffer] = {}
        self.position = 0

    def program(self) -> Program:
        name, inputs, outputs = self._read(self.lines[0], self._signature)
        symbols: dict[str, Range] = {}
        entry: list[str] = []
        notes: dict[str, str] = {}
        body: list[tuple[int, str]] = []
        for line in self.lines[1:]:
            self._read(line, lambda cursor, line=line: self._declaration(cursor, symbols, entry, notes) or body.append(line))
        self.lines = body
        instructions = self._block(1)
        if self.position < len(body):
            self._read(body[self.position], lambda cursor: cursor.expect("an instruction of an outer block"))
        plain_outputs = tuple(buffer for buffer, _ in outputs)
        names = tuple(public for _, public in outputs)
        return Program(name, inputs, plain_outputs, names, instructions, symbols, tuple(entry), notes)

    def _read(self, line: tuple[int, str], read: Callable[[_Line], T]) -> T:
        cursor = _Line(line[1])
        try:
            return read(cursor)
        except _AtLine:  # an inner line has named itself
            raise
        except (KeyError, ValueError, Error) as error:
            raise _AtLine(f"program text, line {line[0]}: {error}") from error

    # Declarations -------------------------------------------------------------------------------------

    def _signature(self, line: _Line) -> tuple[str, tuple[Buffer, ...], tuple[tuple[Buffer, str], ...]]:
        line.expect("program ")
        name = line.name()
        line.expect("(")
        inputs = line.list(")", lambda: self._declared(line, Role.INPUT))
        line.expect("->")
        line.expect("(")
        outputs = line.list(")", lambda: self._output(line))
        line.end()
        return name, inputs, outputs

    def _output(self, line: _Line) -> tuple[Buffer, str]:
        buffer = self._declared(line, Role.OUTPUT)
        return buffer, line.name() if line.take("as ") else buffer.name

    def _declared(self, line: _Line, role: Role) -> Buffer:
        name = line.name()
        line.expect(":")
        dtype = dtypes.BY_NAME[line.name()]
        line.expect("[")
        shape = line.list("]", lambda: line.dim(",", "]"))
        pitch = Pitch(int(line.name()), line.name()) if line.take("pitch ") else None
        if name not in self.buffers:  # an output may be listed twice under two names
            self.buffers[name] = Buffer(name, dtype, shape, role, self.weights[name] if role is Role.WEIGHT else None, pitch)
        return self.buffers[name]

    def _declaration(self, line: _Line, symbols: dict[str, Range], entry: list[str], notes: dict[str, str]) -> bool:
        """Reads a line that is no instruction; false where it is one."""
        bound_at_entry = line.take("entry ")
        if line.take("symbol "):
            name = line.name()
            line.expect("in ")
            symbols[name] = line.range()
            entry += [name] if bound_at_entry else []
        elif line.take("note "):
            key = line.string()
            notes[key] = line.string()
        elif any(line.take(f"{role} ") and self._declared(line, role) for role in (Role.WEIGHT, Role.TEMP, Role.GROWING)):
            pass
        else:
            return False
        line.end()
        return True

    # Instructions -------------------------------------------------------------------------------------

    def _block(self, depth: int) -> tuple[Instruction, ...]:
        found: list[Instruction] = []
        while self.position < len(self.lines):
            number, text = self.lines[self.position]
            if len(text) - len(text.lstrip(" ")) != 2 * depth or text.strip() in ("else", "and"):
                break
            self.position += 1
            found.append(self._read((number, text), lambda cursor: self._instruction(cursor, depth)))
        return tuple(found)

    def _instruction(self, line: _Line, depth: int) -> Instruction:
        made = self._simple(line)
        if made is None:
            made = self._nested(line, depth)
        line.end()
        return made

    def _simple(self, line: _Line) -> Instruction | None:
        if line.take("call "):
            kernel = self.kernels[line.name()]
            line.expect("(")
            buffers = line.list(")", lambda: self._buffer(line))
            values = line.list(")", lambda: line.dim(",", ")")) if line.take("dims (") else ()
            return Call(kernel, buffers, values, line.source())
        if line.take("bind "):
            symbol = line.name()
            line.expect("=")
            buffer = self._buffer(line)
            line.expect("in ")
            return BindDim(symbol, buffer, line.range(), line.source())
        if line.take("set "):
            symbol = line.name()
            line.expect("=")
            return SetDim(symbol, line.dim("\n"))
        if line.take("allocate "):
            return Allocate(self._buffer(line))
        if line.take("copy "):
            return self._copy(line)
        if line.take("require "):
            expr = line.dim(" >= 0:")
            line.expect(">= 0:")
            return Require(expr, line.string(), line.source())
        return None

    def _copy(self, line: _Line) -> Copy:
        target = self._buffer(line)
        line.expect("=")
        source = self._buffer(line)
        line.expect("(")
        size = line.dim(")")
        line.expect(")")
        return Copy(target, source, size)

    def _nested(self, line: _Line, depth: int) -> Instruction:
        if line.take("if "):
            cond, then = self._buffer(line), self._block(depth + 1)
            self._else(depth)
            return If(cond, then, self._block(depth + 1))
        if line.take("concurrent"):
            return self._concurrent(depth)
        line.expect("loop ")
        counter = line.name()
        trip = line.dim(" while ") if line.take("<") else None
        cond = self._buffer(line) if line.take("while ") else None
        return Loop(counter, trip, cond, self._block(depth + 1))

    def _concurrent(self, depth: int) -> Concurrent:
        branches = [self._block(depth + 1)]
        while self.position < len(self.lines) and self.lines[self.position][1] == "  " * depth + "and":
            self.position += 1
            branches.append(self._block(depth + 1))
        return Concurrent(tuple(branches))

    def _else(self, depth: int) -> None:
        number, text = self.lines[self.position] if self.position < len(self.lines) else (0, "")
        self._read((number, text), lambda cursor: cursor.expect("  " * depth + "else") if text != "  " * depth + "else" else None)
        self.position += 1

    def _buffer(self, line: _Line) -> Buffer:
        return self.buffers[line.name()]
