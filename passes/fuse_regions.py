"""From a finished group to its ``fused`` node: reshapes of operands stay outside, the rest becomes a closed region."""

from __future__ import annotations

from tcompile.ir.graph import Graph, Node, Value
from tcompile.passes.fuse_groups import Group, Kind


def border_reshapes(group: Group) -> list[Node]:
    """Removes reshapes of operands from a group and returns them: a reshape of a stored value is another view of its buffer."""
    outside: list[Node] = []
    if group.kind is Kind.SINGLE:
        return outside
    while (view := next((node for node in group.members if _is_border_view(group, node)), None)) is not None:
        group.members.remove(view)
        outside.append(view)
    return outside


def fused_node(group: Group) -> Node:
    """The node whose region evaluates the group's members."""
    members = list(reversed(group.members))  # users were taken before their producers
    copies: dict[Value, Value] = {}
    defined = {value for node in members for value in node.outputs}
    operands = list(dict.fromkeys(value for node in members for value in node.inputs if value not in defined))
    inputs = tuple(copies.setdefault(value, Value(value.name, value.type)) for value in operands)
    nodes = []
    for node in members:
        outputs = tuple(copies.setdefault(value, Value(value.name, value.type)) for value in node.outputs)
        nodes.append(Node(node.op, tuple(copies[value] for value in node.inputs), outputs, node.attrs, node.regions, node.source))
    results = tuple(copies[value] for value in group.root.outputs)
    region = Graph(group.kind.value, inputs, results, nodes, {}, tuple(value.name for value in results))
    # one constant serves all equal ones: its own source would name nodes that have nothing to do with this kernel
    source = tuple(dict.fromkeys(name for node in members if node.op != "constant" for name in node.source))
    return Node("fused", tuple(operands), group.root.outputs, {"kind": group.kind.value}, (region,), source)


def _is_border_view(group: Group, node: Node) -> bool:
    inner = {value for member in group.members for value in member.outputs}
    return node.op == "reshape" and node is not group.root and node.inputs[0] not in inner
