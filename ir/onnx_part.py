"""Importing a graph, or a part of one, into a Graph.

A part is some nodes of an ONNX graph with the values that they take from outside as inputs. A whole model is one part;
a model with host ops (``onnx_host.py``) is several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_inputs import Shapes, declare_inputs
from tcompile.ir.onnx_schema import uses_of
from tcompile.ir.onnx_scope import FAILED, ModelState, Scope


@dataclass(frozen=True)
class GraphPart:
    """``input``, ``initializer`` and ``sparse_initializer`` as a GraphProto has them; ``nodes`` with their labels."""

    name: str
    input: Sequence[onnx.ValueInfoProto]
    nodes: Sequence[tuple[str, onnx.NodeProto]]
    initializer: Sequence[onnx.TensorProto] = ()
    sparse_initializer: Sequence[onnx.SparseTensorProto] = ()


def whole(graph: onnx.GraphProto) -> GraphPart:
    """All of a graph."""
    return GraphPart(graph.name or "graph", graph.input, labelled(graph.node), graph.initializer, graph.sparse_initializer)


def labelled(nodes: Iterable[onnx.NodeProto]) -> list[tuple[str, onnx.NodeProto]]:
    """Nodes with what messages call them."""
    return [(node.name or f"{node.op_type} #{index}", node) for index, node in enumerate(nodes)]


@dataclass(eq=False)
class ImportedPart:
    """A part after its import, whether it went well or not. ``dims`` are the extents that dimension names got."""

    part: GraphPart
    scope: Scope
    dims: Mapping[str, DimLike] = field(default_factory=dict)

    @property
    def state(self) -> ModelState:
        return self.scope.state

    def failed_first(self) -> list[int]:
        """The positions of the nodes that failed by themselves: not because of what another one did not give."""
        env = self.scope.env
        found = []
        for index, (_, node) in enumerate(self.part.nodes):
            fails = any(env.get(name) is FAILED for name in node.output if name)
            if fails and not any(env.get(name) is FAILED for name in uses_of(node)):
                found.append(index)
        return found

    def graph(self, outputs: Sequence[tuple[str, Value]]) -> Graph:
        """The finished graph with these outputs."""
        graph = self.scope.builder.graph([value for _, value in outputs], [name for name, _ in outputs])
        return _named(graph, self.state.names)


def import_part(part: GraphPart, state: ModelState, opsets: Mapping[str, int], shapes: Shapes | None = None) -> ImportedPart:
    """Imports inputs, constants and nodes; problems are in the state afterwards. Raises InputError for shapes that do not fit."""
    scope = Scope(state, ImportBuilder(part.name), opsets)
    dims = declare_inputs(scope, part, shapes or {})
    scope.define_initializers(part)
    scope.run_nodes(part.nodes)
    return ImportedPart(part, scope, dims)


def _named(graph: Graph, names: Mapping[Value, str]) -> Graph:
    """The graph with values called by their ONNX names.   v17 -> "encoder/relu_output" """
    table: dict[Value, Value] = {}

    def value_of(value: Value) -> Value:
        if value not in table:
            table[value] = Value(names[value], value.type) if value in names and names[value] != value.name else value
        return table[value]

    def node_of(node: Node) -> Node:
        inputs, outputs = tuple(map(value_of, node.inputs)), tuple(map(value_of, node.outputs))
        return Node(node.op, inputs, outputs, node.attrs, tuple(map(graph_of, node.regions)), node.source)

    def graph_of(inner: Graph) -> Graph:
        inputs, outputs = tuple(map(value_of, inner.inputs)), tuple(map(value_of, inner.outputs))
        return Graph(inner.name, inputs, outputs, list(map(node_of, inner.nodes)), inner.symbols, inner.output_names)

    return graph_of(graph)
