"""Compiles graphs to artifacts in memory and runs them natively."""

from __future__ import annotations

import numpy as np

from tcompile.codegen.artifact import write_artifact
from tcompile.codegen.build import build_image
from tcompile.codegen.lower import lower
from tcompile.ir.graph import Graph
from tcompile.ir.program_verify import verify_program
from tcompile.ir.target import Target, native_target
from tcompile.runtime.executable import Executable


def artifact(graph: Graph, target: Target | None = None) -> bytes:
    """The artifact of a graph as it is: no passes."""
    target = target or native_target()
    program = lower(graph, target)
    verify_program(program)
    image = build_image(program, target, workers=0, cache=False)
    sizes = {"arena_bytes": image.arena_bytes, "scratch_bytes": image.scratch_bytes}
    return write_artifact(program, image.linked, target=target.name, features=target.features, weights=image.weights, **sizes)


def run_native(graph: Graph, *arrays: np.ndarray, threads: int = 1) -> dict[str, np.ndarray]:
    """The outputs by name."""
    with Executable(artifact(graph), threads=threads) as exe:
        return exe.run([np.asarray(array) for array in arrays])
