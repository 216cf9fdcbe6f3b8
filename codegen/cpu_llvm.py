"""Loop IR kernels to LLVM IR text, and LLVM IR to objects and assembly. Nothing else knows LLVM.

The text of a kernel is an exported function of the kernel's name with the ABI ``tc_kernel`` (see
``runtime/native/tcompile.h``), which loads pointers and dims and calls an internal function whose parameters carry
what is known of them. The code calls nothing: every function is "no-builtins", transcendentals are expanded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tcompile.codegen import cpu_emit_scratch
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_memory import ZERO_BYTES, ZEROS, Buffer
from tcompile.codegen.cpu_emit_statements import Statements
from tcompile.codegen.cpu_emit_values import Value
from tcompile.codegen.cpu_object import CodegenError, assembly, compile_module, features_text, optimised_text
from tcompile.codegen.jobs import compile_kernels
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Access, Kernel
from tcompile.ir.target import Target

__all__ = [
    "CodegenError",
    "assembly",
    "compile_kernels",
    "compile_module",
    "emit_kernel",
    "emit_module",
    "optimised_text",
    "scratch_bytes",
]

_DEPTH = 20000  # expressions may nest deeper than Python's default limit


def emit_kernel(kernel: Kernel, target: Target, *, bounds: bool = False) -> str:
    """The LLVM IR text of a module that exports one kernel. Raises InvalidModelError, UnsupportedError."""
    return emit_module((kernel,), target, bounds=bounds)


def emit_module(kernels: Iterable[Kernel], target: Target, *, bounds: bool = False) -> str:
    """The LLVM IR text of one module with several kernels, whose names differ. Small kernels compile faster together.

    ``bounds``: each access is checked (``cpu_emit_bounds``).
    """
    functions, zeros = [], False
    for kernel in kernels:
        text, uses_zeros = _emit_functions(kernel, target, bounds)
        functions.append(text)
        zeros |= uses_zeros
    head = [f'target triple = "{target.triple}"']
    if zeros:
        head.append(f"{ZEROS} = private unnamed_addr constant [{ZERO_BYTES} x i8] zeroinitializer, align 16")
    return "\n".join((*head, *functions, _attributes(target), ""))


def scratch_bytes(kernel: Kernel) -> DimLike:
    """The bytes of scratch that each thread running a kernel needs, aligned to 64."""
    return cpu_emit_scratch.plan(kernel).total


def _attributes(target: Target) -> str:
    features = "".join(f'"target-features"="{features_text(target)}" ' if target.features else "")
    width = f'"prefer-vector-width"="{8 * target.vector_bytes}"'
    return f'attributes #0 = {{ nounwind "no-builtins" "target-cpu"="{target.cpu}" {features}{width} }}'


def _emit_functions(kernel: Kernel, target: Target, bounds: bool) -> tuple[str, bool]:
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEPTH))
    fn = Function()
    emitter = Statements(fn, target, kernel, bounds=bounds)
    groups = kernel.groups()
    for position, param in enumerate(kernel.params):
        emitter.buffers[param.name] = Buffer(param.name, param.dtype, param.shape, Value(f"%p{position}"), groups[param.name])
    for position, name in enumerate(kernel.dims):
        emitter.names.values[name] = Value(f"%d{position}")
    emitter.block(kernel.body)
    fn.effect("ret i32 0")
    body = "\n".join(fn.text())
    parameters = ", ".join(_parameters(kernel, groups))
    inner = f'define internal i32 @"{kernel.name}.body"({parameters}) noinline #0 {{\n{body}\n}}'
    return f"{_entry(kernel)}\n{inner}", emitter.memory.uses_zeros


def _parameters(kernel: Kernel, groups: dict[str, str]) -> Iterable[str]:
    members = list(groups.values())
    for position, param in enumerate(kernel.params):
        alone = members.count(groups[param.name]) == 1
        attributes = [*(["noalias"] if alone else []), *(["readonly"] if param.access is Access.IN else [])]
        yield f"ptr {' '.join([*attributes, f'%p{position}'])}"
    yield from (f"i64 %d{position}" for position in range(len(kernel.dims)))
    yield from ("i64 %begin", "i64 %end", "ptr noalias %scratch")


def _entry(kernel: Kernel) -> str:
    lines, arguments = [], []
    kinds = ["ptr"] * len(kernel.params) + ["i64"] * len(kernel.dims)
    for position, kind in enumerate(kinds):
        lines.append(f"%a{position} = getelementptr i64, ptr %args, i64 {position}")
        lines.append(f"%v{position} = load {kind}, ptr %a{position}, align 8")
        arguments.append(f"{kind} %v{position}")
    arguments += ["i64 %begin", "i64 %end", "ptr %scratch"]
    lines.append(f'%status = call i32 @"{kernel.name}.body"({", ".join(arguments)})')
    lines.append("ret i32 %status")
    text = "\n".join(lines)
    return f'define i32 @"{kernel.name}"(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{\n{text}\n}}'
