"""Runs programs with host ops: their steps by the runtime, their native segments by the interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.ir.graph import Graph
from tcompile.ir.host import HostProgram, encode
from tcompile.ir.interpret import interpret
from tcompile.runtime.host_plan import read_plan


def run_program(program: HostProgram, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs by name."""
    plan = read_plan(encode(program))
    given = [inputs[spec.name] for spec in plan.inputs]
    results = plan.block.run(given, {}, [_interpreted(graph) for graph in program.segments])
    return dict(zip((spec.name for spec in plan.outputs), results, strict=True))


def _interpreted(graph: Graph):
    names = [value.name for value in graph.inputs]
    return lambda arrays: list(interpret(graph, dict(zip(names, arrays, strict=True))).values())
