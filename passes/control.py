"""Algebra of control flow; part of ``passes/canonicalise.py``."""

from __future__ import annotations

from tcompile.ir.graph import Graph, Node
from tcompile.passes.rewrite import Context, Patch, patch, rule


@rule("if")
def known_branch(node: Node, context: Context) -> Patch | None:
    """An ``if`` on a constant is the branch it takes. Symbols that the node bound are bound from the branch's extents."""
    cond = context.constant(node.inputs[0])
    if cond is None:
        return None
    region = node.regions[0 if bool(cond) else 1]
    renamed = dict(zip(region.inputs, node.inputs[1:], strict=True))
    b = context.build(node)
    for inner in region.nodes:
        inputs = tuple(renamed.get(value, value) for value in inner.inputs)
        b.nodes.append(Node(inner.op, inputs, inner.outputs, inner.attrs, inner.regions, inner.source))
    values = [renamed.get(value, value) for value in region.outputs]
    bound: set[str] = set()
    for output, axis, name in node.attrs.get("shape_symbols", ()):
        if name not in bound:
            b.emit_all("bind_dim", (b.dim(values[output].shape[axis]),), {"symbol": name})
            bound.add(name)
    return patch("if on a constant", b, *(b.reshape(value, old.shape) for value, old in zip(values, node.outputs, strict=True)))


@rule("loop")
def no_turns(node: Node, context: Context) -> Patch | None:
    """A loop of no turns gives its initial values; one with scans or changing shapes is left to run."""
    if node.attrs["scans"] or node.attrs.get("shape_symbols"):
        return None
    trip, cond = node.attrs["trip"], context.constant(node.inputs[1])
    if trip != 0 and (cond is None or bool(cond)):
        return None
    return patch("loop of no turns", None, *node.inputs[2 : 2 + node.attrs["carried"]])


@rule("if", "loop")
def sink_constants(node: Node, context: Context) -> Patch | None:
    """A captured constant moves into the regions that read it, where it folds and packs; an unread capture goes."""
    first = 1 if node.op == "if" else 2 + node.attrs["carried"]
    read = {value for region in node.regions for inner in region.nodes for value in inner.inputs}
    read.update(value for region in node.regions for value in region.outputs)
    offset = len(node.regions[0].inputs) - len(node.inputs)  # from a position in operands to one in region inputs
    moved = [
        at
        for at in range(first, len(node.inputs))
        if context.producer(node.inputs[at], "constant") or all(region.inputs[at + offset] not in read for region in node.regions)
    ]
    if not moved:
        return None
    makers = {at + offset: context.producer(node.inputs[at], "constant") for at in moved}
    b = context.build(node)
    regions = [_without_inputs(region, makers) for region in node.regions]
    inputs = [value for at, value in enumerate(node.inputs) if at not in moved]
    outputs = b.emit_all(node.op, inputs, dict(node.attrs), regions)
    return patch("constants into regions", b, *outputs)


def _without_inputs(region: Graph, makers: dict[int, Node | None]) -> Graph:
    """The region with some inputs gone, or made inside by a copy of the constant node."""
    constants = [
        Node("constant", (), (region.inputs[at],), maker.attrs, (), maker.source) for at, maker in makers.items() if maker is not None
    ]
    inputs = tuple(value for at, value in enumerate(region.inputs) if at not in makers)
    return Graph(region.name, inputs, region.outputs, [*constants, *region.nodes], region.symbols, region.output_names)


RULES = (known_branch, no_turns, sink_constants)
