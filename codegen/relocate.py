"""Patches machine code with addresses: one function per relocation kind that freestanding code needs.

Sources: System V ABI AMD64 supplement, section 4.4 and B.2 (GOTPCRELX relaxation); ELF for the Arm 64-bit
Architecture, section 5.7. Addresses are offsets in the image, which stands at any multiple of 4096.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tcompile.codegen.elf import LinkError

Patch = Callable[[bytearray, int, int, str], None]  # (image, place, address, symbol name)


def _put(image: bytearray, place: int, value: int, bits: int, name: str) -> None:
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise LinkError(f"{name} is out of reach: {value} does not fit {bits} bits")
    if place + bits // 8 > len(image):
        raise LinkError(f"damaged object file: a reference to {name} lies outside its section")
    image[place : place + bits // 8] = (value & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _pc32(image: bytearray, place: int, address: int, name: str) -> None:
    _put(image, place, address - place, 32, name)


def _pc64(image: bytearray, place: int, address: int, name: str) -> None:
    _put(image, place, address - place, 64, name)


def _gotpcrelx(image: bytearray, place: int, address: int, name: str) -> None:
    """The image has no GOT: mov x@GOTPCREL(%rip), r --> lea x(%rip), r; call *x@GOTPCREL(%rip) --> addr32 call x; jmp likewise."""
    opcode, modrm = image[place - 2], image[place - 1]
    if opcode == 0x8B:
        image[place - 2] = 0x8D
    elif (opcode, modrm) == (0xFF, 0x15):
        image[place - 2 : place] = b"\x67\xe8"
    elif (opcode, modrm) == (0xFF, 0x25):
        image[place - 2] = 0xE9
        image[place + 3] = 0x90
        _put(image, place - 1, address - (place - 1), 32, name)
        return
    else:
        raise LinkError(f"the reference to {name} goes through a GOT: instruction {opcode:02x} {modrm:02x} cannot be relaxed")
    _pc32(image, place, address, name)


def _word(image: bytearray, place: int) -> int:
    return struct.unpack_from("<I", image, place)[0]


def _set_word(image: bytearray, place: int, word: int) -> None:
    struct.pack_into("<I", image, place, word)


def _branch26(image: bytearray, place: int, address: int, name: str) -> None:
    distance = address - place
    if distance % 4 or not -(1 << 27) <= distance < 1 << 27:
        raise LinkError(f"{name} is out of reach of a branch: distance {distance}")
    _set_word(image, place, _word(image, place) & ~0x03FFFFFF | (distance >> 2) & 0x03FFFFFF)


def _adr_page(image: bytearray, place: int, address: int, name: str) -> None:
    pages = (address >> 12) - (place >> 12)
    if not -(1 << 20) <= pages < 1 << 20:
        raise LinkError(f"{name} is out of reach: {pages} pages away")
    word = _word(image, place) & ~(0x3 << 29 | 0x7FFFF << 5)
    _set_word(image, place, word | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5)


def _low12(scale: int) -> Patch:
    """The low 12 bits of an address as the immediate of an add (scale 0) or of a load of 2**scale bytes."""

    def patch(image: bytearray, place: int, address: int, name: str) -> None:
        low = address & 0xFFF
        if low % (1 << scale):
            raise LinkError(f"{name} is not aligned to {1 << scale} bytes")
        _set_word(image, place, _word(image, place) & ~(0xFFF << 10) | (low >> scale) << 10)

    return patch


def _got_low12(image: bytearray, place: int, address: int, name: str) -> None:
    """The image has no GOT: adrp x, :got:s; ldr y, [x, :got_lo12:s] --> adrp x, s; add y, x, :lo12:s."""
    word = _word(image, place)
    if word & 0xFFC00000 != 0xF9400000:
        raise LinkError(f"the reference to {name} goes through a GOT: instruction {word:08x} cannot be relaxed")
    _set_word(image, place, 0x91000000 | word & 0x3FF | (address & 0xFFF) << 10)


PATCHES: dict[str, dict[int, Patch]] = {
    "x86_64": {
        2: _pc32,  # R_X86_64_PC32
        4: _pc32,  # R_X86_64_PLT32
        24: _pc64,  # R_X86_64_PC64
        41: _gotpcrelx,  # R_X86_64_GOTPCRELX
        42: _gotpcrelx,  # R_X86_64_REX_GOTPCRELX
    },
    "aarch64": {
        260: _pc64,  # R_AARCH64_PREL64
        261: _pc32,  # R_AARCH64_PREL32
        275: _adr_page,  # R_AARCH64_ADR_PREL_PG_HI21
        277: _low12(0),  # R_AARCH64_ADD_ABS_LO12_NC
        278: _low12(0),  # R_AARCH64_LDST8_ABS_LO12_NC
        282: _branch26,  # R_AARCH64_JUMP26
        283: _branch26,  # R_AARCH64_CALL26
        284: _low12(1),  # R_AARCH64_LDST16_ABS_LO12_NC
        285: _low12(2),  # R_AARCH64_LDST32_ABS_LO12_NC
        286: _low12(3),  # R_AARCH64_LDST64_ABS_LO12_NC
        299: _low12(4),  # R_AARCH64_LDST128_ABS_LO12_NC
        311: _adr_page,  # R_AARCH64_ADR_GOT_PAGE
        312: _got_low12,  # R_AARCH64_LD64_GOT_LO12_NC
    },
}
