"""Elementwise work and data movement: one loop nest over the output, everything inlined.

map, convert, bitcast, broadcast, transpose, slice, pad, iota, gather*, concat, dim, fused[map]
"""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.codegen.access import ravel, reshaped
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import index_value
from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.graph import Node, Value


def lower_map(node: Node, scope: Scope) -> list[Draft]:
    """One kernel for all outputs; a bare ``concat`` gets one per operand, so that none is masked."""
    if node.op == "concat":
        return [_place(node, k, scope) for k in range(len(node.inputs))]
    draft = Draft(_name(node), node, scope)
    results = node.regions[0].outputs if node.op == "fused" else node.outputs
    if node.op != "fused":
        draft.inliner.producers = {**draft.inliner.producers, node.output: node}
    store_elements(draft, list(zip(node.outputs, results, strict=True)))
    return [draft]


def store_elements(draft: Draft, pairs: Sequence[tuple[Value, Value]]) -> None:
    """Stores (output, value) pairs; those of one shape, or one size, share a loop nest."""
    pending = list(pairs)
    while pending:
        shape = pending[0][0].shape
        here = [pair for pair in pending if pair[0].type.size == pending[0][0].type.size]
        pending = [pair for pair in pending if pair not in here]
        with draft.nest.loops(shape, independent=True) as at:
            # all values first: a store ends the sharing of loads
            elements = []
            for output, value in here:
                indices = at if value.shape == shape else reshaped(at, shape, value.shape, draft.nest.ranges)
                elements.append((output, draft.element(value, indices)))
            for output, element in elements:
                draft.nest.store(draft.write(output), ravel(at, shape), element)
        draft.flops = draft.flops + _flops(draft.node, shape)


def lower_dims(node: Node, scope: Scope) -> list[Draft]:
    """The values of dimensions, one store each."""
    draft = Draft("dim", node, scope)
    for k, expr in enumerate(node.attrs["exprs"]):
        draft.nest.store(draft.write(node.output), k, index_value(expr))
    return [draft]


def _flops(node: Node, shape: Shape) -> DimLike:
    """Elementwise operations of one nest: one for each function and element."""
    functions = sum(inner.op == "map" for inner in node.regions[0].nodes) if node.op == "fused" else 1
    return product(shape) * functions


def _place(node: Node, k: int, scope: Scope) -> Draft:
    """Copies operand k of a concat to its part of the output."""
    draft = Draft("concat", node, scope)
    operand, axis, output = node.inputs[k], node.attrs["axis"], node.output
    start = sum((other.shape[axis] for other in node.inputs[:k]), 0)
    with draft.nest.loops(operand.shape, independent=True) as at:
        target = (*at[:axis], at[axis] + start, *at[axis + 1 :])
        draft.store(output, target, draft.element(operand, at))
    return draft


def _name(node: Node) -> str:
    if node.op == "map":
        return node.attrs["fn"]
    if node.op != "fused":
        return node.op
    inner = [other.attrs["fn"] if other.op == "map" else other.op for other in node.regions[0].nodes]
    return "_".join(dict.fromkeys(name for name in inner if name not in ("constant", "broadcast", "reshape")))[:40] or "map"
