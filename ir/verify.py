"""The verifier of the Graph IR. The invariants, by the name that messages give them:

dominance   Every value is defined once, by an input or by one node, and before it is used; a region sees only its
            own inputs and nodes.
types       A node's output types are exactly what its op's type rule infers from its operands, attributes and regions.
symbols     Every symbol in a type or attribute is bound before: by an input's shape (an extent that is the symbol alone),
            by a ``bind_dim``, or by a ``loop`` or ``if`` (``shape_symbols``, ``scan_extent``; a loop's ``counter`` and inner
            symbols hold in its body only). What a region binds is not known outside. Each symbol is bound once, and has a
            range in the graph's table with lo <= hi, whose ends use symbols of the table only.
extents     No extent is a constant below 0.
outputs     Every output is defined; the entry graph has one public name per output, no two of them equal.

``verify`` raises on the first violation, with the message under the offending line of the listing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import Dim, Range, nonnegative
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.interpret import lone_symbol
from tcompile.ir.ops import infer
from tcompile.ir.ops_control import loop_scan_symbol
from tcompile.ir.text import Names, node_lines

CONTEXT = 4  # lines of the listing around a violation


class VerifyError(InvalidModelError):
    """A graph that breaks an invariant; the message shows where."""


class _Violation(Exception):
    """What is wrong with the node or graph at hand."""


def verify(graph: Graph) -> None:
    """Checks every invariant. Raises VerifyError."""
    _Verifier(graph.symbols).graph(graph, bound=set(), entry=True)


def bound_symbols(node: Node) -> tuple[str, ...]:
    """The symbols that a node binds for the nodes after it."""
    if node.op == "bind_dim":
        return (node.attrs["symbol"],)
    if node.op == "if":
        return tuple(dict.fromkeys(name for *_, name in node.attrs.get("shape_symbols", ())))
    if node.op == "loop":
        outer = [name for *_, name in node.attrs.get("shape_symbols", ())]
        scan = loop_scan_symbol({"scan_extent": None, **node.attrs})
        elements = (name for *_, name in node.attrs.get("scan_symbols", ()))
        return tuple(dict.fromkeys((*outer, *((scan,) if scan else ()), *elements)))
    return ()


def region_symbols(node: Node) -> tuple[str, ...]:
    """The symbols that a node binds for its regions only."""
    if node.op != "loop":
        return ()
    return (node.attrs["counter"], *dict.fromkeys(inner for *_, inner, _ in node.attrs.get("shape_symbols", ())))


def attr_symbols(value: Any) -> frozenset[str]:
    """The symbols of an attribute value, tuples included."""
    if isinstance(value, Dim):
        return dims.symbols(value)
    if isinstance(value, tuple):
        return frozenset().union(*map(attr_symbols, value))
    return frozenset()


class _Verifier:
    """One walk over a graph and its regions; ``defined`` and ``ever_bound`` span all of it."""

    def __init__(self, ranges: dict[str, Range]) -> None:
        self.ranges = ranges
        self.defined: set[Value] = set()
        self.ever_bound: set[str] = set()

    def graph(self, graph: Graph, bound: set[str], *, entry: bool) -> None:
        """Checks a graph or region. ``bound``: the symbols known where it starts; it is extended in place."""
        visible: set[Value] = set()
        try:
            for value in graph.inputs:
                self._define(value, visible)
            if entry:
                self._bind(_entry_symbols(graph), bound)
            for value in graph.inputs:
                self._need_bound(value.type.symbols, bound, f"the type of input {value.name}")
        except _Violation as violation:
            raise VerifyError(f"{violation}\n{_listing(graph, -1, str(violation))}") from None
        for position, node in enumerate(graph.nodes):
            try:
                self._node(node, visible, bound)
            except (_Violation, InvalidModelError) as violation:
                if isinstance(violation, VerifyError):
                    raise
                raise VerifyError(f"{violation}\n{_listing(graph, position, str(violation))}") from None
        self._outputs(graph, visible, entry=entry)

    def _node(self, node: Node, visible: set[Value], bound: set[str]) -> None:
        for value in node.inputs:
            if value not in visible:
                where = "belongs to another region" if value in self.defined else "is not defined above"
                raise _Violation(f"dominance: operand {value.name} {where}")
        for name, value in node.attrs.items():
            own = (*bound_symbols(node), *region_symbols(node))
            self._need_bound(attr_symbols(value) - set(own), bound, f"the attribute {name}")
        expected = infer(node.op, [value.type for value in node.inputs], node.attrs, node.regions)
        got = tuple(value.type for value in node.outputs)
        if expected != got:
            raise _Violation(f"types: {node.op} gives ({_join(expected)}), but the node has ({_join(got)})")
        after = bound | set(bound_symbols(node))
        inner = bound | set(region_symbols(node))
        self._bind(region_symbols(node), set())
        for region in node.regions:
            self.graph(region, set(inner), entry=False)
        self._bind(bound_symbols(node), bound)
        for value in node.outputs:
            self._define(value, visible)
            self._need_bound(value.type.symbols, after, f"the type of {value.name}")

    def _define(self, value: Value, visible: set[Value]) -> None:
        if value in self.defined:
            raise _Violation(f"dominance: {value.name} is defined twice")
        if any(isinstance(extent, int) and extent < 0 for extent in value.shape):
            raise _Violation(f"extents: {value.name} has a negative extent: {value.type}")
        self.defined.add(value)
        visible.add(value)

    def _bind(self, names: Iterable[str], bound: set[str]) -> None:
        for name in names:
            if name in self.ever_bound:
                raise _Violation(f"symbols: {name} is bound twice")
            if name not in self.ranges:
                raise _Violation(f"symbols: {name} has no range in the graph's table")
            self._check_range(name)
            self.ever_bound.add(name)
            bound.add(name)

    def _check_range(self, name: str) -> None:
        range_ = self.ranges[name]
        for end in (range_.lo, range_.hi):
            unknown = (dims.symbols(end) if end is not None else frozenset()) - self.ranges.keys()
            if unknown:
                raise _Violation(f"symbols: the range of {name} uses {min(unknown)}, which has no range")
        if range_.hi is not None and isinstance(range_.hi - range_.lo, int) and not nonnegative(range_.hi - range_.lo):
            raise _Violation(f"symbols: the range of {name} is empty: {range_.lo}..{range_.hi}")

    @staticmethod
    def _need_bound(names: Iterable[str], bound: set[str], where: str) -> None:
        unbound = set(names) - bound
        if unbound:
            raise _Violation(f"symbols: {min(unbound)} in {where} is not bound above")

    @staticmethod
    def _outputs(graph: Graph, visible: set[Value], *, entry: bool) -> None:
        problem, names = "", graph.output_names
        for value in graph.outputs:
            if value not in visible:
                problem = f"outputs: {value.name} is not defined in the graph {graph.name}"
        if names and len(names) != len(graph.outputs):
            problem = f"outputs: {len(graph.outputs)} outputs have {len(names)} names"
        elif entry and len(set(names)) < len(names):
            problem = f"outputs: two of the names {', '.join(names)} are equal"
        if problem:
            raise VerifyError(f"{problem}\n{_listing(graph, len(graph.nodes), problem)}")


def _entry_symbols(graph: Graph) -> Iterator[str]:
    names = (lone_symbol(extent) for value in graph.inputs for extent in value.shape)
    return iter(dict.fromkeys(name for name in names if name is not None))


def _join(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types))


def _listing(graph: Graph, position: int, message: str) -> str:
    """The nodes around a position with the message under it; regions are left out but for their first line."""
    names, lines = Names(), []
    low, high = max(position - CONTEXT, 0), min(position + 1, len(graph.nodes))
    for index in range(low, high):
        lines.append(next(node_lines(graph.nodes[index], names, "  ")))
    header = ", ".join(f"{names[value]}: {value.type}" for value in graph.inputs)
    marker = f"  ^ {message}"
    if position < 0:
        return "\n".join((f"  inputs {header}", marker))
    if position >= len(graph.nodes):
        lines.append(f"  return {', '.join(names[value] for value in graph.outputs)}")
    return "\n".join((f"  inputs {header}", *(("  ...",) if low else ()), *lines, marker))
