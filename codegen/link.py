"""Links relocatable objects into one flat, position-independent image: code first, then constants.

The image is mapped read-only and executable as a whole, so it holds no data that is written, and it names nothing
outside itself. The same objects in the same order give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tcompile.codegen.elf import LinkError, Object, Section, read_object
from tcompile.codegen.relocate import PATCHES

__all__ = ["LinkError", "LinkedImage", "link"]

_UNWANTED = (".eh_frame", ".note", ".llvm_addrsig", ".ARM.")  # nothing unwinds through compiled code


@dataclass(frozen=True)
class LinkedImage:
    """Code to map at a multiple of 4096. ``symbols`` are offsets of the global functions and constants."""

    arch: str
    code: bytes
    symbols: dict[str, int]


@dataclass(frozen=True)
class _Place:
    """Where a section of an object begins in the image."""

    unit: int
    section: int


def link(objects: Iterable[bytes]) -> LinkedImage:
    """Links ELF64 objects of one machine, in order.

    Raises LinkError, naming the symbol: undefined, defined twice, out of reach; for writable or thread-local data;
    for relocations that freestanding code does not need.
    """
    units = [read_object(data) for data in objects]
    if not units:
        raise LinkError("no objects to link")
    arch = _one_arch(units)
    image, starts = _lay_out(units)
    symbols = _global_symbols(units, starts)
    for unit, parsed in enumerate(units):
        _relocate(image, unit, parsed, starts, symbols)
    return LinkedImage(arch, bytes(image), symbols)


def _one_arch(units: list[Object]) -> str:
    arches = sorted({unit.arch for unit in units})
    if len(arches) > 1:
        raise LinkError(f"objects of different machines: {', '.join(arches)}")
    return arches[0]


def _lay_out(units: list[Object]) -> tuple[bytearray, dict[_Place, int]]:
    """Executable sections, then constants; equal constants without relocations are kept once."""
    image = bytearray()
    starts: dict[_Place, int] = {}
    seen: dict[tuple[int, bytes], int] = {}
    for code in (True, False):
        for unit, parsed in enumerate(units):
            patched = {relocation.section for relocation in parsed.relocations}
            for number, section in enumerate(parsed.sections):
                if not _kept(section) or _is_code(section) != code:
                    continue
                key = (section.align, section.data)
                shared = not code and number not in patched
                if shared and key in seen:
                    starts[_Place(unit, number)] = seen[key]
                    continue
                image.extend(bytes(-len(image) % section.align))
                starts[_Place(unit, number)] = len(image)
                if shared:
                    seen[key] = len(image)
                image.extend(section.data)
    return image, starts


def _kept(section: Section) -> bool:
    if not section.loaded or section.name.startswith(_UNWANTED) or section.size == 0:
        return False
    if section.writable or section.data is None:
        raise LinkError(f"section {section.name} holds writable data", hint="compiled code keeps its state in the frame")
    if section.align > 4096:
        raise LinkError(f"section {section.name} asks for an alignment of {section.align}; an image has 4096")
    return True


def _is_code(section: Section) -> bool:
    return section.name.startswith(".text")


def _global_symbols(units: list[Object], starts: dict[_Place, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for unit, parsed in enumerate(units):
        for symbol in parsed.symbols:
            place = _Place(unit, symbol.section) if symbol.section is not None else None
            if symbol.local or place not in starts:
                continue
            if symbol.name in found:
                raise LinkError(f"{symbol.name} is defined twice")
            found[symbol.name] = starts[place] + symbol.value
    return found


def _relocate(image: bytearray, unit: int, parsed: Object, starts: dict[_Place, int], symbols: dict[str, int]) -> None:
    for relocation in parsed.relocations:
        base = starts.get(_Place(unit, relocation.section))
        if base is None:
            continue  # of a section that is not loaded
        patch = PATCHES[parsed.arch].get(relocation.kind)
        symbol = parsed.symbols[relocation.symbol]
        if patch is None:
            raise LinkError(f"relocation kind {relocation.kind} ({parsed.arch}) of {symbol.name or 'a section'} is not supported")
        address = _address(unit, parsed, relocation.symbol, starts, symbols) + relocation.addend
        patch(image, base + relocation.offset, address, symbol.name or parsed.sections[symbol.section].name)


def _address(unit: int, parsed: Object, number: int, starts: dict[_Place, int], symbols: dict[str, int]) -> int:
    symbol = parsed.symbols[number]
    if symbol.section is not None:
        start = starts.get(_Place(unit, symbol.section))
        if start is not None:
            return start + symbol.value
        raise LinkError(f"a reference to section {parsed.sections[symbol.section].name}, which is not part of an image")
    if symbol.name not in symbols:
        raise LinkError(f"undefined symbol {symbol.name}", hint="compiled code must be freestanding: no libc, libm or compiler helpers")
    return symbols[symbol.name]
