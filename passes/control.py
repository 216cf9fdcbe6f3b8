"""Algebra of control flow; part of ``passes/canonicalise.py``."""

from __future__ import annotations

from tcompile.ir.graph import Graph, Node
from tcompile.ir.ops_control import loop_scan_symbol
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


@rule("loop")
def unread_scans(node: Node, context: Context) -> Patch | None:
    """A stack of scan elements that nobody reads is not written. The symbol of its extent must be known without it."""
    carried, scans = node.attrs["carried"], node.outputs[node.attrs["carried"] :]
    kept = [k for k, value in enumerate(scans) if not context.unused(value)]
    if len(kept) == len(scans) or (not kept and loop_scan_symbol(node.attrs)) or node.attrs.get("scan_symbols"):
        return None
    (body,) = node.regions
    outputs = (*body.outputs[: 1 + carried], *(body.outputs[1 + carried + k] for k in kept))
    b = context.build(node)
    region = Graph(body.name, body.inputs, outputs, body.nodes, body.symbols, ())
    made = b.emit_all("loop", node.inputs, {**node.attrs, "scans": len(kept)}, [region])
    stacks = dict(zip(kept, made[carried:], strict=True))
    return patch("unread scans", b, *made[:carried], *(stacks.get(k, value) for k, value in enumerate(scans)))


@rule("loop")
def constant_carried(node: Node, context: Context) -> Patch | None:
    """A carried value that every turn hands on unchanged is a capture."""
    (body,), carried = node.regions, node.attrs["carried"]
    changing = {index for index, *_ in node.attrs.get("shape_symbols", ())}
    fixed = [k for k in range(carried) if body.outputs[1 + k] is body.inputs[1 + k] and k not in changing]
    if not fixed:
        return None
    kept = [k for k in range(carried) if k not in fixed]
    order = [*kept, *fixed]
    inputs = (*node.inputs[:2], *(node.inputs[2 + k] for k in order), *node.inputs[2 + carried :])
    takes = (body.inputs[0], *(body.inputs[1 + k] for k in order), *body.inputs[1 + carried :])
    gives = (body.outputs[0], *(body.outputs[1 + k] for k in kept), *body.outputs[1 + carried :])
    shapes = tuple((kept.index(index), *rest) for index, *rest in node.attrs.get("shape_symbols", ()))
    b = context.build(node)
    region = Graph(body.name, takes, gives, body.nodes, body.symbols, ())
    made = b.emit_all("loop", inputs, {**node.attrs, "carried": len(kept), "shape_symbols": shapes}, [region])
    finals = {**{k: node.inputs[2 + k] for k in fixed}, **dict(zip(kept, made, strict=False))}
    return patch("carried value that stays", b, *(finals[k] for k in range(carried)), *made[len(kept) :])


RULES = (known_branch, no_turns, constant_carried, sink_constants, unread_scans)
