"""Runs the kernels that templates build against the NumPy meaning of the graph: compiled, or on the Loop IR interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tcompile.codegen import cpu_templates, templates
from tcompile.codegen.draft import Scope
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.interpret import bind_symbols, interpret
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.opspec import concrete
from tcompile.ir.target import Target, named_target, native_target
from tcompile.ir.verify import verify
from tcompile.passes.fuse import Fuse
from tests.codegen.lowering import check_in_place
from tests.codegen.native import run_native

assert cpu_templates.ALL  # registered by being imported
SCALARS = ("constant", "dim")
SKIPPED = ("constant", "reshape")  # that are no kernels


def check_template(graph: Graph, arrays: Mapping[str, np.ndarray], target: str | None = None, rtol: float = 1e-5) -> list[str]:
    """Fuses the graph, which must become kernels of templates, runs them and compares; returns the templates' names.

    Without a target the kernels are compiled for this machine; a named target's are interpreted.
    """
    machine = named_target(target) if target else native_target()
    expected = interpret(graph, arrays)
    fused = Fuse(machine).apply(graph)
    verify(fused)
    if target is None:
        outputs = run_native(fused, *(arrays[value.name] for value in fused.inputs))
        names = _names(fused, machine)
    else:
        outputs, names = interpreted(fused, arrays, machine)
    for name, want in expected.items():
        got = outputs[name]
        assert got.dtype == want.dtype
        scale = max(float(np.max(np.abs(want), initial=0.0, where=np.isfinite(want))), 1.0)
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=rtol, atol=rtol * scale)
    return names


def kernels_of(graph: Graph) -> list[Kernel]:
    """The kernels that templates build for a graph on this machine."""
    machine = native_target()
    fused = Fuse(machine).apply(graph)
    return [built.kernel for node in fused.nodes if node.op not in SKIPPED for built in _kernels(node, fused, machine)]


def _scope(graph: Graph) -> Scope:
    return Scope(graph.symbols, {v: node for node in graph.nodes if node.op in SCALARS for v in node.outputs if v.type.size == 1})


def _names(graph: Graph, target: Target) -> list[str]:
    """The templates that take the nodes of a graph."""
    names = []
    for node in graph.nodes:
        if node.op not in SKIPPED:
            names += [built.kernel.tags["template"] for built in _kernels(node, graph, target)]
    return names


def _kernels(node: Node, graph: Graph, target: Target) -> list[templates.Built]:
    kernels = templates.from_template(node, _scope(graph), target)
    assert kernels is not None, f"no template takes {node.op}"
    return kernels


def interpreted(graph: Graph, arrays: Mapping[str, np.ndarray], target: Target) -> tuple[dict[str, np.ndarray], list[str]]:
    """The outputs of a graph of template kernels on the Loop IR interpreter, and the templates' names."""
    env = bind_symbols(graph, [arrays[value.name] for value in graph.inputs])
    values: dict[Value, np.ndarray] = {value: np.ascontiguousarray(arrays[value.name]) for value in graph.inputs}
    for node in graph.nodes:
        _run(node, values, env, graph, target)
    return {name: values[value] for name, value in zip(graph.output_names, graph.outputs, strict=True)}, _names(graph, target)


def _run(node: Node, values: dict, env: dict, graph: Graph, target: Target) -> None:
    if node.op == "constant":
        values[node.output] = np.ascontiguousarray(node.attrs["value"])
        return
    if node.op == "reshape":
        values[node.output] = values[node.inputs[0]].reshape(concrete(node.attrs["shape"], env))
        return
    for output in node.outputs:
        values[output] = np.full(concrete(output.shape, env), -77, output.dtype.numpy)
    for built in _kernels(node, graph, target):
        for value in built.scratch:
            values.setdefault(value, np.full(concrete(value.shape, env), -77, value.dtype.numpy))
        names = sorted(env)
        kernel = replace(built.kernel, dims=tuple(names))
        buffers, extents = [values[value] for value in built.values], [env[name] for name in names]
        assert run_kernel(kernel, buffers, extents) is None
        check_in_place(kernel, buffers, extents)
