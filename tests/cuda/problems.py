"""Problems (``tests/problems``) as CUDA C under the shim.

``python -m tests.cuda.problems [--seed S] [--op NAME] [--all] [--done FILE]`` runs them all; without ``--all`` a few forms of every op
and dtype. ``--done`` names a file of the ops that agreed: a run goes on after those.
"""

from __future__ import annotations

import argparse
import io
import sys
import traceback
from pathlib import Path
from typing import Any

from tcompile.codegen.cuda_build import build_cuda
from tcompile.codegen.lower import lower
from tcompile.compiled_cuda import CudaCompiled
from tcompile.ir.graph import Graph
from tcompile.ir.program_verify import verify_program
from tcompile.ir.target import Target, named_target
from tcompile.ir.verify import verify
from tcompile.pipeline import optimise
from tcompile.runtime import load
from tests.cuda.shim_device import ShimDevice
from tests.problems import PROBLEMS, compiled
from tests.problems.problem import Batch, Problem, batches, sample

# made by passes for targets with channel blocks; they have templates only
CPU_ONLY = frozenset({"conv_winograd", "conv_winograd_whole", "conv_strassen", "conv_gathered", "conv_bytes"})
OPS = sorted(PROBLEMS.keys() - CPU_ONLY)
TARGET = "cuda-sm90"


def artifact_of(graph: Graph, target: Target, *, optimised: bool) -> bytes:
    """The artifact of a graph, its kernels as text, with or without the passes before lowering."""
    verify(graph)
    program = lower(optimise(graph, target) if optimised else graph, target)
    verify_program(program)
    stream = io.BytesIO()
    CudaCompiled(program, build_cuda(program, target, device_code=False), target).write(stream)
    return stream.getvalue()


def executable(graph: Graph, *, optimised: bool, target: str = TARGET) -> Any:
    """A graph compiled for a GPU and loaded under the shim."""
    return load(artifact_of(graph, named_target(target), optimised=optimised), device=ShimDevice())


def check_batch(batch: Batch, *, optimised: bool) -> None:
    """Raises AssertionError naming every case whose result under the shim is wrong in some run."""
    compiled.check_batch(batch, optimised=optimised, compiled=executable)


def few(op: str, seed: int, most: int = 12) -> list[Problem]:
    """Some forms of an op: at most ``most``, of as many dtypes as there are."""
    found = sample(PROBLEMS[op], seed)
    return found[seed % max(len(found) // most, 1) :: max(len(found) // most, 1)]


def main() -> int:
    """Prints what fails, with the seed that shows it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--op", choices=OPS, action="append")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--done", type=Path)
    arguments = parser.parse_args()
    done = set(arguments.done.read_text().split()) if arguments.done and arguments.done.exists() else set()
    total = failures = 0
    for op in (op for op in arguments.op or OPS if op not in done):
        count = wrong = 0
        for batch in batches(PROBLEMS[op] if arguments.all else few(op, arguments.seed), arguments.seed):
            for optimised in (False,) if op == "fused" else (False, True):
                count += 1
                try:
                    check_batch(batch, optimised=optimised)
                except Exception:
                    print(f"--seed {arguments.seed} --op {op} {optimised=}:\n{traceback.format_exc()[-3000:]}", flush=True)
                    wrong += 1
        print(f"{op}: {count} batches, {wrong} failed", flush=True)
        total, failures = total + count, failures + wrong
        if arguments.done and not wrong:
            with arguments.done.open("a") as stream:
                stream.write(f"{op}\n")
    print(f"{failures} of {total} batches failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
