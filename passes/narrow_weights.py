"""Constant factors of products are kept as narrow as the target's precision rounds them anyway.

Runs after the last folding and before layouts of weights: half of the bytes of a model's weights are then neither stored nor read.
Factors that a run makes stay float32 in memory, and are rounded on their way into the multiplier.

    %y = dot_general(%x, %w)     -->     %v = constant of f16: %w rounded; %y = dot_general(%x, %v)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir.build import Builder
from tcompile.ir.casts import convert
from tcompile.ir.dtypes import BF16, F16, F32, DType
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.target import Target
from tcompile.passes.dead_code import remove_dead

KINDS = {"f16": F16, "bf16": BF16}
FEW_OUTPUTS = 8  # of a convolution's group: fewer are summed in float32


@dataclass(frozen=True)
class NarrowWeights:
    """The pass."""

    target: Target
    name: str = "narrow-weights"

    def apply(self, graph: Graph) -> Graph:
        """The graph with such constants; regions too."""
        kind = KINDS.get(self.target.precision)
        return graph if kind is None else remove_dead(_narrowed(graph, kind))


def _narrowed(graph: Graph, kind: DType) -> Graph:
    builder = Builder(graph.name)
    builder.symbols = graph.symbols
    constants = {node.output: node.attrs["value"] for node in graph.nodes if node.op == "constant"}
    done: dict[Value, Value] = {}

    def operand(value: Value) -> Value:
        if value not in constants:
            return value
        if value not in done:
            done[value] = builder.constant(_rounded(constants[value], kind))
        return done[value]

    for node in graph.nodes:
        builder.source = node.source
        inputs = tuple(map(operand, node.inputs)) if _suits(node) else node.inputs
        regions = tuple(_narrowed(region, kind) for region in node.regions)
        same = inputs == node.inputs and not regions
        builder.nodes.append(node if same else Node(node.op, inputs, node.outputs, node.attrs, regions, node.source))
    return Graph(graph.name, graph.inputs, graph.outputs, builder.nodes, graph.symbols, graph.output_names)


def _suits(node: Node) -> bool:
    if node.op not in ("dot_general", "conv") or {value.dtype for value in (*node.inputs, node.output)} != {F32}:
        return False
    return node.op == "dot_general" or node.inputs[1].shape[0] >= FEW_OUTPUTS * node.attrs["groups"]


def _rounded(values: np.ndarray, kind: DType) -> np.ndarray:
    return convert(values, kind, saturate=False)
