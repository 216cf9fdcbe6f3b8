"""Finds the entries of an artifact's zip without unpacking it. Every offset is checked before it is followed.

Source: PKWARE APPNOTE 6.3: the end records, the central directory, local headers; stored entries only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tcompile.errors import ArtifactError

_END, _LOCATOR64, _END64 = struct.Struct("<IHHHHIIH"), struct.Struct("<IIQI"), struct.Struct("<IQHHIIQQQQ")
_CENTRAL, _LOCAL = struct.Struct("<IHHHHHHIIIHHHHHII"), struct.Struct("<IHHHHHIIIHH")
_MAX32 = 0xFFFFFFFF
_ENTRY_LIMIT = 4096


@dataclass(frozen=True)
class Extent:
    """Where an entry's bytes stand in the file."""

    offset: int
    size: int


def read_entries(data: memoryview) -> dict[str, Extent]:
    """The stored entries of a zip by name. Raises ArtifactError for anything that is damaged, compressed or encrypted."""
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(str(error)) from error


def _damaged(why: str) -> ArtifactError:
    return ArtifactError(f"not a model artifact, or a damaged one: {why}", hint="compile the model again, or copy the file again")


def _read(data: memoryview) -> dict[str, Extent]:
    count, size, offset = _directory(data)
    if offset + size > len(data) or count > _ENTRY_LIMIT:
        raise _damaged("the directory lies outside the file")
    entries: dict[str, Extent] = {}
    end = offset + size
    for _ in range(count):
        name, extent, offset = _entry(data, offset, end)
        if name in entries:
            raise _damaged(f"two entries are called {name}")
        entries[name] = extent
    return entries


def _directory(data: memoryview) -> tuple[int, int, int]:
    """(number of entries, bytes, offset) of the central directory."""
    at = len(data) - _END.size
    if at < 0 or _END.unpack_from(data, at)[0] != 0x06054B50:
        raise _damaged("no zip directory at its end")
    *_, count, size, offset, _ = _END.unpack_from(data, at)
    locator = at - _LOCATOR64.size
    if locator >= 0 and _LOCATOR64.unpack_from(data, locator)[0] == 0x07064B50:
        where = _LOCATOR64.unpack_from(data, locator)[2]
        if where > len(data):
            raise _damaged("its zip64 directory lies outside the file")
        signature, *_, count, size, offset = _END64.unpack_from(data, where)
        if signature != 0x06064B50:
            raise _damaged("no zip64 directory where one is said to be")
    return count, size, offset


def _entry(data: memoryview, at: int, end: int) -> tuple[str, Extent, int]:
    fields = _CENTRAL.unpack_from(data, at)
    signature, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
    name_size, extra_size, comment_size, offset = fields[10], fields[11], fields[12], fields[16]
    at += _CENTRAL.size
    following = at + name_size + extra_size + comment_size
    if signature != 0x02014B50 or following > end:
        raise _damaged("a directory entry is cut off")
    name = str(data[at : at + name_size], "utf-8")
    size, packed, offset = _zip64(data[at + name_size : at + name_size + extra_size], size, packed, offset)
    if method or flags & 1 or size != packed:
        raise _damaged(f"{name} is compressed or encrypted")
    return name, Extent(_data_offset(data, offset, size, name), size), following


def _zip64(extra: memoryview, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The fields that do not fit 32 bits stand in an extra field, in this order."""
    values = [size, packed, offset]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = [i for i, value in enumerate(values) if value == _MAX32]
            numbers = struct.unpack_from(f"<{len(wide)}Q", extra[at + 4 : at + 4 + length])
            for i, number in zip(wide, numbers, strict=True):
                values[i] = number
        at += 4 + length
    return values[0], values[1], values[2]


def _data_offset(data: memoryview, header: int, size: int, name: str) -> int:
    if header > len(data):
        raise _damaged(f"{name} lies outside the file")
    signature, *_, name_size, extra_size = _LOCAL.unpack_from(data, header)
    start = header + _LOCAL.size + name_size + extra_size
    if signature != 0x04034B50 or start + size > len(data):
        raise _damaged(f"{name} lies outside the file")
    return start
