"""A model compiled for a GPU, before it is written or loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from tcompile.codegen.cuda_artifact import CudaBuild
    from tcompile.ir.program import Program
    from tcompile.ir.target import GpuTarget


@dataclass(frozen=True, eq=False)
class CudaCompiled:
    """A compiled model: its program, the code and weights, and the GPU they are for. Used like ``pipeline.Compiled``."""

    program: Program
    build: CudaBuild
    target: GpuTarget

    def write(self, stream: BinaryIO) -> None:
        """Writes the artifact into an empty stream that can seek; the weights are read in pieces, never held twice."""
        from tcompile.codegen.cuda_artifact import write_cuda

        write_cuda(stream, self.build, self.target)

    def report(self, threads: int) -> dict[str, Any]:
        """What was made, as JSON can hold it; as ``Compiled.report``. Sizes are bytes on the device."""
        build, plan = self.build, self.build.plan
        arena, code, weights = plan["arena_bound"], build.code_bytes, build.weights_bytes
        return {
            "target": self.target.name,
            "arch": f"sm_{self.target.sm}",
            "kernels": len(plan["kernels"]),
            "calls": _launches(plan["steps"]),
            "code_bytes": code,
            "weights_bytes": weights,
            "arena_bytes": arena,
            "scratch_bytes": 0,
            "threads": 1,
            "peak_bytes": None if arena is None else code + weights + arena,
            "growing": [{"name": buffer["name"], "nodes": []} for buffer in plan["buffers"] if buffer["role"] == "growing"],
            "notes": dict(build.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact into a file: whole, beside it, then renamed."""
        from tcompile.codegen.artifact import save_file

        save_file(path, self.write)


def _launches(steps: list[dict[str, Any]]) -> int:
    """How many launches the steps hold."""
    inner = (step.get(name, []) for step in steps for name in ("then", "else", "body"))
    return sum(step["do"] == "launch" for step in steps) + sum(map(_launches, inner))
