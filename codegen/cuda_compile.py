"""CUDA C text to device code, without a GPU: by ``nvcc``, or by NVRTC from its wheel where there is no toolkit.

Both give a cubin for the named architecture and PTX for those to come, and report what each kernel takes. What was compiled is
kept in the cache (``codegen/cache.py``) under everything that it depends on. Flags: no fused multiply-add that the text does not
ask for, divisions and square roots rounded correctly, subnormals kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from tcompile.codegen.cache import default_cache
from tcompile.codegen.cpu_object import CodegenError
from tcompile.errors import UnsupportedError

VERSION = 2  # of what is done here; part of every cache key
FLAGS = ("-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
_HINT = (
    "install NVRTC with `pip install nvidia-cuda-nvrtc` (for a driver of CUDA 13; nvidia-cuda-nvrtc-cu12 for CUDA 12), "
    "or the CUDA toolkit, whose nvcc is found on PATH or under CUDA_HOME"
)

Resources = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Compiled:
    """Device code of one text. ``resources``: for each kernel ``registers`` of a thread, ``spill`` (bytes stored and loaded back because
    registers did not suffice), ``stack`` (bytes of a thread's own memory), ``shared`` (static bytes of a block)."""

    cubin: bytes
    ptx: bytes  # ends with a zero byte
    ptx_sm: int
    compiler: str
    resources: Resources = field(default_factory=dict)


class Compiler(Protocol):
    """A compiler of CUDA C; ``str`` names it with its version and place."""

    def architectures(self) -> frozenset[int]:
        """The compute capabilities (times ten) that it makes cubins for."""
        ...

    def compile(self, text: str, sm: int) -> tuple[bytes, bytes, str]:
        """The cubin, the PTX and the log of the assembler (``ptxas -v``). Raises CodegenError."""
        ...


def compile_text(text: str, sm: int, *, cache: bool = True) -> Compiled:
    """Compiles a module of kernels for one architecture.

    Raises UnsupportedError where no compiler is found or none knows the architecture; CodegenError where it refuses the text,
    which is a bug of ours.
    """
    compiler = find_compiler(sm)
    store = default_cache() if cache else None
    key = hashlib.sha256("\0".join((str(VERSION), str(compiler), *FLAGS, str(sm), text)).encode()).hexdigest()
    kept = store.get(key) if store is not None else None
    if kept is not None:
        return _unpacked(kept)
    cubin, ptx, log = compiler.compile(text, sm)
    made = Compiled(cubin, ptx.rstrip(b"\0") + b"\0", sm, str(compiler), read_resources(log))
    if store is not None:
        store.put(key, _packed(made))
    return made


@lru_cache(maxsize=16)
def find_compiler(sm: int = 80) -> Compiler:
    """A compiler that is here and knows an architecture. Raises UnsupportedError saying how to get one."""
    from tcompile.codegen import cuda_nvcc, cuda_nvrtc

    found = [compiler for compiler in (cuda_nvcc.find(), cuda_nvrtc.find()) if compiler is not None]
    if not found:
        raise UnsupportedError("no CUDA compiler is here: neither nvcc nor NVRTC", hint=_HINT)
    fitting = [compiler for compiler in found if sm in compiler.architectures()]
    if not fitting:
        known = "; ".join(f"{compiler} knows {', '.join(f'sm_{arch}' for arch in sorted(compiler.architectures()))}" for compiler in found)
        raise UnsupportedError(f"no CUDA compiler that is here knows sm_{sm}: {known}", hint=_HINT)
    return fitting[0]


_FUNCTION = re.compile(r"Compiling entry function '(\w+)'")
_FACTS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "shared": re.compile(r"(\d+) bytes smem"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
}


def read_resources(log: str) -> Resources:
    """What ``ptxas -v`` says of each kernel."""
    parts = _FUNCTION.split(log)
    resources: Resources = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        facts = {key: int(found[1]) if (found := pattern.search(text)) else 0 for key, pattern in _FACTS.items()}
        spill = facts.pop("spill_stores") + facts.pop("spill_loads")
        resources[name] = {**facts, "spill": spill}
    return resources


def own_architecture(text: str, sm: int) -> str:
    """What the cubin is compiled for: ``90a`` where the text has instructions of sm_90 alone, for which its PTX has others."""
    return "90a" if sm == 90 and "__CUDA_ARCH_FEAT_SM90_ALL" in text else str(sm)


def refused(compiler: str, log: str) -> CodegenError:
    """The error of text that a compiler does not take."""
    return CodegenError(f"{compiler} refuses the kernels' text: {log.strip()[:2000]}", hint="this is a bug of tcompile's CUDA emitter")


# One entry of the cache: a line of JSON, then the code --------------------------------------------------------


def _packed(made: Compiled) -> bytes:
    head = {"cubin": len(made.cubin), "ptx_sm": made.ptx_sm, "compiler": made.compiler, "resources": made.resources}
    return json.dumps(head, sort_keys=True).encode() + b"\n" + made.cubin + made.ptx


def _unpacked(data: bytes) -> Compiled:
    line, code = data.split(b"\n", 1)
    head = json.loads(line)
    return Compiled(code[: head["cubin"]], code[head["cubin"] :], head["ptx_sm"], head["compiler"], head["resources"])
