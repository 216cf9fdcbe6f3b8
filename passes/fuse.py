"""Fusion: elementwise chains, data movement, row reductions and contractions become kernels without intermediates.

Runs last before lowering, on a canonical graph: what is still a node afterwards is one kernel (or, for a bare
``reshape``, none). Each group grows from its root towards its producers; since only the root's value
leaves a kernel and nothing else can depend on the middle of one, no cycle can arise, and the kernel stands where its
root stood, after every symbol its members use was bound.

    %a = map(%x, fn=neg)                          %b = fused(%x, %y, kind=map) {
    %b = map(%a, %y, fn=add)            -->           %a = map(%x, fn=neg); %b = map(%a, %y, fn=add) }

A producer joins when all its users are in one kernel that evaluates it about once per result element. Scalars,
broadcasts and other cheap expressions are repeated in every kernel that reads them; everything else with several
users is computed once and stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcompile.ir.access import SOURCES, inlinable
from tcompile.ir.attention import Attention, find_attention
from tcompile.ir.dims import Range
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.target import Target
from tcompile.passes.fuse_costs import cost, estimate
from tcompile.passes.fuse_groups import (
    BORDER_WRITERS,
    CONTRACTIONS,
    PLAIN_CONTRACTIONS,
    Group,
    Kind,
    Surroundings,
    is_border,
    is_code,
    is_contraction,
    reduces_trailing,
)
from tcompile.passes.fuse_regions import border_reshapes, fused_node

REPEATS = 3  # kernels that may each evaluate a cheap expression rather than share a buffer


@dataclass(frozen=True)
class Fuse:
    """The pass. Which ops its kernels are made around depends on the target's layouts, nothing else does."""

    target: Target
    name: str = "fuse"

    def apply(self, graph: Graph) -> Graph:
        """A graph of ``fused`` nodes, bare reshapes and ops that no kernel absorbs. The argument is left alone."""
        return _fuse(graph, graph.symbols, CONTRACTIONS if self.target.channel_block else PLAIN_CONTRACTIONS)


def _fuse(graph: Graph, symbols: dict[str, Range], contractions: Mapping[str, str]) -> Graph:
    planner = _Planner(graph, symbols, contractions)
    groups = planner.plan()
    positions = {node: number for number, node in enumerate(graph.nodes)}
    placed: dict[int, list[Node]] = {}
    for group in groups:
        for node in _finish(group, symbols, contractions):
            placed.setdefault(positions[group.root], []).append(node)
    for view in planner.views:
        placed.setdefault(positions[view], []).append(view)
    nodes = [node for position in sorted(placed) for node in placed[position]]
    return Graph(graph.name, graph.inputs, graph.outputs, nodes, graph.symbols, graph.output_names)


