"""Zip files of stored entries with aligned data, written with fixed times: the same entries give the same bytes.

Source: PKWARE APPNOTE 6.3, zip64 included.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

ENTRY_ALIGN = 64
_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_VERSION, _DATE = 45, 0x21  # zip64; 1980-01-01
_MAX32 = 0xFFFFFFFF


@dataclass(frozen=True)
class StoredEntry:
    """One stored file. ``data`` is None where the bytes are written by themselves, before the others."""

    name: str
    align: int
    size: int
    crc: int
    data: bytes | None


@dataclass(frozen=True)
class PlacedEntry:
    """An entry, the free bytes before it, its header, and where its data begins in the file."""

    entry: StoredEntry
    gap: int
    header: bytes
    start: int


def placed_entries(entries: Sequence[StoredEntry]) -> list[PlacedEntry]:
    """The entries with their places in the file, in order."""
    position, found = 0, []
    for entry in entries:
        gap, header = _local_header(entry, position)
        found.append(PlacedEntry(entry, gap, header, position + gap + len(header)))
        position = found[-1].start + entry.size
    return found


def write_entries(stream: BinaryIO, placed: Sequence[PlacedEntry]) -> None:
    """Everything but the data of entries that hold none: that stands in the stream already."""
    for one in placed:
        stream.write(bytes(one.gap) + one.header)
        if one.entry.data is None:
            stream.seek(one.start + one.entry.size)
        else:
            stream.write(one.entry.data)
    end = placed[-1].start + placed[-1].entry.size
    directory = b"".join(_central_header(one.entry, one.start - len(one.header)) for one in placed)
    stream.write(directory)
    stream.write(_end(len(placed), len(directory), end))


def _local_header(entry: StoredEntry, position: int) -> tuple[int, bytes]:
    """(bytes to leave free before it, header). An extra field pads the data to its alignment."""
    name = entry.name.encode()
    sizes = struct.pack("<HHQQ", 1, 16, entry.size, entry.size)
    gap, fixed = 0, _LOCAL.size + len(name) + len(sizes)
    padding = -(position + fixed) % entry.align
    if 0 < padding < 4 or len(sizes) + padding > 0xFFFF:  # too short, or too long, for an extra field
        gap, padding = padding, 0
    extra = sizes + (struct.pack("<HH", 0xD935, padding - 4) + bytes(padding - 4) if padding else b"")
    header = _LOCAL.pack(0x04034B50, _VERSION, 0x800, 0, 0, _DATE, entry.crc, _MAX32, _MAX32, len(name), len(extra))
    return gap, header + name + extra


def _central_header(entry: StoredEntry, offset: int) -> bytes:
    name = entry.name.encode()
    extra = struct.pack("<HHQQQ", 1, 24, entry.size, entry.size, offset)
    return (
        _CENTRAL.pack(
            0x02014B50, _VERSION, _VERSION, 0x800, 0, 0, _DATE, entry.crc, _MAX32, _MAX32, len(name), len(extra), 0, 0, 0, 0, _MAX32
        )
        + name
        + extra
    )


def _end(count: int, size: int, offset: int) -> bytes:
    """Both the zip64 and the old record; the old one tells the truth where it can."""
    where = offset + size
    return (
        _END64.pack(0x06064B50, _END64.size - 12, _VERSION, _VERSION, 0, 0, count, count, size, offset)
        + _LOCATOR64.pack(0x07064B50, 0, where, 1)
        + _END.pack(0x06054B50, 0, 0, count, count, size, min(offset, _MAX32), 0)
    )
