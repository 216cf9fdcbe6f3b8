"""Elementwise work and data movement: one loop nest over the output, everything inlined.

map, convert, bitcast, broadcast, transpose, slice, pad, iota, gather*, concat, dim, fused[map]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcompile.codegen.access import reshaped
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import index_value
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.graph import Node, Value

Pair = tuple[Value, Value]  # an output, and the value of the region that it is
Parts = tuple[int, tuple[DimLike, ...]]

_DEPTH = 8  # elementwise functions that a concat is looked for behind


def lower_map(node: Node, scope: Scope) -> list[Draft]:
    """One nest per shape of the outputs; where a result is put together from parts, one per part."""
    results = node.regions[0].outputs if node.op == "fused" else node.outputs
    producers = {value: inner for inner in (node.regions[0].nodes if node.op == "fused" else (node,)) for value in inner.outputs}
    pending = list(zip(node.outputs, results, strict=True))
    drafts: list[Draft] = []
    while pending:
        size = pending[0][0].type.size
        group = [pair for pair in pending if pair[0].type.size == size]
        pending = [pair for pair in pending if pair not in group]
        drafts += _group(node, group, producers, scope)
    return drafts


def _group(node: Node, pairs: Sequence[Pair], producers: Mapping[Value, Node], scope: Scope) -> list[Draft]:
    """The kernels that store outputs of one size. Parts without axes around them get a kernel each: threads share its turns."""
    parts = parts_of(pairs[0][1], producers)
    shape = pairs[0][0].shape
    if parts is None or any(output.shape != shape for output, _ in pairs):
        return [_whole(node, pairs, shape, _channel_blocks(pairs[0][1], producers), scope)]
    axis, extents = parts
    starts = [sum(extents[:k], 0) for k in range(len(extents))]
    pieces = [(start, extent) for start, extent in zip(starts, extents, strict=True) if extent != 0]
    if product(shape[:axis]) == 1 or any(output in scope.storage for output, _ in pairs):
        return [_pieces(node, pairs, shape, axis, [piece], scope) for piece in pieces]
    return [_pieces(node, pairs, shape, axis, pieces, scope)]


def _whole(node: Node, pairs: Sequence[Pair], shape: Shape, blocks: tuple[int, int] | None, scope: Scope) -> Draft:
    draft = _draft(node, scope)
    if blocks is None:
        with draft.nest.loops(shape, independent=True) as at:
            _store(draft, pairs, at, shape)
    else:
        axis, block = blocks
        split = (*shape[:axis], dims.floordiv(shape[axis], block), block, *shape[axis + 1 :])
        with draft.nest.loops(split, independent=True) as at:
            _store(draft, pairs, (*at[:axis], at[axis] * block + at[axis + 1], *at[axis + 2 :]), shape)
    draft.flops = _flops(node, shape)
    return draft


def _channel_blocks(value: Value, producers: Mapping[Value, Node]) -> tuple[int, int] | None:
    """(axis, block) where a value is unpacked from whole blocks: two loops for the axis make its reads linear."""
    for _ in range(_DEPTH):
        node = producers.get(value)
        if node is None or not node.inputs:
            return None
        if node.op == "unpack":
            axis, block = node.attrs["axis"], node.attrs["block"]
            return (axis, block) if dims.mod(node.output.shape[axis], block) == 0 else None
        if node.op not in ("map", "convert", "bitcast"):
            return None
        value = next((operand for operand in node.inputs if _made_by(operand, producers, ("unpack",))), node.inputs[0])
    return None


def _pieces(node: Node, pairs: Sequence[Pair], shape: Shape, axis: int, pieces: Sequence[tuple[DimLike, DimLike]], scope: Scope) -> Draft:
    """for the axes before: for each piece (start, extent): for i in extent, the axes behind: out[.., start + i, ..] = ..."""
    draft = _draft(node, scope)
    with draft.nest.loops(shape[:axis], independent=True) as outer:
        for start, extent in pieces:
            with draft.nest.loops((extent, *shape[axis + 1 :]), independent=True) as (i, *inner):
                _store(draft, pairs, (*outer, start + i, *inner), shape)
    draft.flops = _flops(node, (*shape[:axis], sum((extent for _, extent in pieces), 0), *shape[axis + 1 :]))
    return draft


def _draft(node: Node, scope: Scope) -> Draft:
    draft = Draft(_name(node), node, scope)
    if node.op != "fused":
        draft.inliner.producers = {**draft.inliner.producers, node.output: node}
    return draft


def _store(draft: Draft, pairs: Sequence[Pair], at: Shape, shape: Shape) -> None:
    """One element of each output. All values come first: a store ends the sharing of loads."""
    elements = []
    for output, value in pairs:
        indices = at if value.shape == shape else reshaped(at, shape, value.shape, draft.nest.ranges)
        elements.append((output, draft.element(value, indices)))
    for output, element in elements:
        draft.store(output, at if output.shape == shape else reshaped(at, shape, output.shape, draft.nest.ranges), element)


def parts_of(value: Value, producers: Mapping[Value, Node]) -> Parts | None:
    """The axis and the extents of the parts that a value is put together from, seen through elementwise functions.

    In each part, the indices prove which operand of the concat is read, or that a pad is outside: no element is masked.
    """
    for _ in range(_DEPTH):
        node = producers.get(value)
        if node is None:
            return None
        match node.op:
            case "concat":
                return node.attrs["axis"], tuple(operand.shape[node.attrs["axis"]] for operand in node.inputs)
            case "pad":
                return _padded(node)
            case "map" | "convert" | "bitcast":
                value = next((operand for operand in node.inputs if _made_by(operand, producers, ("concat", "pad"))), node.inputs[0])
            case _:
                return None
    return None


def _made_by(value: Value, producers: Mapping[Value, Node], ops: tuple[str, ...]) -> bool:
    node = producers.get(value)
    return node is not None and node.op in ops


def _padded(node: Node) -> Parts | None:
    """The last axis as pad, operand, pad; other axes are decided row by row."""
    if node.attrs["mode"] != "constant" or not node.output.shape:
        return None
    low, high = node.attrs["low"][-1], node.attrs["high"][-1]
    return None if low == 0 and high == 0 else (node.output.rank - 1, (low, node.inputs[0].shape[-1], high))


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


def _name(node: Node) -> str:
    if node.op == "map":
        return node.attrs["fn"]
    if node.op != "fused":
        return node.op
    inner = [other.attrs["fn"] if other.op == "map" else other.op for other in node.regions[0].nodes]
    return "_".join(dict.fromkeys(name for name in inner if name not in ("constant", "broadcast", "reshape")))[:40] or "map"
