"""Runs the kernels that a graph's nodes are lowered to in the Loop IR interpreter, naive and scheduled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tcompile.codegen.canonical import canonical
from tcompile.codegen.draft import Scope
from tcompile.codegen.lower_node import launches, naive
from tcompile.ir import dims
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.loops_verify import verify_kernel
from tcompile.ir.ops import evaluate
from tcompile.ir.target import Target

TARGET = Target("test", "x86_64-unknown-linux-gnu", "x86-64-v3", vector_bytes=32)


def kernels_of(node: Node, scope: Scope, *, scheduled: bool) -> list[tuple[Kernel, tuple[Value, ...], tuple[str, ...]]]:
    """The canonical kernels of a node with the values and symbols they apply to."""
    if scheduled:
        return [(launch.kernel, launch.values, launch.symbols) for launch in launches(node, scope, TARGET)]
    found = []
    for draft in naive(node, scope):
        kernel, values = draft.finish()
        kernel, symbols = canonical(kernel, scope.ranges)
        found.append((kernel, values, symbols))
    return found


def run_node(node: Node, arrays: Sequence[np.ndarray], env: Mapping[str, int], scope: Scope, *, scheduled: bool) -> list[np.ndarray]:
    """The outputs of a node by its kernels. Fails where a kernel reports a status."""
    memory: dict[Value, np.ndarray] = {value: np.ascontiguousarray(array) for value, array in zip(node.inputs, arrays, strict=True)}
    for region in node.regions:
        memory.update({inner.output: inner.attrs["value"] for inner in region.nodes if inner.op == "constant"})
    for value in node.outputs:
        shape = [extent if isinstance(extent, int) else dims.evaluate(extent, env) for extent in value.shape]
        memory[value] = np.full(shape, 77).astype(value.dtype.numpy)
    for kernel, values, symbols in kernels_of(node, scope, scheduled=scheduled):
        verify_kernel(kernel)
        buffers, extents = [memory[value].reshape(-1) for value in values], [env[name] for name in symbols]
        status = run_kernel(kernel, buffers, extents)
        assert status is None, status
        check_in_place(kernel, buffers, extents)
    return [memory[value] for value in node.outputs]


def check_in_place(kernel: Kernel, arrays: Sequence[np.ndarray], extents: Sequence[int]) -> None:
    """A kernel that ran on ``arrays`` gives the same with each of its aliases being one buffer."""
    for i, o in kernel.aliases:
        if arrays[i].size == arrays[o].size:
            again = [array.copy() for array in arrays]
            again[o] = again[i]
            assert run_kernel(kernel, again, extents) is None
            np.testing.assert_array_equal(again[o].reshape(-1), arrays[o].reshape(-1), f"{kernel.name}: result {o} over operand {i}")


def check_node(
    node: Node, arrays: Sequence[np.ndarray], symbols: Graph, env: Mapping[str, int] | None = None, *, rtol: float = 2e-6
) -> None:
    """Naive and scheduled kernels give what the op means."""
    expected = evaluate(node.op, arrays, node.attrs, node.regions, dict(env or {}))
    scope = Scope(ranges=symbols.symbols)
    for scheduled in (False, True):
        got = run_node(node, arrays, env or {}, scope, scheduled=scheduled)
        for mine, theirs in zip(got, expected, strict=True):
            if theirs.dtype.kind in "fV":
                np.testing.assert_allclose(
                    mine.astype(np.float64), theirs.astype(np.float64), rtol=rtol, atol=rtol, err_msg=f"{scheduled=}"
                )
            else:
                np.testing.assert_array_equal(mine, theirs, err_msg=f"{scheduled=}")
