"""Reads ELF64 relocatable objects: what the linker needs of them and no more.

Source: System V ABI, chapter 4, and its x86-64 and AArch64 supplements.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tcompile.errors import Error

_HEADER = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_RELOCATABLE = 1
_SYMTAB, _STRTAB, _RELA, _NOBITS = 2, 3, 4, 8
_ALLOC, _WRITE, _TLS = 2, 1, 0x400
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2
_LOCAL, _SECTION_SYMBOL = 0, 3
_PATCH_BYTES = 4

ARCHES = {62: "x86_64", 183: "aarch64"}


class LinkError(Error):
    """An object that cannot become part of a freestanding image."""


@dataclass(frozen=True)
class Section:
    """One section; ``data`` is None where it occupies no bytes of the file."""

    name: str
    kind: int
    flags: int
    data: bytes | None
    size: int
    align: int
    target: int  # of relocations: the section they patch

    @property
    def loaded(self) -> bool:
        return bool(self.flags & _ALLOC)

    @property
    def writable(self) -> bool:
        return bool(self.flags & (_WRITE | _TLS))


@dataclass(frozen=True)
class Symbol:
    """A name, or a section where ``name`` is empty. ``section`` is None where another object defines it."""

    name: str
    section: int | None
    value: int
    local: bool


@dataclass(frozen=True)
class Relocation:
    """Patch ``section`` at ``offset`` with the address of ``symbol`` + ``addend``, in the way of ``kind``."""

    section: int
    offset: int
    kind: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class Object:
    """A parsed relocatable object."""

    arch: str
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: tuple[Relocation, ...]


def read_object(data: bytes) -> Object:
    """Parses an ELF64 little-endian relocatable object. Raises LinkError for anything else, or damaged tables."""
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise LinkError(f"damaged object file: {error}") from error


def _read(data: bytes) -> Object:
    magic, bits, order, _, _, kind, machine, _, _, _, table, _, _, _, _, size, count, names_at = _HEADER.unpack_from(data)
    if magic != b"\x7fELF" or (bits, order, kind) != (2, 1, _RELOCATABLE):
        raise LinkError("not an ELF64 little-endian relocatable object")
    if machine not in ARCHES:
        raise LinkError(f"objects for ELF machine {machine} are not supported", hint=f"known: {', '.join(ARCHES.values())}")
    raw = [_SECTION.unpack_from(data, table + i * size) for i in range(count)]
    names = _bytes(data, raw[names_at])
    sections = tuple(_section(data, names, header) for header in raw)
    symbols: tuple[Symbol, ...] = ()
    for i, section in enumerate(sections):
        if section.kind == _SYMTAB:
            symbols = _symbols(_bytes(data, raw[i]), _bytes(data, raw[raw[i][6]]))
    relocations = tuple(
        Relocation(section.target, offset, info & 0xFFFFFFFF, info >> 32, addend)
        for section in sections
        if section.kind == _RELA
        for offset, info, addend in _RELOCATION.iter_unpack(section.data)
    )
    _check_references(sections, symbols, relocations)
    return Object(ARCHES[machine], sections, symbols, relocations)


def _check_references(sections: tuple[Section, ...], symbols: tuple[Symbol, ...], relocations: tuple[Relocation, ...]) -> None:
    """What the linker follows leads somewhere."""
    for symbol in symbols:
        if symbol.section is not None and (symbol.section >= len(sections) or symbol.value > sections[symbol.section].size):
            raise ValueError("a symbol lies outside its section")
    for relocation in relocations:
        target = sections[relocation.section]
        if target.loaded and not 0 <= relocation.offset <= target.size - _PATCH_BYTES:
            raise ValueError("a relocation lies outside its section")
        if symbols[relocation.symbol].name == "" and symbols[relocation.symbol].section is None:
            raise ValueError("a relocation without a symbol")


def _section(data: bytes, names: bytes, header: tuple[int, ...]) -> Section:
    name, kind, flags, _, _, size, _, info, align, _ = header
    content = None if kind == _NOBITS else _bytes(data, header)
    return Section(_string(names, name), kind, flags, content, size, max(align, 1), info)


def _symbols(table: bytes, names: bytes) -> tuple[Symbol, ...]:
    found = []
    for name, info, _, section, value, _ in _SYMBOL.iter_unpack(table):
        if section == _COMMON:
            raise LinkError(f"{_string(names, name)} is a common symbol: compiled code has no writable globals")
        defined = None if section in (_UNDEFINED, _ABSOLUTE) else section
        text = "" if info & 15 == _SECTION_SYMBOL else _string(names, name)
        found.append(Symbol(text, defined, value, info >> 4 == _LOCAL))
    return tuple(found)


def _bytes(data: bytes, header: tuple[int, ...]) -> bytes:
    start, size = header[4], header[5]
    if start + size > len(data):
        raise ValueError("a section lies outside the file")
    return data[start : start + size]


def _string(names: bytes, start: int) -> str:
    return names[start : names.index(b"\0", start)].decode()
