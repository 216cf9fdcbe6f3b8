"""Graphs compiled for a GPU with kernels of one thread each, and loaded on a device that runs those in the Loop IR interpreter:
tests of plans and of the runtime, apart from schedules and emitted code.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

from tcompile.codegen.cuda_build import build_cuda
from tcompile.codegen.cuda_threads import one_thread, spilled
from tcompile.codegen.draft import Draft
from tcompile.codegen.lower import lower
from tcompile.codegen.lower_node import SCHEDULES
from tcompile.codegen.schedule import Names
from tcompile.codegen.templates import Built
from tcompile.compiled_cuda import CudaCompiled
from tcompile.ir.graph import Graph
from tcompile.ir.program_verify import verify_program
from tcompile.ir.target import GpuTarget, Target, named_target
from tcompile.pipeline import optimise
from tcompile.runtime import load
from tests.cuda.loop_device import LoopDevice

TARGET = "cuda-sm90"


@dataclass(frozen=True)
class _Plain(GpuTarget):
    """A GPU whose kernels have one thread."""

    @property
    def backend(self) -> str:
        return "one thread"


def _in_order(draft: Draft, target: Target) -> list[Built]:
    kernel, values = draft.finish()
    names = Names()
    body, scratch = spilled(kernel.body, 0, 1, names)
    params = (*kernel.params, *(param for param, _ in scratch))
    extra = tuple(value for _, value in scratch)
    return [Built(replace(kernel, params=params, body=one_thread(body, names)), (*values, *extra), extra)]


SCHEDULES["one thread"] = _in_order


def artifact_of(graph: Graph) -> tuple[bytes, CudaCompiled]:
    """The artifact of a graph with kernels of one thread, without device code, and what was compiled."""
    target = _Plain(**vars(named_target(TARGET)))
    program = lower(optimise(graph, target), target)
    verify_program(program)
    return _written(CudaCompiled(program, build_cuda(program, target, device_code=False), target))


def on_loops(graph: Graph, **options: Any) -> tuple[Any, LoopDevice]:
    """A graph loaded on a device whose kernels run in the interpreter."""
    data, compiled = artifact_of(graph)
    device = LoopDevice(compiled.program, **options)
    return load(data, device=device), device


def _written(compiled: CudaCompiled) -> tuple[bytes, CudaCompiled]:
    stream = io.BytesIO()
    compiled.write(stream)
    return stream.getvalue(), compiled
