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
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tcompile.codegen.container import ENTRY_ALIGN, StoredEntry, placed_entries, write_entries
from tcompile.codegen.descriptor import Content, describe, encode
from tcompile.codegen.link import LinkedImage
from tcompile.codegen.machine import machine
from tcompile.codegen.signature import Site, Weight, Work, signature
from tcompile.errors import Error
from tcompile.ir.loops import Kernel
from tcompile.ir.program import Program
from tcompile.ir.spill import release
from tcompile.ir.target import Target

WEIGHTS_ALIGN = 65536
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Sums:
    """What is known of the weights once they are written."""

    crc: int = 0
    sha256: bytes = bytes(hashlib.sha256().digest_size)


@dataclass(frozen=True, eq=False)
class Build:
    """What a program was compiled to: an image that exports tc_prepare and tc_run, and where its weights stand.

    ``weights``: see ``place_weights``. ``arena_bytes`` and ``scratch_bytes`` (per thread) are bounds, -1 where there are none.
    ``growing``: the buffers whose size only a run knows, with the nodes that write them. ``notes`` join the program's. ``work``: what each
    kernel moves and takes.
    """

    image: LinkedImage
    weights: Sequence[Weight] = ()
    arena_bytes: int = -1
    scratch_bytes: int = -1
    growing: Sequence[Site] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    work: Mapping[Kernel, Work] = field(default_factory=dict)


def write_artifact(program: Program, build: Build, target: Target) -> bytes:
    """The artifact of a program. Raises Error for an image without entries, or of another machine than the target's."""
    stream = io.BytesIO()
    write_into(stream, program, build, target)
    return stream.getvalue()


def save_artifact(path: str | os.PathLike[str], program: Program, build: Build, target: Target) -> None:
    """Like ``write_artifact``, into a file: written whole beside it, then renamed."""
    save_file(path, lambda stream: write_into(stream, program, build, target))


def save_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], None]) -> None:
    """Writes a file whole beside its place, then renames it."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_into(stream: BinaryIO, program: Program, build: Build, target: Target) -> None:
    """Like ``write_artifact``, into an empty stream that can seek. Weights are read once, in pieces, and never held twice."""
    placed = placed_weights(build.weights)
    write_weighted(stream, placed, lambda sums: _entries(program, build, target, placed, sums))


def placed_weights(weights: Sequence[Weight]) -> list[Weight]:
    """The weights in the order in which they stand in the file."""
    return sorted(weights, key=lambda weight: (weight.offset, weight.bytes, weight.name))


def write_weighted(stream: BinaryIO, placed: Sequence[Weight], entries: Callable[[Sums], list[StoredEntry]]) -> None:
    """Writes entries of which the last, where it has no data, is the weights; ``entries`` has the same sizes for all sums.

    The weights are written first, where they will stand: what stands before them tells their hash.
    """
    *_, last = placed_entries(entries(Sums()))
    sums = Sums()
    if last.entry.data is None:
        stream.seek(last.start)
        sums = _write_weights(stream, placed)
        stream.seek(0)
    write_entries(stream, placed_entries(entries(sums)))


def stored(name: str, data: bytes) -> StoredEntry:
    """A small entry."""
    return StoredEntry(name, ENTRY_ALIGN, len(data), zlib.crc32(data), data)


def weights_entry(size: int, sums: Sums) -> list[StoredEntry]:
    """The entry of the weights, where there are any."""
    return [StoredEntry("weights.bin", WEIGHTS_ALIGN, size, sums.crc, None)] if size else []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _entries(program: Program, build: Build, target: Target, placed: Sequence[Weight], sums: Sums) -> list[StoredEntry]:
    """All entries in order, the weights last. Their sizes do not depend on the sums."""
    image, needed = build.image, machine(target)
    for name in ("tc_prepare", "tc_run"):
        if name not in image.symbols:
            raise Error(f"the linked image has no {name}", hint="link the entry module too")
    if image.arch != needed.arch:
        raise Error(f"the image holds {image.arch} code, the target {target.name} is {needed.arch}")
    signed = signature(program, build.work)
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
    return [*(stored(name, data) for name, data in small), *weights_entry(size, sums)]


def _write_weights(stream: BinaryIO, weights: Sequence[Weight]) -> Sums:
    crc, digest = 0, hashlib.sha256()
    for chunk in _weight_chunks(weights):
        stream.write(chunk)
        crc = zlib.crc32(chunk, crc)
        digest.update(chunk)
    return Sums(crc, digest.digest())


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
