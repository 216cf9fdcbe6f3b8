"""Compiles the CUDA C text of kernels as C++ against the shim (``tests/cuda/shim``) and launches them.

The text is the one that goes to a GPU; only declarations change, so that memory is watched:

    const float *__restrict__ p0      ->  shim::Global<const float> p0     with the size that the text's comment says
    __shared__ ... float s0[64];      ->  shim::Shared<float> s0(offset, 64, "s0");
    float r[4];                       ->  shim::Local<float, 4> r;
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tcompile.errors import Error

HERE = Path(__file__).parent / "shim"
_KERNEL = re.compile(
    r'extern "C" __global__ void __launch_bounds__\([^)]*\)'
    r"(?: __cluster_dims__\((?P<cluster>\d+), 1, 1\))?\n(?P<name>\w+)\((?P<arguments>.*?)\)\n"
    r"// (?P<shapes>.*?)\n// (?P<launch>.*?)\n\{\n(?P<body>.*?)^\}\n",
    re.DOTALL | re.MULTILINE,
)
_POINTER = re.compile(r"(?P<kind>.*?) ?\*(?:__restrict__ )?(?P<name>\w+)")
_STATIC = re.compile(r"__shared__ __align__\(\d+\) (?P<kind>[\w ]+?) (?P<name>\w+)\[(?P<count>\d+)\];")
_DYNAMIC = re.compile(r"(?P<kind>[\w ]+?) \(&(?P<name>\w+)\)\[(?P<count>\d+)\] = .*?shared_memory \+ (?P<offset>\d+)\);")
_EXTERN = re.compile(r"^ *extern __shared__ .*$", re.MULTILINE)
_LOCAL = re.compile(r"^( +)([\w ]+?) (\w+)\[(\d+)\];$", re.MULTILINE)
_MEETS = re.compile(r"__sync|__shfl|tc_mma|tc_wgmma|tc_ldmatrix|tc_copy_async|tc_wait_async|tc_commit_async|tc_cluster_sync")
_BYTES = {"double": 8, "long long": 8, "unsigned long long": 8, "float": 4, "int": 4, "unsigned int": 4, "f16": 2, "bf16": 2,
          "short": 2, "unsigned short": 2}  # fmt: skip
_FLOORDIV = """
static inline long long tc_shape_floordiv(long long a, long long b) {
    return b ? a / b - (a % b != 0 && (a < 0) != (b < 0)) : 0;
}
"""


class ShimError(Error):
    """A kernel did what no kernel may: the message says what, which thread, and where."""


@dataclass(frozen=True)
class Function:
    """A kernel of a compiled module."""

    name: str
    call: object
    words: int  # of arguments, without the status word

    def __call__(self, grid: Sequence[int], block: Sequence[int], shared: int, arguments: Sequence[int]) -> None:
        """Runs all blocks. ``arguments`` are addresses and integers, the status word's address last. Raises ShimError."""
        if len(arguments) != self.words + 1:
            raise ShimError(f"kernel {self.name} takes {self.words} arguments and the status word, got {len(arguments)}")
        message = ctypes.create_string_buffer(512)
        values = (ctypes.c_int64 * len(arguments))(*arguments)
        stopped = self.call(values, (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_uint(shared), message)
        if stopped:
            raise ShimError(message.value.decode())


class ShimModule:
    """The kernels of one text."""

    def __init__(self, text: str) -> None:
        source, self.words = translated(text)
        self.path = _built(source)
        self.library = ctypes.CDLL(str(self.path))

    def function(self, name: str) -> Function:
        """The kernel of a name. Raises ShimError where there is none."""
        if name not in self.words:
            raise ShimError(f"no kernel {name} in the module", hint=f"it has {', '.join(self.words)}")
        call = self.library[f"shim_launch_{name}"]
        call.restype = ctypes.c_int
        return Function(name, call, self.words[name])


def translated(text: str) -> tuple[str, dict[str, int]]:
    """The C++ of a module's text, and the number of arguments of each kernel."""
    words: dict[str, int] = {}
    wrappers: list[str] = []

    def kernel(found: re.Match[str]) -> str:
        made, wrapper, count = _kernel(found)
        words[found["name"]] = count
        wrappers.append(wrapper)
        return made

    source = _KERNEL.sub(kernel, text)
    if len(words) != text.count("__global__"):
        raise ShimError("the text has kernels that the shim does not recognise")
    return "\n".join(['#include "shim.h"', source, _FLOORDIV, *wrappers]), words


def _kernel(found: re.Match[str]) -> tuple[str, str, int]:
    name, arguments = found["name"], _split(found["arguments"])
    sizes = dict(_shape(part) for part in found["shapes"].split("; ")) if found["shapes"] else {}
    parameters, lines, values = [], [], []
    for place, argument in enumerate(arguments[:-1]):
        pointer = _POINTER.fullmatch(argument)
        if pointer is None:
            word = argument.split()[-1]
            parameters.append(argument)
            lines.insert(0, f"    const long long {word.removesuffix('_arg')} = (long long)arguments[{place}];")
            values.append(word.removesuffix("_arg"))
            continue
        kind, word = pointer["kind"], pointer["name"]
        parameters.append(f"const shim::Global<{kind}> {word}")
        lines.append(f'    const shim::Global<{kind}> {word} = {{({kind} *)arguments[{place}], (long long)({sizes[word]}), "{word}"}};')
        values.append(word)
    parameters.append("int *status")
    values.append(f"(int *)arguments[{len(arguments) - 1}]")
    body, shared = _memory(found["body"])
    cluster = int(found["cluster"] or 1)
    meets = bool(_MEETS.search(body)) or shared > 0  # a race needs threads side by side to be seen
    launch = [
        f'extern "C" __attribute__((visibility("default"))) const int shim_words_{name} = {len(arguments)};',
        f'extern "C" __attribute__((visibility("default"))) int shim_launch_{name}(',
        "    const long long *arguments, const unsigned *grid, const unsigned *block, unsigned dynamic, char *message)",
        "{",
        _HELPERS_INSIDE,
        *lines,
        f'    const int stopped = shim::launch("{name}", grid, block, {str(meets).lower()}, {shared}, {cluster}, [&] {{',
        f"        {name}({', '.join(values)});",
        "    });",
        "    if (stopped) strcpy(message, shim::message);",
        "    return stopped;",
        "}",
    ]
    function = f"static __attribute__((noinline)) void {name}({', '.join(parameters)})\n{{\n{body}\n}}\n"
    return function, "\n".join(launch), len(arguments) - 1


_HELPERS_INSIDE = """\
    const auto floordiv = [](long long a, long long b) { return tc_shape_floordiv(a, b); };
    const auto mod = [](long long a, long long b) { return b ? a - tc_shape_floordiv(a, b) * b : 0; };
    const auto bcast = [](long long a, long long b) { return a == 1 ? b : a; };
    (void)floordiv, (void)mod, (void)bcast;"""


def _memory(body: str) -> tuple[str, int]:
    """The body with watched arrays, and the bytes of shared memory."""
    total = 0

    def static(found: re.Match[str]) -> str:
        nonlocal total
        offset, count = total, int(found["count"])
        total += -(-count * _BYTES.get(found["kind"], 1) // 128) * 128
        return f'shim::Shared<{found["kind"]}> {found["name"]}({offset}, {count}, "{found["name"]}");'

    def dynamic(found: re.Match[str]) -> str:
        nonlocal total
        offset, count = int(found["offset"]), int(found["count"])
        total = max(total, offset + count * _BYTES.get(found["kind"].strip(), 1))
        return f'shim::Shared<{found["kind"].strip()}> {found["name"]}({offset}, {count}, "{found["name"]}");'

    body = _STATIC.sub(static, body)
    body = _EXTERN.sub("", body)
    body = _DYNAMIC.sub(dynamic, body)
    return _LOCAL.sub(r"\1shim::Local<\2, \4> \3;", body), total


def _shape(part: str) -> tuple[str, str]:
    """The name and the number of elements, as C, of a parameter of the text's comment."""
    name, rest = part.split(":", 1)
    extents = _split(rest[rest.index("[") + 1 : rest.rindex("]")])
    return name, " * ".join(f"(long long)({_wide(extent)})" for extent in extents) or "1"


def _wide(extent: str) -> str:
    """An extent whose numbers are long longs, so that min and max have one type."""
    return re.sub(r"(?<![\w])(\d+)(?!\w)", r"\1ll", extent)


def _split(text: str) -> list[str]:
    """The parts between the commas of the outer level."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if text.strip() else []


FLAGS = ("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fPIC",
         "-fvisibility=hidden", "-w")  # fmt: skip


def _built(source: str) -> Path:
    """The shared library of a source, compiled once."""
    headers = _precompiled()
    digest = hashlib.sha256(f"{headers.name}\0{source}".encode()).hexdigest()[:32]
    library = headers.parent / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=headers.parent) as scratch:
            text, made = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
            text.write_text(source)
            _compile("-shared", f"-I{headers}", str(text), "-o", str(made))
            made.rename(library)
    return library


@lru_cache(maxsize=1)
def _precompiled() -> Path:
    """A folder with the shim's headers, the whole of them compiled: most of the time for a small kernel goes there."""
    folder = Path(tempfile.gettempdir()) / f"tcompile-shim-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    parts = [*FLAGS, *(path.read_text() for path in sorted(HERE.glob("*.h")))]
    place = folder / f"headers-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    if not place.exists():
        scratch = Path(tempfile.mkdtemp(dir=folder))
        for path in HERE.glob("*.h"):
            shutil.copy(path, scratch)
        _compile("-x", "c++-header", str(scratch / "shim.h"), "-o", str(scratch / "shim.h.gch"))
        try:
            scratch.rename(place)
        except OSError:  # another process was first
            shutil.rmtree(scratch)
    return place


def _compile(*arguments: str) -> None:
    done = subprocess.run(["g++", *FLAGS, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ShimError(f"g++ refuses the kernels' text:\n{done.stderr[:4000]}")
