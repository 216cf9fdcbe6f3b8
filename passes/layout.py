"""Layouts: convolutions compute on channel blocks, products with constant matrices on packed panels.

Runs after recognition, when constants are folded and patterns have their final ops, and before fusion, which then
sees the packed ops and plain data movement. One walk in order: each value exists plain, blocked or both, and an op
computes in the form its operand has. So packs appear where a plain value enters the blocked part of a model, and
unpacks where one leaves it; between two convolutions there are none. A pointwise convolution of a plain value may stay
plain. A target without channel blocks keeps the graph.

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
from tcompile.passes.layout_forms import Forms
from tcompile.passes.layout_rules import RULES


@dataclass(frozen=True)
class AssignLayouts:
    """The pass. The target's registers decide how wide the panels of a packed matrix are.

    ``winograd`` allows Winograd's algorithm for convolutions of f32: its sums round up to a few times as much as a
    direct one's, by the size of its tile, and a NaN or infinity in an input reaches all results of the tile. So it does Strassen's
    for pointwise ones, of twice the rounding.
    """

    target: Target
    winograd: bool = True
    name: str = "layout"

    def apply(self, graph: Graph) -> Graph:
        """The graph in packed layouts; inputs and outputs stay plain."""
        if not self.target.channel_block:
            return graph
        builder = Builder(graph.name)
        builder.symbols = graph.symbols
        return remove_dead(self._assign(graph, builder))

    def _assign(self, graph: Graph, builder: Builder, *, turns: bool = False) -> Graph:
        builder.inputs = list(graph.inputs)
        forms = Forms(graph, builder, self.target, winograd=self.winograd, turns=turns)
        for node in graph.nodes:
            builder.source = node.source
            if node in forms.done:
                continue
            rule = RULES.get(node.op)
            if rule is None or not rule(node, forms):
                self._keep(node, forms)
            forms.release(node)
        outputs = tuple(map(forms.plain, graph.outputs))
        return Graph(graph.name, graph.inputs, outputs, builder.nodes, graph.symbols, graph.output_names)

    def _keep(self, node: Node, forms: Forms) -> None:
        """The node as it was, on plain operands."""
        inputs = tuple(map(forms.plain, node.inputs))
        turns = forms.turns or node.op == "loop"
        regions = tuple(self._assign(region, forms.b.region(region.name), turns=turns) for region in node.regions)
        forms.b.nodes.append(Node(node.op, inputs, node.outputs, node.attrs, regions, node.source))
        for value in node.outputs:
            forms.set_plain(value, value)
