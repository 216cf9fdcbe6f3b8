"""Runs compiled kernels of another machine under QEMU's user-mode emulator, for tests.

Everything goes into one static executable: the linked image, a driver that calls a table of kernels, and a data
segment with arguments and arrays, which the driver writes to its standard output in the end.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tcompile.codegen import cpu_llvm
from tcompile.codegen.link import link
from tcompile.ir import dims as dim
from tcompile.ir.loops import Kernel
from tcompile.ir.target import Target

CODE, DATA = 0x400000, 0x10000000
_PAGE = 0x10000
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

Call = tuple[Kernel, Sequence[np.ndarray], Sequence[int]]


def _driver(table: int, data_size: int) -> bytes:
    """AArch64 code: for each entry (function, args, begin, end, scratch, status) call it; write(1, data); exit(0)."""
    code = [
        0x58000013 | 20 << 5,  # ldr x19, table
        0xF9400268,  # loop: ldr x8, [x19]
        0xB4000008 | 9 << 5,  # cbz x8, done
        0xF9400660,  # ldr x0, [x19, 8]
        0xF9400A61,  # ldr x1, [x19, 16]
        0xF9400E62,  # ldr x2, [x19, 24]
        0xF9401263,  # ldr x3, [x19, 32]
        0xD63F0100,  # blr x8
        0xF9001660,  # str x0, [x19, 40]
        0x9100C273,  # add x19, x19, 48
        0x14000000 | (-9 & 0x3FFFFFF),  # b loop
        0xD2800020,  # done: mov x0, 1
        0x58000001 | 10 << 5,  # ldr x1, data
        0x58000002 | 11 << 5,  # ldr x2, size
        0xD2800808,  # mov x8, 64 (write)
        0xD4000001,  # svc 0
        0xD2800000,  # mov x0, 0
        0xD2800BA8,  # mov x8, 93 (exit)
        0xD4000001,  # svc 0
        0xD503201F,  # nop
    ]
    return struct.pack(f"<{len(code)}I", *code) + struct.pack("<QQQ", table, DATA, data_size)


class _Data:
    """The data segment under construction."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def add(self, data: bytes) -> int:
        """Appends data at a multiple of 64; returns its address."""
        self.bytes += bytes(-len(self.bytes) % 64)
        self.bytes += data
        return DATA + len(self.bytes) - len(data)


def run(calls: Sequence[Call], target: Target) -> list[tuple[int, list[np.ndarray]]]:
    """The status and the arrays after each call, all in one process."""
    text = cpu_llvm.emit_module({id(kernel): kernel for kernel, _, _ in calls}.values(), target)
    image = link([cpu_llvm.compile_module(text, target)])
    data, table, places = _Data(), bytearray(), []
    start = CODE + _PAGE
    for kernel, arrays, dims in calls:
        addresses = [data.add(array.tobytes()) for array in arrays]
        words = data.add(struct.pack(f"<{len(arrays) + len(dims)}q", *addresses, *dims))
        size = cpu_llvm.scratch_bytes(kernel)
        size = size if isinstance(size, int) else dim.evaluate(size, dict(zip(kernel.dims, dims, strict=True)))
        scratch = data.add(bytes(size + 64))
        table += struct.pack("<6Q", start + image.symbols[kernel.name], words, 0, 1, scratch, 0)
        places.append(addresses)
    table_at = data.add(bytes(table) + bytes(8))
    memory = _execute(_driver(table_at, len(data.bytes)), image.code, bytes(data.bytes))
    results = []
    for number, ((_, arrays, _), addresses) in enumerate(zip(calls, places, strict=True)):
        (status,) = struct.unpack_from("<i", memory, table_at - DATA + 48 * number + 40)
        after = [
            np.frombuffer(memory, array.dtype, array.size, address - DATA).reshape(array.shape)
            for array, address in zip(arrays, addresses, strict=True)
        ]
        results.append((status, after))
    return results


def _execute(driver: bytes, code: bytes, data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        program, output = Path(folder) / "program", Path(folder) / "output"
        program.write_bytes(_executable(driver, code, data))
        program.chmod(0o755)
        with output.open("wb") as sink:
            subprocess.run([EMULATOR, str(program)], stdout=sink, check=True, timeout=300)
        return output.read_bytes()


def _executable(driver: bytes, code: bytes, data: bytes) -> bytes:
    """A static ELF executable: driver and image read-only and executable, data writable."""
    segments = [(CODE, 5, driver.ljust(_PAGE, b"\0") + code), (DATA, 6, data)]
    head = struct.pack("<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 183, 1, CODE, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    body, headers = bytearray(), bytearray()
    for address, flags, content in segments:
        body += bytes(-(_PAGE + len(body)) % _PAGE)
        headers += struct.pack("<IIQQQQQQ", 1, flags, _PAGE + len(body), address, address, len(content), len(content), _PAGE)
        body += content
    return (head + bytes(headers)).ljust(_PAGE, b"\0") + bytes(body)
