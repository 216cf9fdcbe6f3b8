"""The Python API: compile a model, load an artifact."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.runtime import HostedExecutable, load

if TYPE_CHECKING:
    from tcompile.pipeline import AnyCompiled, HostCompiled
    from tcompile.runtime.cuda_device import Device
    from tcompile.runtime.segments import AnyExecutable


def compile(
    model: Any,
    target: str = "native",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    threads: int | None = None,
    device: str | Device | None = None,
    **options: Any,
) -> AnyExecutable | HostedExecutable:
    """Compiles a model for this machine and loads it.

    Args:
        model: a path to an ``.onnx`` file, its bytes, or an ``onnx.ModelProto``.
        target: ``native`` (this CPU, or the GPU that ``device`` names), or a name that ``tcompile.targets()`` lists.
        shapes: per input, extents that fix or bound symbolic dimensions: ``{"x": [4, 3, "1..512", "width"]}``.
        threads: worker threads of a run; all cores by default.
        device: ``cuda:N`` to run on a GPU, see ``load``.
        options: fields of ``tcompile.pipeline.Options``.

    Returns:
        An ``Executable``: ``run(inputs) -> {name: array}``, ``save(path)``, ``inputs``, ``outputs``, ``report()``. A
        ``HostedExecutable``, used in the same way, for a model that has strings, images or sequences of run-time length, and a
        ``CudaExecutable`` for a GPU.

    Raises:
        UnsupportedError: listing everything in the model that tcompile does not do.
        InvalidModelError: where the model breaks ONNX's specification.
    """
    if target == "native" and device not in (None, "cpu"):
        target = device_target(device)
    with tempfile.TemporaryFile(prefix="tcompile-") as file:
        _compiled(model, target, shapes, options).write(file)
        file.flush()
        return load(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), threads=threads, device=device)


def device_target(device: str | Device) -> str:
    """The target to compile for a device."""
    from tcompile.ir.target import gpu_target
    from tcompile.runtime.cuda_devices import open_device

    return gpu_target(open_device(device).sm).name


def check_target(target: str) -> str:
    """What compiles for a target: LLVM, or the CUDA compiler that is found. Raises UnsupportedError saying how to get one."""
    from tcompile.ir.target import GpuTarget, named_target

    found = named_target(target)
    if isinstance(found, GpuTarget):
        from tcompile.codegen.cuda_compile import find_compiler

        return str(find_compiler(found.sm))
    from llvmlite import binding

    return f"LLVM {'.'.join(map(str, binding.llvm_version_info))}"


def targets() -> tuple[str, ...]:
    """The names of all targets."""
    from tcompile.ir.target import names

    return names()


def _compiled(
    model: Any, target: str, shapes: Mapping[str, Sequence[int | str]] | None, options: dict[str, Any]
) -> AnyCompiled | HostCompiled:
    from tcompile.pipeline import Options, Silent, compile_model

    progress = options.pop("progress", Silent())
    compiled = compile_model(model, target, shapes, Options(**options), progress)
    progress.stage("write")
    return compiled


def check(model: Any, shapes: Mapping[str, Sequence[int | str]] | None = None) -> list[Any]:
    """Everything in a model that cannot be compiled, as ``Problem`` rows; empty when it can."""
    from tcompile.ir.onnx_host import check_program

    return check_program(model, shapes)[0]


def host_calls(model: Any, shapes: Mapping[str, Sequence[int | str]] | None = None) -> list[str]:
    """What Python would run of a model, by operator and node: strings, images, sequences whose length only the run knows."""
    from tcompile.ir.onnx_host import check_program

    return check_program(model, shapes)[1]


def compile_file(
    model: Any,
    artifact: str | os.PathLike[str],
    target: str = "native",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    **options: Any,
) -> Path:
    """Compiles a model for any target and writes the artifact: the way for models that do not fit in memory twice.

    Weights go from the model's file to the artifact in pieces. Arguments and errors as of ``compile``. Returns the path.
    """
    path = Path(artifact)
    _compiled(model, target, shapes, options).save(path)
    return path
