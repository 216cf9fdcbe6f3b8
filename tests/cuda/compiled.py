"""Graphs compiled for a GPU and loaded on a device that needs none."""

from __future__ import annotations

import io
from typing import Any

from tcompile.ir.graph import Graph
from tcompile.ir.target import named_target
from tcompile.pipeline import Options, compile_graph
from tcompile.runtime import load
from tests.cuda.loop_device import LoopDevice

TARGET = "cuda-sm90"
TEXT_ONLY = Options(device_code=False, cache=False)


def artifact_of(graph: Graph, target: str = TARGET) -> tuple[bytes, Any]:
    """The artifact of a graph, without device code, and what was compiled."""
    compiled = compile_graph(graph, named_target(target), TEXT_ONLY)
    stream = io.BytesIO()
    compiled.write(stream)
    return stream.getvalue(), compiled


def on_loops(graph: Graph, **options: Any) -> tuple[Any, LoopDevice]:
    """A graph loaded on a device whose kernels run in the interpreter."""
    data, compiled = artifact_of(graph)
    device = LoopDevice(compiled.program, **options)
    return load(data, device=device), device
