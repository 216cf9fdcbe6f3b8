"""The linker: objects become one image that runs at any address and needs nothing else."""

import contextlib
import ctypes
import struct

import llvmlite.binding as llvm
import pytest

from tcompile.codegen.elf import read_object
from tcompile.codegen.link import LinkError, link
from tests.runtime.native_models import ARCH, assemble

TABLE = """
@table = internal constant [4 x i32] [i32 3, i32 5, i32 7, i32 11], align 64
define i32 @look(i64 %i) {
  %at = getelementptr i32, ptr @table, i64 %i
  %value = load i32, ptr %at
  ret i32 %value
}
"""
CALLER = """
declare i32 @look(i64)
define i32 @twice(i64 %i) {
  %one = call i32 @look(i64 %i)
  %two = call i32 @look(i64 %i)
  %sum = add i32 %one, %two
  ret i32 %sum
}
define ptr @address() {
  ret ptr @look
}
"""


def test_calls_constants_and_addresses_across_objects():
    """A call, a constant and a function's address reach from one object into another, at two different addresses."""
    image = link([assemble(CALLER), assemble(TABLE)])
    for _ in range(2):
        memory = _map(image.code)
        twice = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)(memory + image.symbols["twice"])
        assert [twice(i) for i in range(4)] == [6, 10, 14, 22]
        address = ctypes.CFUNCTYPE(ctypes.c_void_p)(memory + image.symbols["address"])
        assert address() == memory + image.symbols["look"]


def test_the_same_objects_give_the_same_image():
    objects = [assemble(CALLER), assemble(TABLE)]
    assert link(objects) == link(objects)
    assert link(objects).symbols.keys() == {"twice", "address", "look"}


def test_constants_keep_their_alignment():
    image = link([assemble(CALLER), assemble(TABLE)])
    assert image.code.index(struct.pack("<4i", 3, 5, 7, 11)) % 64 == 0


def test_equal_constants_are_kept_once():
    image = link([assemble(TABLE), assemble(TABLE.replace("@look", "@again"))])
    assert image.code.count(struct.pack("<4i", 3, 5, 7, 11)) == 1


def test_an_undefined_symbol_is_named():
    with pytest.raises(LinkError, match="undefined symbol look"):
        link([assemble(CALLER)])


def test_a_library_call_is_refused():
    """What the code generator forgot to expand shows here, and not as a crash."""
    text = "declare float @llvm.exp.f32(float)\ndefine float @f(float %x) {\n %y = call float @llvm.exp.f32(float %x)\n ret float %y\n}"
    with pytest.raises(LinkError, match="undefined symbol expf"):
        link([assemble(text)])


def test_a_symbol_defined_twice_is_named():
    with pytest.raises(LinkError, match="look is defined twice"):
        link([assemble(TABLE), assemble(TABLE)])


@pytest.mark.parametrize("text", ["@state = global i32 7", "@state = global i32 0", "@state = thread_local global i32 0"])
def test_writable_globals_are_refused(text):
    body = "\ndefine i32 @f(i32 %w) {\n %v = load i32, ptr @state\n store i32 %w, ptr @state\n ret i32 %v\n}"
    with pytest.raises(LinkError):
        link([assemble(text + body)])


def test_what_is_not_an_object_is_refused():
    for data in (b"", b"\x7fELF", b"\0" * 100, assemble(TABLE)[:200]):
        with pytest.raises(LinkError):
            link([data])


def test_a_damaged_object_is_refused_or_linked_but_never_breaks():
    """Every byte of the headers and tables, changed: a LinkError or an image, no other exception."""
    good = assemble(CALLER.replace("declare i32 @look(i64)", "") + TABLE)
    for position in range(len(good)):
        for change in (0x01, 0x80, 0xFF):
            data = bytearray(good)
            data[position] ^= change
            with contextlib.suppress(LinkError):
                link([bytes(data)])


def test_jump_tables_link():
    """A switch that becomes a table of distances to its cases."""
    cases = "\n".join(f"i64 {i}, label %c{i}" for i in range(12))
    case = "c{i}:\n %v{i} = call i32 @look(i64 {turn})\n %r{i} = mul i32 %v{i}, {factor}\n ret i32 %r{i}"
    blocks = "\n".join(case.format(i=i, turn=i % 4, factor=i * i + 1) for i in range(12))
    switch = f"switch i64 %i, label %other [\n{cases}\n]\n{blocks}\nother:\n ret i32 -1"
    image = link([assemble(f"declare i32 @look(i64)\ndefine i32 @choose(i64 %i) {{\n{switch}\n}}"), assemble(TABLE)])
    choose = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)(_map(image.code) + image.symbols["choose"])
    primes = [3, 5, 7, 11]
    assert [choose(i) for i in range(13)] == [*(primes[i % 4] * (i * i + 1) for i in range(12)), -1]


@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_the_image_of_another_machine(arch):
    """Linking needs no machine of the kind it links for; branch and page distances are checked by decoding them."""
    image = link([assemble(text, triple=f"{arch}-unknown-linux-gnu") for text in (CALLER, TABLE)])
    assert image.arch == arch
    if arch == "aarch64":
        _check_aarch64(image.code, image.symbols)


def _check_aarch64(code, symbols):
    """Follows every branch and page address in the image to its target."""
    words = struct.unpack(f"<{len(code) // 4}I", code[: len(code) // 4 * 4])
    calls = [4 * i + _signed(word & 0x3FFFFFF, 26) * 4 for i, word in enumerate(words) if word >> 26 == 0b100101]
    assert calls == [symbols["look"]] * 2
    table = code.index(struct.pack("<4i", 3, 5, 7, 11))
    reached = []
    for i, word in enumerate(words):
        if word & 0x9F000000 == 0x90000000:  # adrp, then add #low
            pages = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
            assert words[i + 1] & 0xFFC00000 == 0x91000000
            reached.append((4 * i >> 12 << 12) + (pages << 12) + (words[i + 1] >> 10 & 0xFFF))
    assert table in reached
    assert symbols["look"] in reached


def _signed(value, bits):
    return value - (1 << bits) if value >> (bits - 1) else value


def test_different_machines_do_not_mix():
    other = "x86_64" if ARCH == "aarch64" else "aarch64"
    with pytest.raises(LinkError, match="different machines"):
        link([assemble(TABLE), assemble(CALLER, triple=f"{other}-unknown-linux-gnu")])


def test_32_bit_objects_are_refused():
    with pytest.raises(LinkError, match="ELF64"):
        link([assemble(TABLE, triple="armv7-unknown-linux-gnueabihf")])


def test_a_got_reference_is_relaxed():
    """Taking the address of a function of another object goes through a GOT entry unless the linker relaxes it."""
    parsed = read_object(assemble(CALLER, triple="x86_64-unknown-linux-gnu"))
    assert {relocation.kind for relocation in parsed.relocations} & {41, 42}


_kept = []


def _map(code):
    """The address of executable memory that holds the code."""
    import mmap

    memory = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    _kept.append(memory)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_llvm_has_the_targets():
    """The tests above would pass without them only by accident."""
    llvm.initialize_all_targets()
    assert llvm.Target.from_triple("aarch64-unknown-linux-gnu").name == "aarch64"
