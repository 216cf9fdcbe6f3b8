"""Graphs compiled for a GPU as it gets them: CUDA C, which the shim compiles as C++ (graphs of one thread: ``loops.py``)."""

from __future__ import annotations

import io

from tcompile.ir.graph import Graph
from tcompile.ir.target import named_target
from tcompile.pipeline import Options, compile_graph

TARGET = "cuda-sm90"
TEXT_ONLY = Options(device_code=False, cache=False)


def shim_artifact(graph: Graph, target: str = TARGET) -> bytes:
    """The artifact of a graph, without device code."""
    stream = io.BytesIO()
    compile_graph(graph, named_target(target), TEXT_ONLY).write(stream)
    return stream.getvalue()
