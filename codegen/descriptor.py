"""Writes the descriptor: the binary table of contents of a compiled model.

The format is declared in ``runtime/native/tcompile.h``, which is authoritative; ``runtime/native/descriptor.c`` reads it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from tcompile.codegen.machine import Machine
from tcompile.codegen.signature import Signature, Site, Tensor, Weight
from tcompile.errors import Error, UnsupportedError
from tcompile.ir.dims import Call, Dim, DimLike, Symbol

ABI_VERSION = 2
_UNBOUNDED = _NO_PITCH = 0xFFFFFFFF
_HEAD = struct.Struct("<8s6I4Q2q32s32s")
_TABLE = struct.Struct("<II")
_EXTENT, _TERM = struct.Struct("<IIqII"), struct.Struct("<IIq")
_SYMBOL, _TENSOR, _WEIGHT = struct.Struct("<IIII"), struct.Struct("<IIIIIIII"), struct.Struct("<IIQQ")
_SITE, _CALL = struct.Struct("<IIII"), struct.Struct("<IIIIIIII")
_NOTE, _NAME, _SHARE = struct.Struct("<II"), struct.Struct("<I"), struct.Struct("<II")
_TABLES = (
    "strings", "features", "symbols", "extents", "terms", "inputs", "outputs", "weights", "calls", "requirements", "sources", "notes",
    "growing", "shares",
)  # fmt: skip
_OPS = {"floordiv": 4, "mod": 5, "min": 6, "max": 7, "bcast": 8}


@dataclass(frozen=True)
class Content:
    """All that a descriptor says besides the signature. Offsets are in the code image; -1 bytes: not bounded."""

    machine: Machine
    prepare_offset: int
    run_offset: int
    code_size: int
    code_sha256: bytes
    weights_size: int
    weights_sha256: bytes
    weights: tuple[Weight, ...]
    arena_bytes: int
    scratch_bytes: int
    growing: tuple[Site, ...] = ()


def _word(number: int) -> int:
    """The number. Raises UnsupportedError for one that does not fit 64 bits."""
    if not -(2**63) <= number < 2**63:
        raise UnsupportedError(f"a size of the model holds the number {number}, which does not fit 64 bits")
    return number


class _Writer:
    """Collects records; equal strings and extents are written once."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self.numbers = {name: number for number, name in enumerate(symbols)}
        self.strings = bytearray(b"\0")
        self.known_strings = {"": 0}
        self.known_extents: dict[DimLike, int] = {}
        self.records: dict[str, list[bytes]] = {name: [] for name in _TABLES[1:]}

    def text(self, text: str) -> int:
        """The offset of a string. Raises Error for one that C cannot hold."""
        if "\0" in text:
            raise Error(f"the name {text!r} holds a zero character", hint="rename it")
        if text not in self.known_strings:
            self.known_strings[text] = len(self.strings)
            self.strings += text.encode() + b"\0"
        return self.known_strings[text]

    def add(self, table: str, record: bytes) -> int:
        """Appends a record and gives its number."""
        self.records[table].append(record)
        return len(self.records[table]) - 1

    def extent_record(self, extent: DimLike) -> bytes:
        if isinstance(extent, int):
            return _EXTENT.pack(0, self.text(str(extent)), _word(extent), 0, 0)
        text = self.text(str(extent))
        if str(extent) in self.numbers:
            return _EXTENT.pack(1, text, self.numbers[str(extent)], 0, 0)
        first = len(self.records["terms"])
        self.expression(extent)
        return _EXTENT.pack(2, text, first, len(self.records["terms"]) - first, 0)

    def extent(self, extent: DimLike) -> int:
        """The number of an extent that stands alone."""
        if extent not in self.known_extents:
            self.known_extents[extent] = self.add("extents", self.extent_record(extent))
        return self.known_extents[extent]

    def shape(self, shape: Iterable[DimLike]) -> int:
        """The number of the first of consecutive extents."""
        first = len(self.records["extents"])
        for record in [self.extent_record(extent) for extent in shape]:
            self.add("extents", record)
        return first

    def expression(self, d: DimLike) -> None:
        """Appends terms in postfix order: the sum of products, one after the other, so that the stack stays low."""
        if isinstance(d, int):
            self.term(0, d)
            return
        for i, (monomial, factor) in enumerate(d.terms):
            self.product(monomial, factor)
            if i:
                self.term(2)

    def product(self, monomial: tuple[Symbol | Call, ...], factor: int) -> None:
        wanted = factor != 1 or not monomial
        if wanted:
            self.term(0, factor)
        for i, atom in enumerate(monomial):
            if isinstance(atom, Symbol):
                self.term(1, self.numbers[atom.name])
            else:
                for arg in atom.args:
                    self.expression(arg)
                self.term(_OPS[atom.fn])
            if wanted or i:
                self.term(3)

    def term(self, op: int, value: int = 0) -> None:
        self.add("terms", _TERM.pack(op, 0, _word(value)))

    def names(self, names: tuple[str, ...]) -> int:
        """The number of the first of consecutive sources."""
        first = len(self.records["sources"])
        for name in names:
            self.add("sources", _NAME.pack(self.text(name)))
        return first


