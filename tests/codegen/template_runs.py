"""Runs the kernels that templates build, on the Loop IR interpreter, against the NumPy meaning of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tcompile.codegen import cpu_templates, templates
from tcompile.codegen.draft import Scope
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.interpret import bind_symbols, interpret
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.opspec import concrete
from tcompile.ir.target import Target, named_target
from tcompile.ir.verify import verify
from tcompile.passes.fuse import Fuse

assert cpu_templates.ALL  # registered by being imported
SCALARS = ("constant", "dim")


def check_template(graph: Graph, arrays: Mapping[str, np.ndarray], target: str | Target = "x86-64-v3", rtol: float = 1e-5) -> list[str]:
    """Fuses the graph, which must become kernels of one template each, runs them and compares; returns the templates' names."""
    target = named_target(target) if isinstance(target, str) else target
    expected = interpret(graph, arrays)
    fused = Fuse(target).apply(graph)
    verify(fused)
    env = bind_symbols(fused, [arrays[value.name] for value in fused.inputs])
    values: dict[Value, np.ndarray] = {value: np.ascontiguousarray(arrays[value.name]) for value in fused.inputs}
    scalars = {value: node for node in fused.nodes if node.op in SCALARS for value in node.outputs if value.type.size == 1}
    names = []
    for node in fused.nodes:
        names += _run(node, values, env, Scope(fused.symbols, scalars), target)
    for value, name in zip(fused.outputs, fused.output_names, strict=True):
        got, want = values[value], expected[name]
        assert got.dtype == want.dtype
        scale = max(float(np.max(np.abs(want), initial=0.0)), 1.0)
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=rtol, atol=rtol * scale)
    return names


def _run(node: Node, values: dict, env: dict, scope: Scope, target: Target) -> list[str]:
    if node.op == "constant":
        values[node.output] = np.ascontiguousarray(node.attrs["value"])
        return []
    if node.op == "reshape":
        values[node.output] = values[node.inputs[0]].reshape(concrete(node.attrs["shape"], env))
        return []
    kernels = templates.from_template(node, scope, target)
    assert kernels is not None, f"no template takes {node.op}"
    for output in node.outputs:
        values[output] = np.full(concrete(output.shape, env), -77, output.dtype.numpy)
    for built in kernels:
        names = sorted(env)
        kernel = replace(built.kernel, dims=tuple(names))
        arrays = [values[value] for value in built.values]
        assert run_kernel(kernel, arrays, [env[name] for name in names]) is None
        check_in_place(kernel, arrays, [env[name] for name in names])
    return [built.kernel.tags["template"] for built in kernels]


def check_in_place(kernel: Kernel, arrays: Sequence[np.ndarray], dims: Sequence[int]) -> None:
    """A kernel that ran on ``arrays`` gives the same with each of its aliases being one buffer."""
    for i, o in kernel.aliases:
        if arrays[i].size == arrays[o].size:
            again = [array.copy() for array in arrays]
            again[o] = again[i]
            assert run_kernel(kernel, again, dims) is None
            np.testing.assert_array_equal(again[o].reshape(-1), arrays[o].reshape(-1), f"{kernel.name}: result {o} over operand {i}")
