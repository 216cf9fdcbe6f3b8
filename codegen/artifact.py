"""Writes ``model.tcm``: a zip of stored entries that a runtime maps without unpacking.

Entries: ``descriptor.bin``, ``code/<target>.bin``, ``manifest.json``, ``weights.bin``. The weights begin at a multiple
of 64 KiB, so that every OS can map them; the others at a multiple of 64. Times are fixed: the same model gives the same
bytes. Source: PKWARE APPNOTE 6.3, zip64 included.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tcompile.codegen.descriptor import Content, describe, encode
from tcompile.codegen.link import LinkedImage
from tcompile.codegen.machine import machine
from tcompile.codegen.signature import Site, Weight, signature
from tcompile.errors import Error
from tcompile.ir.program import Program
from tcompile.ir.spill import release
from tcompile.ir.target import Target

WEIGHTS_ALIGN = 65536
_ENTRY_ALIGN = 64
_CHUNK = 1 << 22
_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_VERSION, _DATE = 45, 0x21  # zip64; 1980-01-01
_MAX32 = 0xFFFFFFFF


@dataclass(frozen=True)
class _Entry:
    """One stored file. The weights' bytes are written by themselves, before the others."""

    name: str
    align: int
    size: int
    crc: int
    data: bytes | None


@dataclass(frozen=True)
class _Sums:
    """What is known of the weights once they are written."""

    crc: int = 0
    sha256: bytes = bytes(hashlib.sha256().digest_size)


@dataclass(frozen=True, eq=False)
class Build:
    """What a program was compiled to: an image that exports tc_prepare and tc_run, and where its weights stand.

    ``weights``: see ``place_weights``. ``arena_bytes`` and ``scratch_bytes`` (per thread) are bounds, -1 where there are none.
    ``growing``: the buffers whose size only a run knows, with the nodes that write them. ``notes`` join the program's.
    """

    image: LinkedImage
    weights: Sequence[Weight] = ()
    arena_bytes: int = -1
    scratch_bytes: int = -1
    growing: Sequence[Site] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def write_artifact(program: Program, build: Build, target: Target) -> bytes:
    """The artifact of a program. Raises Error for an image without entries, or of another machine than the target's."""
    stream = io.BytesIO()
    write_into(stream, program, build, target)
    return stream.getvalue()


def save_artifact(path: str | os.PathLike[str], program: Program, build: Build, target: Target) -> None:
    """Like ``write_artifact``, into a file: written whole beside it, then renamed."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write_into(stream, program, build, target)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_into(stream: BinaryIO, program: Program, build: Build, target: Target) -> None:
    """Like ``write_artifact``, into an empty stream that can seek. Weights are read once, in pieces, and never held twice.

    They are written first, where they will stand: what stands before them tells their hash.
    """
    placed = sorted(build.weights, key=lambda weight: (weight.offset, weight.bytes, weight.name))
    *_, last = _placed(_entries(program, build, target, placed, _Sums()))
    sums = _Sums()
    if last.entry.data is None:
        stream.seek(last.start)
        sums = _write_weights(stream, placed)
        stream.seek(0)
    _write(stream, _placed(_entries(program, build, target, placed, sums)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _entries(program: Program, build: Build, target: Target, placed: Sequence[Weight], sums: _Sums) -> list[_Entry]:
    """All entries in order, the weights last. Their sizes do not depend on the sums."""
    image, needed = build.image, machine(target)
    for name in ("tc_prepare", "tc_run"):
        if name not in image.symbols:
            raise Error(f"the linked image has no {name}", hint="link the entry module too")
    if image.arch != needed.arch:
        raise Error(f"the image holds {image.arch} code, the target {target.name} is {needed.arch}")
    signed = signature(program)
    signed = replace(signed, notes={**signed.notes, **build.notes})
    size = max((weight.offset + weight.bytes for weight in placed), default=0)
    content = Content(
        machine=needed,
        prepare_offset=image.symbols["tc_prepare"],
        run_offset=image.symbols["tc_run"],
        code_size=len(image.code),
        code_sha256=hashlib.sha256(image.code).digest(),
        weights_size=size,
        weights_sha256=sums.sha256 if size else hashlib.sha256().digest(),
        weights=tuple(placed),
        arena_bytes=build.arena_bytes,
        scratch_bytes=build.scratch_bytes,
        growing=tuple(build.growing),
    )
    descriptor = encode(signed, content)
    manifest = json.dumps(describe(signed, content, descriptor), indent=1, ensure_ascii=False).encode() + b"\n"
    small = (("descriptor.bin", descriptor), (f"code/{needed.target}.bin", image.code), ("manifest.json", manifest))
    entries = [_Entry(name, _ENTRY_ALIGN, len(data), zlib.crc32(data), data) for name, data in small]
    if size:
        entries.append(_Entry("weights.bin", WEIGHTS_ALIGN, size, sums.crc, None))
    return entries


def _write_weights(stream: BinaryIO, weights: Sequence[Weight]) -> _Sums:
    crc, digest = 0, hashlib.sha256()
    for chunk in _weight_chunks(weights):
        stream.write(chunk)
        crc = zlib.crc32(chunk, crc)
        digest.update(chunk)
    return _Sums(crc, digest.digest())


def _weight_chunks(weights: Sequence[Weight]) -> Iterator[memoryview | bytes]:
    """The weights in pieces of at most 4 MiB, gaps as zeros. Arrays at one offset are one array."""
    end = last = 0
    for weight in weights:
        if weight.offset < end:
            if weight.offset == last and weight.offset + weight.bytes == end:
                continue
            raise Error(f"weight {weight.name} overlaps the one before it")
        yield bytes(weight.offset - end)
        data = np.ascontiguousarray(weight.array).reshape(-1).view(np.uint8)
        for start in range(0, len(data), _CHUNK):
            yield memoryview(data[start : start + _CHUNK])
            release(data[start : start + _CHUNK])
        last, end = weight.offset, weight.offset + weight.bytes


@dataclass(frozen=True)
class _Placed:
    """An entry, the free bytes before it, its header, and where its data begins in the file."""

    entry: _Entry
    gap: int
    header: bytes
    start: int


def _placed(entries: Sequence[_Entry]) -> list[_Placed]:
    position, found = 0, []
    for entry in entries:
        gap, header = _local_header(entry, position)
        found.append(_Placed(entry, gap, header, position + gap + len(header)))
        position = found[-1].start + entry.size
    return found


def _write(stream: BinaryIO, placed: Sequence[_Placed]) -> None:
    """Everything but the weights, which stand in the stream already."""
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


def _local_header(entry: _Entry, position: int) -> tuple[int, bytes]:
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


def _central_header(entry: _Entry, offset: int) -> bytes:
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