def encode(signature: Signature, content: Content) -> bytes:
    """The descriptor's bytes, its own SHA-256 at the end. The same arguments give the same bytes."""
    writer = _Writer(tuple(symbol.name for symbol in signature.symbols))
    names = [writer.text(text) for text in (signature.name, content.machine.target, content.machine.arch)]
    for feature in content.machine.features:
        writer.add("features", _NAME.pack(writer.text(feature)))
    for symbol in signature.symbols:
        high = _UNBOUNDED if symbol.hi is None else writer.extent(symbol.hi)
        writer.add("symbols", _SYMBOL.pack(writer.text(symbol.name), writer.extent(symbol.lo), high, 0))
    for table, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        for tensor in tensors:
            writer.add(table, _tensor(writer, tensor))
    for weight in content.weights:
        writer.add("weights", _WEIGHT.pack(writer.text(weight.name), weight.dtype.onnx, weight.offset, weight.bytes))
    for site in signature.calls:
        writer.add("calls", _call(writer, site))
    for table, sites in (("requirements", signature.requirements), ("growing", content.growing)):
        for site in sites:
            writer.add(table, _SITE.pack(writer.text(site.name), writer.names(site.sources), len(site.sources), 0))
    for output, operand in signature.shares:
        writer.add("shares", _SHARE.pack(output, operand))
    for key, value in sorted(signature.notes.items()):
        writer.add("notes", _NOTE.pack(writer.text(key), writer.text(value)))
    return _assemble(writer, signature, content, names)


def _tensor(writer: _Writer, tensor: Tensor) -> bytes:
    shape = writer.shape(tensor.shape)
    pitch = (tensor.pitch.axis, writer.numbers[tensor.pitch.symbol]) if tensor.pitch else (_NO_PITCH, 0)
    return _TENSOR.pack(writer.text(tensor.name), tensor.dtype.onnx, tensor.dtype.bytes, len(tensor.shape), shape, tensor.growing, *pitch)


def _call(writer: _Writer, site: Site) -> bytes:
    work = (writer.extent(extent) for extent in (site.flops, site.bytes, site.cycles))
    record = ";".join(f"{key}={value}" for key, value in sorted(site.record.items()))
    return _CALL.pack(writer.text(site.name), writer.names(site.sources), len(site.sources), *work, writer.text(record), 0)


def _assemble(writer: _Writer, signature: Signature, content: Content, names: list[int]) -> bytes:
    body, tables = bytearray(), []
    start = _HEAD.size + _TABLE.size * len(_TABLES)
    for table in _TABLES:
        data = bytes(writer.strings) if table == "strings" else b"".join(writer.records[table])
        tables.append(_TABLE.pack(start + len(body), len(data) if table == "strings" else len(writer.records[table])))
        body += data + bytes(-len(data) % 8)
    size = start + len(body) + hashlib.sha256().digest_size
    head = _HEAD.pack(
        b"TCOMPILE", ABI_VERSION, size, *names, signature.entry_symbols,
        content.prepare_offset, content.run_offset, content.code_size, content.weights_size,
        content.arena_bytes, content.scratch_bytes, content.code_sha256, content.weights_sha256,
    )  # fmt: skip
    whole = head + b"".join(tables) + bytes(body)
    return whole + hashlib.sha256(whole).digest()


def describe(signature: Signature, content: Content, descriptor: bytes) -> dict[str, object]:
    """The manifest: what the descriptor says, for people."""

    def tensor(tensor: Tensor) -> dict[str, object]:
        return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": [d if isinstance(d, int) else str(d) for d in tensor.shape]}

    def extent(d: Dim | int | None) -> object:
        return d if d is None or isinstance(d, int) else str(d)

    return {
        "format": ABI_VERSION,
        "name": signature.name,
        "target": content.machine.target,
        "arch": content.machine.arch,
        "features": list(content.machine.features),
        "inputs": [tensor(t) for t in signature.inputs],
        "outputs": [tensor(t) for t in signature.outputs],
        "symbols": {s.name: [extent(s.lo), extent(s.hi)] for s in signature.symbols},
        "calls": [
            {"kernel": site.name, "nodes": list(site.sources), "record": dict(sorted(site.record.items()))} for site in signature.calls
        ],
        "bytes": {
            "code": content.code_size,
            "weights": content.weights_size,
            "arena": extent(None if content.arena_bytes < 0 else content.arena_bytes),
            "scratch": extent(None if content.scratch_bytes < 0 else content.scratch_bytes),
        },
        "sha256": {
            "descriptor": hashlib.sha256(descriptor).hexdigest(),
            "code": content.code_sha256.hex(),
            "weights": content.weights_sha256.hex(),
        },
        "growing": [{"name": site.name, "nodes": list(site.sources)} for site in content.growing],
        "shares": [{"output": signature.outputs[k].name, "input": signature.inputs[i].name} for k, i in signature.shares],
        "notes": dict(sorted(signature.notes.items())),
    }
