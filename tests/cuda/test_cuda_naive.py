"""The naive kernels of ops, run by one thread as CUDA C under the shim, give what the Loop IR interpreter gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tcompile.codegen.cuda_c import emit_kernel
from tcompile.codegen.draft import Scope
from tcompile.errors import UnsupportedError
from tcompile.ir import dims
from tcompile.ir.graph import Graph, Value
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_interpret import run_kernel
from tests.codegen.kernel_runs import assert_same
from tests.codegen.lowering import kernels_of
from tests.cuda.kernel_runs import Loaded, on_gpu
from tests.cuda.problems import few
from tests.problems.problem import Batch

# one op of each kind of loops: sums, windows, dependent turns, data-dependent places, orders
OPS = [
    "map",
    "convert",
    "reduce",
    "reduce_window",
    "dot_general",
    "conv",
    "cumulative",
    "gather",
    "scatter_nd",
    "sort",
    "concat",
    "rng_bits",
]
EXPANDED_ULP = 6  # the most that ir/elementwise.py allows a backend: the interpreter's functions are NumPy's
Case = tuple[Kernel, list[np.ndarray], list[int]]


@pytest.mark.parametrize("op", OPS)
def test_naive_kernels_in_one_thread(op):
    batch = Batch(5)
    for problem in few(op, 3, most=8):
        batch.add(problem)
    cases = naive_cases(batch.graph(), batch.inputs(1), batch.sizes[1])
    assert cases
    loaded = Loaded([kernel for kernel, _, _ in cases])
    for kernel, arrays, sizes in cases:
        mine, theirs = [array.copy() for array in arrays], [array.copy() for array in arrays]
        assert run_kernel(kernel, theirs, sizes) == loaded.run(kernel, mine, sizes)
        for param, a, b in zip(kernel.params, mine, theirs, strict=True):
            assert_same(a, b, f"{kernel.name} {param.name}", EXPANDED_ULP if a.dtype in (np.float32, np.float64) else 0)


def naive_cases(graph: Graph, inputs: dict[str, np.ndarray], sizes: dict[str, int]) -> list[Case]:
    """The kernels of a graph's nodes that read inputs alone, with arrays for their parameters and the values of their dims."""
    memory = {value: np.ascontiguousarray(inputs[value.name]) for value in graph.inputs}
    memory |= {node.output: np.ascontiguousarray(node.attrs["value"]) for node in graph.nodes if node.op == "constant"}
    found: list[Case] = []
    for number, node in enumerate(graph.nodes):
        if node.op == "constant" or not all(value in memory for value in node.inputs):
            continue
        for part, (kernel, places, symbols) in enumerate(kernels_of(node, Scope(ranges=graph.symbols), scheduled=False)):
            arrays = [memory[value] if value in memory else fresh(value, sizes) for value in places]
            made = on_gpu(renamed(kernel, f"k{number}_{part}"))
            if emits(made):
                found.append((made, arrays, [sizes[name] for name in symbols]))
    return found


def renamed(kernel: Kernel, name: str) -> Kernel:
    """The kernel under a name of its own."""
    return replace(kernel, name=name, aliases=())


def emits(kernel: Kernel) -> bool:
    """Whether one GPU thread can run a kernel: scratch of symbolic size is for schedules to move."""
    try:
        emit_kernel(kernel)
    except UnsupportedError:
        return False
    return True


def fresh(value: Value, sizes: dict[str, int]) -> np.ndarray:
    """An array for a result."""
    shape: Sequence[int] = [extent if isinstance(extent, int) else dims.evaluate(extent, sizes) for extent in value.shape]
    return np.zeros(shape, value.dtype.numpy)
