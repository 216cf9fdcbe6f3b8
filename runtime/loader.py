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

Source = str | os.PathLike[str] | bytes | mmap.mmap


class Module:
    """An opened model: its native handle, and the memory that its weights stand in."""

    def __init__(self, source: Source) -> None:
        """Opens a path, an artifact's bytes or a mapped file of them.

        Raises ArtifactError for an artifact that is damaged, of another version, or for another machine.
        """
        self.path = None if isinstance(source, bytes | mmap.mmap) else os.path.abspath(os.fspath(source))
        self._file = np.frombuffer(source if self.path is None else _map(Path(self.path)), np.uint8)
        self._entries = read_entries(memoryview(self._file))
        descriptor, code = self._part(self._find("descriptor.bin")), self._part(self._find("code/"))
        _check(_hash(descriptor[:-_HASH_BYTES]), descriptor[-_HASH_BYTES:].tobytes(), "descriptor")
        self._weights = self._align(self._entries.get("weights.bin", Extent(0, 0)))
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
        return memoryview(self._file)

    def _find(self, prefix: str) -> Extent:
        for name, extent in self._entries.items():
            if name.startswith(prefix):
                return extent
        raise ArtifactError(f"the artifact has no {prefix}", hint="is it a model that tcompile wrote?")

    def _part(self, extent: Extent) -> np.ndarray:
        return self._file[extent.offset : extent.offset + extent.size]

    def _align(self, extent: Extent) -> np.ndarray:
        """The weights at an aligned address: as they stand in a mapped file, else a copy."""
        part = self._part(extent)
        if part.ctypes.data % _WEIGHTS_ALIGN == 0 or extent.size == 0:
            return part
        block = np.empty(extent.size + _WEIGHTS_ALIGN, np.uint8)
        start = -block.ctypes.data % _WEIGHTS_ALIGN
        block[start : start + extent.size] = part
        return block[start : start + extent.size]

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
