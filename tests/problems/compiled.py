"""Compiles graphs to artifact bytes and runs them as an application would."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import tcompile
from tcompile.codegen.artifact import write_artifact
from tcompile.codegen.build import build_image
from tcompile.codegen.lower import lower
from tcompile.ir.graph import Graph, Node
from tcompile.ir.interpret import interpret
from tcompile.ir.program_verify import verify_program
from tcompile.ir.target import Target, named_target
from tcompile.ir.verify import verify
from tcompile.pipeline import optimise
from tcompile.runtime import Executable
from tests.problems.compare import assert_close
from tests.problems.problem import RUNS, Batch
from tests.problems.values import scrambled


@functools.cache
def target() -> Target:
    """This machine."""
    return named_target("native")


def artifact_of(graph: Graph, *, optimised: bool) -> bytes:
    """The artifact of a graph, with or without the passes before lowering."""
    verify(graph)
    if optimised:
        graph = optimise(graph, target())
    program = lower(graph, target())
    verify_program(program)
    return write_artifact(program, build_image(program, target(), 0), target())


def executable(graph: Graph, *, optimised: bool = False, threads: int = 1) -> Executable:
    """A graph compiled and loaded."""
    return tcompile.load(artifact_of(graph, optimised=optimised), threads=threads)


def check_batch(batch: Batch, *, optimised: bool, compiled: Callable[..., Any] = executable) -> None:
    """Raises AssertionError naming every case whose result is wrong in some run; ``compiled`` makes what runs of a graph."""
    graph = batch.graph()
    runs = compiled(graph, optimised=optimised)
    failures = []
    for run in range(RUNS):
        inputs = batch.inputs(run)
        expected = interpret(graph, inputs)
        got = runs.run({name: scrambled(array, batch.rng) for name, array in inputs.items()})
        for check in batch.checks:
            try:
                assert_close(got[check.output], expected[check.output], check.node, operands_of(check.node, batch, inputs))
            except AssertionError as error:
                failures.append(f"{check.case.label} output {check.index} in run {run}, {optimised=}: {error}\n    {shown(check.node)}")
    assert not failures, "\n".join([f"{len(failures)} of {RUNS * len(batch.checks)} differ", *failures[:8]])


def operands_of(node: Node, batch: Batch, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays that a node of a batch's graph reads, constants included."""
    constants = {made.output: made.attrs["value"] for made in batch.builder.nodes if made.op == "constant"}
    return [constants[value] if value in constants else inputs[value.name] for value in node.inputs]


def shown(node: Node) -> str:
    """A node in a line, for messages."""
    attrs = {name: value for name, value in node.attrs.items() if name != "value"}
    return f"{node.op}({', '.join(str(value.type) for value in node.inputs)}) {attrs}"
