"""Common subexpression elimination: equal nodes become one.

Runs after canonicalisation, which makes equal computations look equal (operand order, composed movements); exporters
repeat shape arithmetic, constants and casts per layer.

    %a = map(%x) {fn = "exp"}                                %a = map(%x) {fn = "exp"}
    %b = map(%x) {fn = "exp"}            -->                 %c = map(%a, %a) {fn = "mul"}
    %c = map(%a, %b) {fn = "mul"}

Nodes are equal when op, operands and attributes are; every core op is a function of them (``rng_bits`` too: its seed is an
attribute). Nodes with regions and those that bind symbols stay.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.ir.graph import Graph, Node, Value

SMALL_BYTES = 1 << 16  # larger constants are compared by where they lie in memory


@dataclass(frozen=True)
class EliminateCommon:
    """The pass."""

    name: str = "common-subexpressions"

    def apply(self, graph: Graph) -> Graph:
        """The graph with equal nodes merged, region by region."""
        renamed: dict[Value, Value] = {}
        first: dict[Hashable, Node] = {}
        nodes = []
        for node in graph.nodes:
            node = self._renamed(node, renamed)
            key = None if node.regions or not node.outputs else _key(node)
            known = first.setdefault(key, node) if key is not None else node
            if known is node:
                nodes.append(node)
            else:
                renamed.update(zip(node.outputs, known.outputs, strict=True))
        outputs = tuple(renamed.get(value, value) for value in graph.outputs)
        return Graph(graph.name, graph.inputs, outputs, nodes, graph.symbols, graph.output_names)

    def _renamed(self, node: Node, renamed: dict[Value, Value]) -> Node:
        inputs = tuple(renamed.get(value, value) for value in node.inputs)
        if inputs == node.inputs and not node.regions:
            return node
        return Node(node.op, inputs, node.outputs, node.attrs, tuple(map(self.apply, node.regions)), node.source)


def _key(node: Node) -> Hashable:
    attrs = tuple((name, _hashable(node.attrs[name])) for name in sorted(node.attrs))
    return node.op, node.inputs, attrs


def _hashable(value: Any) -> Hashable:
    if not isinstance(value, np.ndarray):
        return value
    kind = (value.dtype.str, value.dtype.name, value.shape)
    if value.nbytes <= SMALL_BYTES:
        return (*kind, value.tobytes())
    return (*kind, value.strides, value.__array_interface__["data"][0])
