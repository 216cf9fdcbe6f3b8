"""Dead code elimination: removes nodes that no output needs, in regions too.

Runs after every rewriting sweep, since rules leave behind what they replaced.

    %a = map(%x) {fn = "exp"}                                %b = map(%x) {fn = "neg"}
    %b = map(%x) {fn = "neg"}            -->                 return %b
    return %b

A node that binds a symbol (``bind_dim``, ``if``, ``loop``) stays while a live type, attribute or symbol range uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcompile.ir import dims
from tcompile.ir.dims import Range
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.verify import attr_symbols, bound_symbols


@dataclass(frozen=True)
class EliminateDeadCode:
    """The pass."""

    name: str = "dead-code"

    def apply(self, graph: Graph) -> Graph:
        """The graph without nodes that nothing needs."""
        return remove_dead(graph)


def remove_dead(graph: Graph, ranges: Mapping[str, Range] | None = None) -> Graph:
    """The graph without nodes that nothing needs; inputs and outputs stay as they are."""
    ranges = graph.symbols if ranges is None else ranges
    live = set(graph.outputs)
    symbols = _Symbols(ranges)
    for value in (*graph.outputs, *graph.inputs):
        symbols.add(value.type.symbols)
    kept = []
    for node in reversed(graph.nodes):
        if live.isdisjoint(node.outputs) and symbols.live.isdisjoint(bound_symbols(node)):
            continue
        if node.regions:
            node = Node(node.op, node.inputs, node.outputs, node.attrs, tuple(remove_dead(r, ranges) for r in node.regions), node.source)
        live.update(node.inputs)
        symbols.add_node(node)
        kept.append(node)
    return Graph(graph.name, graph.inputs, graph.outputs, kept[::-1], graph.symbols, graph.output_names)


class _Symbols:
    """The symbols that live nodes use, and those that the ranges of these use."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self.live: set[str] = set()
        self._ranges = ranges

    def add_node(self, node: Node) -> None:
        _add_values(self, node.outputs)
        for value in node.attrs.values():
            self.add(attr_symbols(value))
        for region in node.regions:
            _add_values(self, region.inputs)
            for inner in region.nodes:
                self.add_node(inner)

    def add(self, names: frozenset[str]) -> None:
        for name in names - self.live:
            self.live.add(name)
            range_ = self._ranges.get(name, Range())
            for end in (range_.lo, range_.hi):
                if end is not None:
                    self.add(dims.symbols(end))


def _add_values(symbols: _Symbols, values: tuple[Value, ...]) -> None:
    for value in values:
        if not value.type.is_static:
            symbols.add(value.type.symbols)
