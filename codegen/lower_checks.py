"""What a node requires of run-time extents beyond what its types prove, as expressions that must not be negative."""

from __future__ import annotations

from collections.abc import Iterator

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges
from tcompile.ir.graph import Node, Value

Requirement = tuple[DimLike, str]


def requirements(node: Node, ranges: Ranges) -> Iterator[Requirement]:
    """(expression that must be >= 0, message) pairs of a node and its fused region."""
    for inner in node.regions[0].nodes if node.op == "fused" else (node,):
        for expr, message in _RULES.get(inner.op, _nothing)(inner):
            known = dims.simplify(expr, ranges) if not isinstance(expr, int) else expr
            if not dims.nonnegative(known, ranges):
                yield known, message


def _nothing(node: Node) -> Iterator[Requirement]:
    return iter(())


def _equal(a: DimLike, b: DimLike, message: str) -> Iterator[Requirement]:
    gap = a - b
    if gap != 0:
        yield gap, message
        yield -gap, message


def _broadcast(node: Node) -> Iterator[Requirement]:
    (source,) = node.inputs
    for axis, extent in zip(node.attrs["axes"], source.shape, strict=True):
        wanted = node.output.shape[axis]
        if extent not in (1, wanted):
            # the gap is 0 exactly where extent is 1 or wanted
            gap = (extent - 1) * (extent - wanted)
            yield -(gap * gap), f"broadcast: {extent} must be {wanted} or 1"


def _reshape(node: Node) -> Iterator[Requirement]:
    (source,) = node.inputs
    message = f"reshape: {source.type} does not have the elements of {node.output.type}"
    for extent in node.output.shape:
        yield extent, message
    yield from _equal(source.type.size, node.output.type.size, message)


def _slice(node: Node) -> Iterator[Requirement]:
    (source,) = node.inputs
    for start, size, step, extent in zip(node.attrs["start"], node.attrs["size"], node.attrs["step"], source.shape, strict=True):
        yield size, f"slice: a negative extent {size}"
        last = start + (size - 1) * step
        message = f"slice: {size} elements from {start} by {step} leave an axis of extent {extent}"
        low, high = (start, extent - 1 - last) if step > 0 else (last, extent - 1 - start)
        some = 1 if isinstance(size, int) and size > 0 else dims.minimum(size, 1)
        for slack in (low, high):
            if not isinstance(slack, int) or slack < 0:
                yield slack * some, message


def _pad(node: Node) -> Iterator[Requirement]:
    for amount in (*node.attrs["low"], *node.attrs["high"]):
        yield amount, f"pad: a negative amount {amount}"
    if node.attrs["mode"] != "constant":
        source = node.inputs[0]
        for extent, low, high in zip(source.shape, node.attrs["low"], node.attrs["high"], strict=True):
            if low != 0 or high != 0:
                yield extent - 1, f"pad: the mode {node.attrs['mode']} needs an axis with elements"


def _concat(node: Node) -> Iterator[Requirement]:
    axis = node.attrs["axis"]
    for operand in node.inputs:
        for k, (ours, wanted) in enumerate(zip(operand.shape, node.output.shape, strict=True)):
            if k != axis:
                yield from _equal(ours, wanted, f"concat: {operand.type} does not fit {node.output.type}")


def _dot(node: Node) -> Iterator[Requirement]:
    a, b = node.inputs
    for name in ("batch", "contract"):
        for i, j in zip(*node.attrs[name], strict=True):
            yield from _equal(a.shape[i], b.shape[j], f"dot_general: {a.type} and {b.type} do not fit")


def _conv(node: Node) -> Iterator[Requirement]:
    x, w = node.inputs
    yield from _equal(x.shape[1], w.shape[1] * node.attrs["groups"], f"conv: {x.type} does not have the channels of {w.type}")


def _gather_elements(node: Node) -> Iterator[Requirement]:
    source, indices = node.inputs[:2]
    for k, (extent, wanted) in enumerate(zip(source.shape, indices.shape, strict=True)):
        if k != node.attrs["axis"]:
            yield extent - wanted, f"{node.op}: {indices.type} leaves {source.type}"
    if node.op == "scatter_elements":
        yield from _same_shape(indices, node.inputs[2], node.op)


def _scatter_nd(node: Node) -> Iterator[Requirement]:
    x, indices, updates = node.inputs
    shape = (*indices.shape[:-1], *x.shape[indices.shape[-1] :])
    for ours, wanted in zip(updates.shape, shape, strict=True):
        yield from _equal(ours, wanted, f"scatter_nd: updates {updates.type} do not fit {indices.type}")


def _same_shape(a: Value, b: Value, op: str) -> Iterator[Requirement]:
    for ours, wanted in zip(a.shape, b.shape, strict=True):
        yield from _equal(ours, wanted, f"{op}: {a.type} and {b.type} differ")


_RULES = {
    "broadcast": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
    "dot_general": _dot,
    "conv": _conv,
    "gather_elements": _gather_elements,
    "scatter_elements": _gather_elements,
    "scatter_nd": _scatter_nd,
}
