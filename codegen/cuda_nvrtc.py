"""NVRTC, the compiler that comes as the wheel ``nvidia-cuda-nvrtc``: a shared library that needs neither toolkit nor driver."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path

from tcompile.codegen.cuda_compile import FLAGS, own_architecture, refused


@dataclass(frozen=True, eq=False)
class Nvrtc:
    """One NVRTC library."""

    path: str
    library: ctypes.CDLL

    def __str__(self) -> str:
        major, minor = c_int(), c_int()
        self.library.nvrtcVersion(byref(major), byref(minor))
        return f"NVRTC {major.value}.{minor.value} ({self.path})"

    def architectures(self) -> frozenset[int]:
        """The compute capabilities (times ten) that it makes cubins for."""
        count = c_int()
        self.library.nvrtcGetNumSupportedArchs(byref(count))
        numbers = (c_int * max(count.value, 1))()
        self.library.nvrtcGetSupportedArchs(numbers)
        return frozenset(numbers[: count.value])

    def compile(self, text: str, sm: int) -> tuple[bytes, bytes, str]:
        """The cubin, the PTX and the assembler's log. Raises CodegenError."""
        ptx, _ = self._program(text, f"-arch=compute_{sm}", "PTX")
        cubin, log = self._program(text, f"-arch=sm_{own_architecture(text, sm)}", "CUBIN", "--ptxas-options=-v")
        return cubin, ptx, log

    def _program(self, text: str, arch: str, kind: str, *more: str) -> tuple[bytes, str]:
        """One result of a compilation, and its log."""
        program = c_void_p()
        self._call("nvrtcCreateProgram", byref(program), text.encode(), b"kernels.cu", 0, None, None)
        try:
            options = [option.encode() for option in (*FLAGS, "-w", arch, *more)]
            status = self.library.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))
            log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if status:
                raise refused(str(self), log)
            return self._bytes(f"nvrtcGet{kind}", program), log
        finally:
            self.library.nvrtcDestroyProgram(byref(program))

    def _bytes(self, name: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._call(f"{name}Size", program, byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(name, program, data)
        return data.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = self.library[name](*arguments)
        if status:
            raise refused(str(self), f"{name} fails with {status}")


def find() -> Nvrtc | None:
    """The library of the wheel (``nvidia/cu13/lib``, ``nvidia/cuda_nvrtc/lib``), else one the system knows; None where there is none."""
    for candidate in (*_wheels(), "libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"):
        try:
            _load_builtins(Path(candidate))
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = c_char_p
        return Nvrtc(candidate, library)
    return None


def _load_builtins(library: Path) -> None:
    """Loads the library that NVRTC looks for by its bare name, from beside it: the loader then has it."""
    for path in sorted(library.parent.glob("libnvrtc-builtins.so.*")) if library.is_absolute() else ():
        if "alt" not in path.name:
            ctypes.CDLL(str(path))


def _wheels() -> list[str]:
    found: list[Path] = []
    for entry in sys.path:
        folder = Path(entry or ".") / "nvidia"
        found += [*folder.glob("*/lib/libnvrtc.so.*"), *folder.glob("*/bin/**/nvrtc64_*_0.dll")]
    return sorted((str(path) for path in found if "alt" not in path.name), reverse=True)