class _Planner:
    """Assigns every node to the kernels that evaluate it, users before producers."""

    def __init__(self, graph: Graph, symbols: dict[str, Range], contractions: Mapping[str, str]) -> None:
        self.graph, self.symbols, self.contractions = graph, symbols, contractions
        self.users = graph.users()
        self.producers = graph.producers()
        self.returned = set(graph.outputs)
        attentions = self._attentions()
        self.inside = {node: found.second for found in attentions.values() for node in found.members}
        splats = (node.output for node in graph.nodes if node.op == "broadcast" and not node.attrs["axes"])
        self.around = Surroundings(attentions, frozenset(splats), contractions, self._borders())
        self.homes: dict[Node, list[Group]] = {}  # the kernels a node is evaluated in; none: dead
        self.groups: list[Group] = []
        self.views: dict[Node, None] = {}  # reshapes of stored values that a group had taken

    def plan(self) -> list[Group]:
        """Groups in reverse order of their roots."""
        for node in reversed(self.graph.nodes):
            self._place(node)
        for group in self.groups:
            self.views.update(dict.fromkeys(border_reshapes(group)))
        for view in [node for node in self.views if any(group.root is node for group in self.homes[node])]:
            del self.views[view]  # it stands on its own already
        return self.groups

    def _attentions(self) -> dict[Node, Attention]:
        """By the last product of each; those whose inner values nothing else reads."""
        found: dict[Node, Attention] = {}
        for node in self.graph.nodes:
            attention = find_attention(node, self.producers)
            if attention is not None and self._is_closed(attention):
                found[node] = attention
        return found

    def _borders(self) -> frozenset[Node]:
        """The pads whose operand is made of one contraction that can write the border, and of nothing that leaves the kernel."""
        return frozenset(node for node in self.graph.nodes if node.op == "pad" and self._is_border(node))

    def _is_border(self, pad: Node) -> bool:
        inside, pending, anchors = {pad}, [pad.inputs[0]], []
        while pending:
            value = pending.pop()
            made = self.producers.get(value)
            if made is None or made in inside or made.op in SOURCES or made.op == "broadcast":
                continue
            if value in self.returned or not inside.issuperset(self.users.get(value, ())):
                continue  # it is stored, or another path may come to it yet
            inside.add(made)
            if made.op == "map":
                pending.extend(made.inputs)
            elif made.op in BORDER_WRITERS:
                anchors.append(made)
        return len(anchors) == 1 and is_border(pad, anchors[0])

    def _is_closed(self, attention: Attention) -> bool:
        inner = {attention.second, *attention.members}
        values = [value for node in attention.members for value in node.outputs]
        return self.returned.isdisjoint(values) and all(inner.issuperset(self.users.get(value, ())) for value in values)

    def _place(self, node: Node) -> None:
        if node in self.inside:
            self.homes[node] = self.homes[self.inside[node]]
            return
        if len(node.outputs) != 1 or not (inlinable(node) or node.op == "reduce" or is_contraction(node, self.contractions)):
            self._open(node, Kind.SINGLE)
            return
        readers = self._readers(node)
        stored = node.output in self.returned or any(group.kind is Kind.SINGLE for group in readers)
        homes: list[Group] = []
        if inlinable(node) and _free(node):
            homes = [group for group in readers if group.absorb(node)]
            stored |= len(homes) < len(readers)
        elif not stored and (len(readers) == 1 or (len(readers) <= REPEATS and self._repeatable(node))):
            homes = self._join_all(node, readers)
        self.homes[node] = homes
        if stored or not homes:
            self._open(node, self._own_kind(node))

    def _readers(self, node: Node) -> list[Group]:
        found: dict[Group, None] = {}
        for value in node.outputs:
            for user in self.users.get(value, ()):
                found.update(dict.fromkeys(self.homes[user]))
        return list(found)

    def _join_all(self, node: Node, readers: list[Group]) -> list[Group]:
        """All readers take the node, or none: a value that is stored anyway is read, not computed again."""
        if is_code(node):
            below = self._contraction_below(node)
            if below is not None and any(group.anchor or group.awaited not in (None, below) for group in readers):
                return []  # another contraction's codes: its own kernel writes them, narrower than its sums
            for group in readers:
                group.awaited = below
        if len(readers) > 1 and not all(group.can_repeat(node) for group in readers):
            return []
        return [group for group in readers if group.absorb(node)]

    def _contraction_below(self, node: Node) -> Node | None:
        """The contraction that a code is made of, through elementwise nodes that nothing else reads."""
        pending, seen = [node], set()
        while pending:
            made = pending.pop()
            if is_contraction(made):
                return made
            for value in made.inputs:
                inner = self.producers.get(value)
                if inner is not None and inner not in seen and (inner.op in ("map", "convert") or is_contraction(inner)):
                    seen.add(inner)
                    if len(self.users.get(value, ())) == 1 and not is_code(inner):
                        pending.append(inner)
        return None

    def _repeatable(self, node: Node) -> bool:
        """Cheap, and reading its operands again costs no more than reading its result."""
        if not inlinable(node) or cost(node) > 1.0:
            return False
        mine = estimate(node.output.type.size, self.symbols)
        return sum(self._stored_size(value) * 8 > mine for value in node.inputs) <= 1

    def _stored_size(self, value: Value) -> float:
        """Elements that reading a value touches: a broadcast has those of its operand."""
        while value in self.producers and self.producers[value].op in ("broadcast", "reshape"):
            value = self.producers[value].inputs[0]
        return estimate(value.type.size, self.symbols)

    def _own_kind(self, node: Node) -> Kind:
        if node.op in ("constant", "reshape"):
            return Kind.SINGLE  # a weight, or another view of its operand's buffer
        if inlinable(node):
            return Kind.MAP
        if node.op == "reduce":
            return Kind.ROWS if reduces_trailing(node) else Kind.SINGLE
        return Kind(self.contractions[node.op])

    def _open(self, node: Node, kind: Kind) -> None:
        group = Group(node, kind, self.symbols, self.around)
        self.groups.append(group)
        self.homes.setdefault(node, []).append(group)


def _free(node: Node) -> bool:
    """Worth no buffer whoever reads it."""
    return node.op in SOURCES or node.op == "broadcast"


def _finish(group: Group, symbols: dict[str, Range], contractions: Mapping[str, str]) -> list[Node]:
    if group.kind is not Kind.SINGLE:
        return [fused_node(group)]
    node = group.root
    regions = tuple(_fuse(region, symbols, contractions) for region in node.regions)
    return [Node(node.op, node.inputs, node.outputs, node.attrs, regions, node.source) if regions else node]
