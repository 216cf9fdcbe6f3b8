"""Replaces dimension symbols whose value is known by that value, everywhere.

Runs inside canonicalisation: a ``bind_dim`` of a constant (or of a ``dim`` expression) appears when shape arithmetic has
folded or an ``if`` was decided. Static extents are what later passes and templates need.

    %k: i64[] = constant {value = (7,)}
    bind_dim(%k) {symbol = "m"}                    -->       %y: f32[7] = slice(%x) {size = (7,), ...}
    %y: f32[m] = slice(%x) {size = (m,), ...}

A value outside the symbol's range stays: the run must stop on it.
"""

from __future__ import annotations

from typing import Any

from tcompile.ir import dims
from tcompile.ir.dims import Dim, DimLike, Range, nonnegative
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.ops import infer


def resolve_symbols(graph: Graph) -> Graph:
    """The graph with known symbols substituted; types are inferred anew. The same object where none is known."""
    known = _known(graph)
    if not known:
        return graph
    return _Substitution(known, graph.symbols).graph(graph)


def _known(graph: Graph) -> dict[str, DimLike]:
    found: dict[str, DimLike] = {}
    producers = {value: node for node in graph.walk() for value in node.outputs}
    for node in graph.walk():
        if node.op != "bind_dim":
            continue
        expr = _expression(producers.get(node.inputs[0]))
        if expr is None:
            continue
        expr = dims.substitute(expr, found, graph.symbols)
        name = node.attrs["symbol"]
        if name not in dims.symbols(expr) and _in_range(expr, graph.symbols.get(name, Range()), graph.symbols):
            found[name] = expr
    return found


def _expression(made: Node | None) -> DimLike | None:
    """The expression of an i64 scalar."""
    if made is None or made.op not in ("dim", "constant"):
        return None
    return int(made.attrs["value"]) if made.op == "constant" else made.attrs["exprs"][0]


def _in_range(expr: DimLike, range_: Range, ranges: dict[str, Range]) -> bool:
    low = nonnegative(expr - range_.lo, ranges)
    return low and (range_.hi is None or nonnegative(range_.hi - expr, ranges))


class _Substitution:
    """Rebuilds a graph and its regions with symbols replaced."""

    def __init__(self, known: dict[str, DimLike], ranges: dict[str, Range]) -> None:
        self.known = known
        self.ranges = {name: self._range(range_) for name, range_ in ranges.items() if name not in known}

    def graph(self, graph: Graph) -> Graph:
        renamed = {value: self._value(value) for value in graph.inputs}
        nodes = []
        for node in graph.nodes:
            if node.op == "bind_dim" and node.attrs["symbol"] in self.known:
                continue
            nodes.append(self._node(node, renamed))
        inputs, outputs = (tuple(renamed[value] for value in values) for values in (graph.inputs, graph.outputs))
        return Graph(graph.name, inputs, outputs, nodes, self.ranges, graph.output_names)

    def _node(self, node: Node, renamed: dict[Value, Value]) -> Node:
        inputs = tuple(renamed[value] for value in node.inputs)
        attrs = {name: self._attr(value) for name, value in node.attrs.items()}
        regions = tuple(map(self.graph, node.regions))
        types = infer(node.op, [value.type for value in inputs], attrs, regions)
        outputs = tuple(
            value if value.type == type_ else Value(value.name, type_) for value, type_ in zip(node.outputs, types, strict=True)
        )
        renamed.update(zip(node.outputs, outputs, strict=True))
        return Node(node.op, inputs, outputs, attrs, regions, node.source)

    def _value(self, value: Value) -> Value:
        if value.type.symbols.isdisjoint(self.known):
            return value
        return Value(value.name, TensorType(value.dtype, self._attr(value.shape)))

    def _range(self, range_: Range) -> Range:
        return Range(self._attr(range_.lo), self._attr(range_.hi))

    def _attr(self, value: Any) -> Any:
        if isinstance(value, Dim):
            return value if dims.symbols(value).isdisjoint(self.known) else dims.substitute(value, self.known)
        return tuple(map(self._attr, value)) if isinstance(value, tuple) else value
