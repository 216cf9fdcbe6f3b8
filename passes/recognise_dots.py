"""Transposes next to a ``dot_general`` become its axis lists; part of ``passes/recognise.py``. Exact: nothing is computed."""

from __future__ import annotations

from tcompile.ir.graph import Node
from tcompile.ir.ops_contraction import free_axes
from tcompile.passes.rewrite import Context, Patch, patch, rule


@rule("dot_general")
def transposed_operand(node: Node, context: Context) -> Patch | None:
    # dot(transpose(a), b) reads a's axes under other numbers, where a's free axes keep their order
    for position, value in enumerate(node.inputs):
        inner = context.producer(value, "transpose")
        if inner is None:
            continue
        perm = inner.attrs["perm"]
        free = [perm[axis] for axis in free_axes(value.rank, node.attrs["batch"][position], node.attrs["contract"][position])]
        if free != sorted(free):
            continue
        attrs = dict(node.attrs)
        for name in ("batch", "contract"):
            attrs[name] = tuple(tuple(perm[axis] for axis in axes) if k == position else axes for k, axes in enumerate(attrs[name]))
        operands = [inner.inputs[0] if k == position else other for k, other in enumerate(node.inputs)]
        b = context.build(node)
        return patch("transpose into dot", b, b.emit("dot_general", *operands, **attrs))
    return None


@rule("transpose")
def transposed_result(node: Node, context: Context) -> Patch | None:
    # the transpose that swaps the free axes of a and b is dot(b, a)
    dot = context.producer(node.inputs[0], "dot_general")
    if dot is None or not context.used_once(dot.output):
        return None
    batch, contract = dot.attrs["batch"], dot.attrs["contract"]
    counts = [len(free_axes(value.rank, batch[k], contract[k])) for k, value in enumerate(dot.inputs)]
    n = len(batch[0])
    swapped = (*range(n), *range(n + counts[0], n + sum(counts)), *range(n, n + counts[0]))
    if node.attrs["perm"] != swapped:
        return None
    a, c = dot.inputs
    b = context.build(dot)
    return patch("transpose of a dot", b, b.emit("dot_general", c, a, batch=batch[::-1], contract=contract[::-1], dtype=dot.attrs["dtype"]))


@rule("dot_general")
def canonical_contraction(node: Node, context: Context) -> Patch | None:
    # the order of contracted axes does not matter: that of the left operand, increasing
    left, right = node.attrs["contract"]
    pairs = sorted(zip(left, right, strict=True))
    ordered = (tuple(a for a, _ in pairs), tuple(b for _, b in pairs))
    if ordered == (left, right):
        return None
    b = context.build(node)
    return patch("order of contraction", b, b.emit("dot_general", *node.inputs, **{**node.attrs, "contract": ordered}))


RULES = (transposed_operand, transposed_result, canonical_contraction)
