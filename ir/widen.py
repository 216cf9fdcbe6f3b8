"""Rewrites a graph so that every float tensor is f64: the reference of accuracy.

    %b: bf16[4] = convert(%x) {dtype = bf16}      -->      %b: f64[4] = convert(%x) {dtype = f64}

A bitcast keeps its meaning: its float side is converted to the type it had, there and nowhere else.
"""

from __future__ import annotations

from typing import Any

from tcompile.ir.casts import convert
from tcompile.ir.dtypes import F64, DType, from_numpy
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.ops import infer


def widen_floats(graph: Graph) -> Graph:
    """The same graph over f64; integers and bools stay. Input types change with it."""
    renamed = {value: Value(value.name, _widened(value.type)) for value in graph.inputs}
    inputs = tuple(renamed[value] for value in graph.inputs)
    nodes: list[Node] = []
    for node in graph.nodes:
        _append(node, renamed, nodes)
    outputs = tuple(renamed[value] for value in graph.outputs)
    return Graph(graph.name, inputs, outputs, nodes, graph.symbols, graph.output_names)


def _widened(type_: TensorType) -> TensorType:
    return TensorType(F64, type_.shape) if type_.dtype.is_float else type_


def _append(node: Node, renamed: dict[Value, Value], nodes: list[Node]) -> None:
    inputs = [renamed[value] for value in node.inputs]
    if node.op == "bitcast":
        _append_bitcast(node, inputs[0], renamed, nodes)
        return
    attrs = {name: _widened_attr(value, node.op) for name, value in node.attrs.items()}
    outputs = _emit(nodes, node, node.op, inputs, attrs, tuple(map(widen_floats, node.regions)))
    renamed.update(zip(node.outputs, outputs, strict=True))


def _widened_attr(value: Any, op: str) -> Any:
    if isinstance(value, DType) and value.is_float:
        return F64
    return convert(value, F64) if op == "constant" and from_numpy(value.dtype).is_float else value


def _append_bitcast(node: Node, value: Value, renamed: dict[Value, Value], nodes: list[Node]) -> None:
    narrow = node.inputs[0].dtype
    if narrow.is_float:
        (value,) = _emit(nodes, node, "convert", [value], {"dtype": narrow, "saturate": False})
    (value,) = _emit(nodes, node, "bitcast", [value], dict(node.attrs))
    if value.dtype.is_float:
        (value,) = _emit(nodes, node, "convert", [value], {"dtype": F64, "saturate": False})
    renamed[node.output] = value


def _emit(
    nodes: list[Node], like: Node, op: str, inputs: list[Value], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
) -> tuple[Value, ...]:
    types = infer(op, [value.type for value in inputs], attrs, regions)
    names = [value.name for value in like.outputs]
    outputs = tuple(Value(name, type_) for name, type_ in zip(names, types, strict=True))
    nodes.append(Node(op, tuple(inputs), outputs, attrs, regions, like.source))
    return outputs
