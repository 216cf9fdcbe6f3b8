"""Opens an artifact: finds its parts, checks their hashes, and gives them to the native runtime.

The weights stay in the file, mapped read-only and shared between processes. Nothing is executed here.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from tcompile.errors import ArtifactError, Error
from tcompile.runtime import abi
from tcompile.runtime.container import Extent, read_entries

_HASH_BYTES = 32
_WEIGHTS_ALIGN = 64
_ERROR_BYTES = 2048

Source = str | os.PathLike[str] | bytes | mmap.mmap | memoryview


class Archive:
    """The bytes of an artifact and the parts in it. ``path`` is None for bytes in memory."""

    def __init__(self, source: Source) -> None:
        """Opens a path, an artifact's bytes or a mapped file of them. Raises ArtifactError for what is no artifact."""
        self.path = None if isinstance(source, bytes | mmap.mmap | memoryview) else os.path.abspath(os.fspath(source))
        self.bytes = np.frombuffer(source if self.path is None else _map(Path(self.path)), np.uint8)
        self._entries = read_entries(memoryview(self.bytes))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def part(self, name: str) -> np.ndarray:
        """The bytes of an entry; none where there is no such entry."""
        extent = self._entries.get(name, Extent(0, 0))
        return self.bytes[extent.offset : extent.offset + extent.size]

    def checked(self, name: str, digest: str, what: str) -> bytes:
        """The bytes of an entry whose SHA-256 is another entry. Raises ArtifactError where they do not match."""
        found = self.part(name)
        _check(_hash(found), self.part(digest).tobytes(), what)
        return found.tobytes()

    def find(self, prefix: str) -> np.ndarray:
        """The bytes of the first entry whose name begins so. Raises ArtifactError where there is none."""
        for name in self._entries:
            if name.startswith(prefix):
                return self.part(name)
        raise ArtifactError(f"the artifact has no {prefix}", hint="is it a model that tcompile wrote?")


class Module:
    """An opened model: its native handle, and the memory that its weights stand in."""

    def __init__(self, source: Source | Archive) -> None:
        """Opens an artifact.

        Raises ArtifactError for one that is damaged, of another version, or for another machine.
        """
        self._archive = source if isinstance(source, Archive) else Archive(source)
        self.path = self._archive.path
        descriptor, code = checked_descriptor(self._archive), self._archive.find("code/")
        self._weights = _aligned(self._archive.part("weights.bin"))
        self.handle = self._open(descriptor, code)
        self._finalizer = weakref.finalize(self, abi.native.tc_close, self.handle)
        self._finalizer.atexit = False
        self.info: abi.ModuleInfo = abi.native.tc_module_describe(self.handle).contents
        _check(_hash(code), ctypes.string_at(self.info.code_sha256, _HASH_BYTES), "code")
        self.shares: dict[int, list[int]] = {}  # for each output, the inputs whose memory it may have
        for share in self.info.shares[: self.info.share_count]:
            self.shares.setdefault(share.output, []).append(share.input)

    def verify_weights(self) -> None:
        """Hashes the weights. Raises ArtifactError where they are not those that the model was compiled with."""
        expected = ctypes.string_at(self.info.weights_sha256, _HASH_BYTES)
        _check(_hash(self._weights[: self.info.weights_bytes]), expected, "weights")

    def artifact(self) -> memoryview:
        """The artifact's bytes."""
        return memoryview(self._archive.bytes)

    def _open(self, descriptor: np.ndarray, code: np.ndarray) -> int:
        handle, message = ctypes.c_void_p(), ctypes.create_string_buffer(_ERROR_BYTES)
        weights = self._weights.ctypes.data if self._weights.size else None
        status = abi.native.tc_open(
            descriptor.ctypes.data, descriptor.size, code.ctypes.data, code.size, weights, self._weights.size, handle, message, _ERROR_BYTES
        )
        text = message.value.decode(errors="replace")
        if status == abi.MACHINE:
            raise ArtifactError(text, hint="compile the model for this machine's target")
        if status == abi.MEMORY:
            raise Error(text)
        if status:
            raise ArtifactError(text, hint="compile the model again with this version of tcompile")
        return handle.value


def checked_descriptor(archive: Archive) -> np.ndarray:
    """The bytes of an artifact's descriptor. Raises ArtifactError where they are not those that were written."""
    descriptor = archive.find("descriptor.bin")
    _check(_hash(descriptor[:-_HASH_BYTES]), descriptor[-_HASH_BYTES:].tobytes(), "descriptor")
    return descriptor


def _aligned(part: np.ndarray) -> np.ndarray:
    """The weights at an aligned address: as they stand in a mapped file, else a copy."""
    if part.ctypes.data % _WEIGHTS_ALIGN == 0 or part.size == 0:
        return part
    block = np.empty(part.size + _WEIGHTS_ALIGN, np.uint8)
    start = -block.ctypes.data % _WEIGHTS_ALIGN
    block[start : start + part.size] = part
    return block[start : start + part.size]


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ArtifactError(f"{path} is empty", hint="compile the model again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _hash(data: np.ndarray) -> bytes:
    return hashlib.sha256(data).digest()


def _check(found: bytes, expected: bytes, what: str) -> None:
    if found != expected:
        message = f"the artifact's {what} is damaged: its SHA-256 does not match"
        raise ArtifactError(message, hint="compile the model again, or copy the file again")
