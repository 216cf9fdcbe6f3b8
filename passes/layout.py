"""Layouts: convolutions compute on channel blocks, products with constant matrices on packed panels.

Runs after recognition, when constants are folded and patterns have their final ops, and before fusion, which then
sees the packed ops and plain data movement. One walk in order: each value exists plain, blocked or both, and an op
computes in the form its operand has. So packs appear where a plain value enters the blocked part of a model, and
unpacks where one leaves it; between two convolutions there are none.

    %y = conv(%x, %w)                       %b = pack(%x); %p = pad(%b)
    %z = map(%y, %y) {fn = "mul"}     -->   %y = conv_blocked(%p, %w'); %z' = map(%y, %y) {fn = "mul"}
    %o = dot_general(%z, %k)                %z = unpack(%z'); %o = dot_packed(%z, %k')
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.ir.build import Builder
from tcompile.ir.graph import Graph, Node
from tcompile.ir.target import Target
from tcompile.passes.dead_code import remove_dead
from tcompile.passes.layout_dot import assign_dot
from tcompile.passes.layout_forms import Forms
from tcompile.passes.layout_rules import RULES


@dataclass(frozen=True)
class AssignLayouts:
    """The pass. The target's registers decide how wide the panels of a packed matrix are."""

    target: Target
    name: str = "layout"

    def apply(self, graph: Graph) -> Graph:
        """The graph in packed layouts; inputs and outputs stay plain."""
        return remove_dead(_assign(graph, self.target, Builder(graph.name), graph.symbols))


def _assign(graph: Graph, target: Target, builder: Builder, symbols: dict) -> Graph:
    builder.symbols = symbols
    builder.inputs = list(graph.inputs)
    forms = Forms(graph, builder)
    for node in graph.nodes:
        builder.source = node.source
        rule = RULES.get(node.op)
        if rule is not None and rule(node, forms):
            continue
        if node.op == "dot_general" and assign_dot(node, forms, target):
            continue
        _keep(node, forms, target)
    outputs = tuple(map(forms.plain, graph.outputs))
    return Graph(graph.name, graph.inputs, outputs, builder.nodes, graph.symbols, graph.output_names)


def _keep(node: Node, forms: Forms, target: Target) -> None:
    """The node as it was, on plain operands."""
    inputs = tuple(map(forms.plain, node.inputs))
    regions = tuple(_assign(region, target, forms.b.region(region.name), forms.b.symbols) for region in node.regions)
    forms.b.nodes.append(Node(node.op, inputs, node.outputs, node.attrs, regions, node.source))
    for value in node.outputs:
        forms.set_plain(value, value)
