"""The static model of every kernel that a GPU would run, without one: ``python -m benchmarks.gpu_model MODEL... [--target cuda-sm90]``.

Prints bytes through device memory and their share of the minimum, operations, threads, occupancy and the roofline's time; with
``--compile`` also registers. The exit status says whether a kernel moves more than its limit (1.2 times the minimum, 2 times
for products and convolutions), or spills registers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from tcompile.codegen.cuda_c import emit_module
from tcompile.codegen.cuda_compile import compile_text
from tcompile.codegen.cuda_model import limit, program_models, report
from tcompile.codegen.lower import lower
from tcompile.ir.graph import Graph
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import GpuTarget, named_target
from tcompile.pipeline import imported, optimise


def main() -> int:
    """Prints a table for each model; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="cuda-sm90")
    parser.add_argument("--size", action="append", default=[], metavar="SYMBOL=N", help="the value of a symbolic extent (default 8)")
    parser.add_argument("--compile", action="store_true", help="compile, for registers and spills")
    arguments = parser.parse_args()
    target = named_target(arguments.target)
    if not isinstance(target, GpuTarget):
        parser.error(f"{target.name} is no GPU")
    sizes = {name: int(value) for name, value in (text.split("=") for text in arguments.size)}
    return max(_show(path, target, sizes, compiled=arguments.compile) for path in arguments.models)


def _show(path: str, target: GpuTarget, sizes: Mapping[str, int], *, compiled: bool) -> int:
    found = imported(path, target)
    status = 0
    for graph in [found] if isinstance(found, Graph) else found.segments:
        program = lower(optimise(graph, target), target)
        resources = compile_text(emit_module(program_kernels(program)), target.sm).resources if compiled else {}
        registers = {name: facts["registers"] for name, facts in resources.items()}
        models = program_models(program, target, {**dict.fromkeys(program.symbols, 8), **sizes}, registers)
        print(f"{path}\n{report(models)}")
        for one, _ in models:
            if one.ratio > limit(one.name):
                print(f"{one.name}: moves {one.ratio:.2f} times the minimum; the limit is {limit(one.name)}")
                status = 1
        for name, facts in resources.items():
            if facts["spill"]:
                print(f"{name}: spills {facts['spill']} bytes")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
