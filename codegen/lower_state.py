"""What lowering keeps while it walks a graph: buffers of values, kernels seen, instructions of the open block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from tcompile.codegen.draft import Scope
from tcompile.codegen.fingerprint import fingerprint
from tcompile.codegen.lower_node import Launches
from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.loops import Kernel
from tcompile.ir.program import Allocate, Buffer, Call, Copy, Instruction, Role
from tcompile.ir.spill import release
from tcompile.ir.target import Target

_SAMPLE, _PIECE = 64, 1 << 22


class State:
    """Shared by the lowering of a graph and of all its regions."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.target = target
        self.launches = Launches(target)
        self.symbols: dict[str, Range] = dict(graph.symbols)
        self.entry: tuple[str, ...] = _entry_symbols(graph)
        for name in self.entry:
            self.symbols.setdefault(name, Range())
        self.buffers: dict[Value, Buffer] = {}
        self.storage: dict[Value, dims.Shape] = {}  # of caches: see codegen/pitch.py
        self.one_pitch: dict[str, DimLike] = {}
        self.homes: dict[Value, Buffer] = {}  # where a value is wanted, so that its kernel writes it there
        self.scalars: dict[Value, Node] = {}
        self.constants: dict[Value, np.ndarray] = {}
        self._weights: dict[tuple[dtypes.DType, bytes], list[Buffer]] = {}
        self._kernels: dict[str, Kernel] = {}
        self._named: dict[Kernel, Kernel] = {}
        self._blocks: list[list[Instruction]] = [[]]
        self._local: list[dict[Value, Buffer]] = [{}]  # scalars stored in the open blocks
        self._names: dict[str, int] = {}

    @property
    def scope(self) -> Scope:
        return Scope(self.symbols, self.scalars, self.storage, self.one_pitch)

    # Instructions -------------------------------------------------------------------------------------

    def emit(self, instruction: Instruction) -> None:
        """Appends to the open block."""
        self._blocks[-1].append(instruction)

    def body(self) -> tuple[Instruction, ...]:
        (block,) = self._blocks
        return tuple(block)

    @contextmanager
    def block(self) -> Iterator[list[Instruction]]:
        """Collects the instructions of a branch or a loop body."""
        block: list[Instruction] = []
        self._blocks.append(block)
        self._local.append({})
        try:
            yield block
        finally:
            self._blocks.pop()
            self._local.pop()

    # Names --------------------------------------------------------------------------------------------

    def symbol(self, hint: str, known: Range | None = None) -> str:
        """A fresh symbol of the program."""
        name = next(text for text in _numbered(hint) if text not in self.symbols)
        self.symbols[name] = known or Range(-(2**63), 2**63 - 1)
        return name

    def name(self, hint: str) -> str:
        """A buffer name that no other has."""
        count = self._names.get(hint, 0)
        self._names[hint] = count + 1
        return f"{hint}.{count}" if count else hint

    # Buffers ------------------------------------------------------------------------------------------

    def known_at_entry(self, shape: dims.Shape) -> bool:
        """Whether a shape depends on nothing that the run binds."""
        return dims.shape_symbols(shape) <= set(self.entry)

    def new_buffer(self, hint: str, type_: TensorType) -> Buffer:
        """Memory for a tensor of a type."""
        role = Role.TEMP if self.known_at_entry(type_.shape) else Role.GROWING
        return Buffer(self.name(hint), type_.dtype, type_.shape, role)

    def allocate(self, buffer: Buffer) -> None:
        """Makes room where the run decides how much."""
        if buffer.role is Role.GROWING or (buffer.role is Role.OUTPUT and not self.known_at_entry(buffer.shape)):
            self.emit(Allocate(buffer))

    def destination(self, value: Value) -> Buffer:
        """The buffer that a kernel about to run writes a value into."""
        if value not in self.buffers:
            home = self.homes.get(value)
            self.buffers[value] = home or self.new_buffer(value.name, value.type)
            self.allocate(self.buffers[value])
        return self.buffers[value]

    def location(self, value: Value) -> Buffer:
        """The buffer that holds a value: constants become weights, dims are stored where they are needed."""
        found = self.buffers.get(value)
        if found is None and value in self.constants:
            found = self.buffers[value] = self._weight(value)
        if found is None:
            found = next((table[value] for table in reversed(self._local) if value in table), None)
        return found or self._stored_scalar(value)

    def copy(self, target: Buffer, source: Buffer, size: DimLike) -> None:
        """target = source, unless they are one."""
        if target is not source:
            self.emit(Copy(target, source, size))

    def kernel(self, kernel: Kernel) -> Kernel:
        """The one kernel of this structure, under a name of its own."""
        named = self._named.get(kernel)
        if named is None:
            named = self._named[kernel] = self._deduplicated(kernel)
        return named

    def _deduplicated(self, kernel: Kernel) -> Kernel:
        key = fingerprint(kernel)
        known = self._kernels.get(key)
        if known is None:
            digest = hashlib.sha256(key.encode()).hexdigest()[:12]  # the same in every model: compiled objects are cached
            known = self._kernels[key] = replace(kernel, name=f"{_plain(kernel.name)}_{digest}")
        return known

    def _weight(self, value: Value) -> Buffer:
        array = np.ascontiguousarray(self.constants[value])
        dtype, data = dtypes.from_numpy(array.dtype), array.reshape(-1).view(np.uint8)
        alike = self._weights.setdefault((dtype, _sample(data)), [])
        known = next((buffer for buffer in alike if _equal(buffer.value.reshape(-1).view(np.uint8), data)), None)
        if known is None:
            known = Buffer(self.name(value.name), dtype, tuple(array.shape), Role.WEIGHT, array)
            alike.append(known)
        release(array)
        return known

    def _stored_scalar(self, value: Value) -> Buffer:
        """A dim node's value in memory; valid in the open block only, where its symbols have these values."""
        node = self.scalars[value]
        stored = replace(node, outputs=(Value(value.name, value.type),))
        buffer = self._local[-1][value] = self.new_buffer(value.name, value.type)
        self.allocate(buffer)
        (launch,) = self.launches.of(stored, self.scope) or ()
        self.emit(Call(self.kernel(launch.kernel), (buffer,), tuple(map(dims.symbol, launch.symbols)), node.source))
        return buffer


def _entry_symbols(graph: Graph) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for value in graph.inputs:
        for extent in value.shape:
            found.update(dict.fromkeys(sorted(dims.symbols(extent))))
    return tuple(found)


def _sample(data: np.ndarray) -> bytes:
    """The size of an array and some of its bytes: what equal arrays share, and few others."""
    step = max(len(data) // _SAMPLE, 1)
    return b"%d:" % len(data) + data[: _SAMPLE * step : step].tobytes()


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether arrays of bytes are equal, compared in pieces that need little memory."""
    same = a.ctypes.data == b.ctypes.data
    return len(a) == len(b) and (same or all(np.array_equal(a[k : k + _PIECE], b[k : k + _PIECE]) for k in range(0, len(a), _PIECE)))


def _numbered(hint: str) -> Iterator[str]:
    number = 0
    while True:
        yield f"{hint}{number}"
        number += 1


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
