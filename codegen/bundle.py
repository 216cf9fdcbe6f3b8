"""Writes the artifact of a model with host ops: its steps, and the artifact of each native segment as one entry.

Entries: ``host.json`` and its SHA-256, ``segments/0.tcm``, ... Segments begin at multiples of 64 KiB, so that their weights do too.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Callable, Sequence
from typing import BinaryIO

from tcompile.codegen.artifact import WEIGHTS_ALIGN
from tcompile.codegen.container import ENTRY_ALIGN, StoredEntry, placed_entries, write_entries

_IN_MEMORY = 1 << 26  # bytes of a segment that stay out of a file while the bundle is written
_CHUNK = 1 << 22

Writer = Callable[[BinaryIO], None]


def write_bundle(stream: BinaryIO, steps: bytes, segments: Sequence[Writer]) -> None:
    """Writes into an empty stream that can seek. Each writer gets an empty stream of its own."""
    files = [tempfile.SpooledTemporaryFile(_IN_MEMORY) for _ in segments]  # noqa: SIM115
    small = (("host.json", steps), ("host.sha256", hashlib.sha256(steps).digest()))
    entries = [StoredEntry(name, ENTRY_ALIGN, len(data), zlib.crc32(data), data) for name, data in small]
    for number, (write, file) in enumerate(zip(segments, files, strict=True)):
        write(file)
        size, crc = _measured(file)
        entries.append(StoredEntry(f"segments/{number}.tcm", WEIGHTS_ALIGN, size, crc, None))
    placed = placed_entries(entries)
    for one, file in zip(placed[len(small) :], files, strict=True):
        stream.seek(one.start)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            stream.write(chunk)
        file.close()
    stream.seek(0)
    write_entries(stream, placed)


def _measured(file: BinaryIO) -> tuple[int, int]:
    """(bytes, CRC-32) of a file."""
    size = crc = 0
    file.seek(0)
    while chunk := file.read(_CHUNK):
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
