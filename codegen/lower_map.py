"""Elementwise work and data movement: one loop nest over the output, everything inlined.

map, convert, bitcast, broadcast, transpose, slice, pad, iota, gather*, concat, dim, fused[map]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from tcompile.codegen.access import reshaped
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import both, compare, index_value, within
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Shape, product
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
    shape = pairs[0][0].shape
    value = pairs[0][1]
    if len(pairs) == 1 and shape == value.shape:
        border = _border(value, producers)
        packed = _packed(value if border is None else border.inputs[0], producers)
        if packed is not None and border is not None:
            return [_framed(node, pairs[0][0], border, packed, scope)]
        if packed is not None and _is_ragged(packed):
            return [_ragged(node, pairs[0], packed, scope)]
    parts = parts_of(pairs[0][1], producers)
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
    draft.written_once.update(output for output, _ in pairs)
    if blocks is None:
        with draft.nest.loops(shape, independent=True) as at:
            _store(draft, pairs, at, shape)
    else:
        axis, block = blocks
        whole, rest = dims.floordiv(shape[axis], block), dims.mod(shape[axis], block)

        def channels(outer: Shape, first: DimLike, count: DimLike) -> None:
            with draft.nest.loops((count, *shape[axis + 1 :]), independent=True) as (lane, *inner):
                _store(draft, pairs, (*outer, first + lane, *inner), shape)

        with draft.nest.loops((*shape[:axis], dims.ceildiv(shape[axis], block)), independent=True) as (*outer, number):
            if rest == 0 or whole == 0:
                channels(tuple(outer), number * block, block if rest == 0 else rest)
            else:
                with draft.nest.branch(compare("lt", number, whole)):
                    channels(tuple(outer), _known(draft, number, whole) * block, block)
                with draft.nest.otherwise():
                    channels(tuple(outer), whole * block, rest)
    draft.flops = _flops(node, shape)
    return draft


def _channel_blocks(value: Value, producers: Mapping[Value, Node]) -> tuple[int, int] | None:
    """(axis, block) where a value is unpacked: two loops for the axis make its reads linear."""
    for _ in range(_DEPTH):
        node = producers.get(value)
        if node is None or not node.inputs:
            return None
        if node.op == "unpack":
            axis, block = node.attrs["axis"], node.attrs["block"]
            extent = node.output.shape[axis]
            return (axis, block) if isinstance(extent, int) or dims.mod(extent, block) == 0 else None
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


def _framed(node: Node, output: Value, border: Node, packed: Node, scope: Scope) -> Draft:
    """A pad around inner axes, by rows: those of the border are filled, of others the two ends, and no element is masked.

    for the axes before the last padded one:  if inside: fill; the operand's row; fill  else: fill
    """
    draft = _draft(node, scope)
    nest, x, shape = draft.nest, border.inputs[0], output.shape
    low, high = border.attrs["low"], border.attrs["high"]
    padded = [k for k in range(len(shape)) if low[k] != 0 or high[k] != 0]
    last = padded[-1]

    def fill(at: Shape, start: DimLike, count: DimLike) -> None:
        if count != 0:
            with nest.loops((count, *shape[last + 1 :]), independent=True) as (i, *inner):
                draft.store(output, (*at, start + i, *inner), draft.element(border.inputs[1], ()))

    def row(at: Shape) -> None:
        fill(at, 0, low[last])
        with nest.loops((x.shape[last], *shape[last + 1 :]), independent=True) as (i, *inner):
            element = draft.element(x, (*(k - amount for k, amount in zip(at, low, strict=False)), i, *inner))
            draft.store(output, (*at, low[last] + i, *inner), element)
        fill(at, low[last] + x.shape[last], high[last])

    with nest.loops(shape[:last], independent=True) as outer:
        inside = [within(outer[k] - low[k], x.shape[k], nest.ranges) for k in padded[:-1]]
        if not inside:
            _by_blocks(draft, packed, outer, row)
        else:
            with nest.branch(reduce(both, inside)):
                at = tuple(_known(draft, i - amount, extent) + amount for i, amount, extent in zip(outer, low, x.shape, strict=False))
                _by_blocks(draft, packed, at, row)
            with nest.otherwise():
                fill(outer, 0, shape[last])
    draft.flops = _flops(node, shape)
    return draft


def _known(draft: Draft, index: DimLike, extent: DimLike) -> DimLike:
    """An index of which it is known that it is inside of an extent."""
    ranges = draft.nest.ranges
    proved = dims.nonnegative(index, ranges) and dims.nonnegative(extent - 1 - index, ranges)
    return index if proved else draft.nest.let_index(index_value(index), Range(0, extent - 1))


def _ragged(node: Node, pair: Pair, packed: Node, scope: Scope) -> Draft:
    """What is packed into blocks of which the last one has pad lanes."""
    draft = _draft(node, scope)
    output, value = pair
    draft.written_once.add(output)
    axis = packed.attrs["axis"]

    def block(at: Shape) -> None:
        with draft.nest.loops(output.shape[axis + 1 :], independent=True) as inner:
            draft.store(output, (*at, *inner), draft.element(value, (*at, *inner)))

    with draft.nest.loops(output.shape[: axis + 1], independent=True) as at:
        _by_blocks(draft, packed, at, block)
    draft.flops = _flops(node, output.shape)
    return draft


def _by_blocks(draft: Draft, packed: Node, at: Shape, emit: Callable[[Shape], None]) -> None:
    """Runs ``emit`` for a block of channels: knowing that all of its lanes are channels, or not."""
    axis, whole = packed.attrs["axis"], dims.floordiv(packed.inputs[0].shape[packed.attrs["axis"]], packed.attrs["block"])
    if not _is_ragged(packed) or whole == 0:
        emit(at)
        return
    with draft.nest.branch(compare("lt", at[axis], whole)):
        emit((*at[:axis], _known(draft, at[axis], whole), *at[axis + 1 :]))
    with draft.nest.otherwise():
        emit(at)


def _is_ragged(packed: Node) -> bool:
    """Whether the last block has pad lanes, behind blocks that have none."""
    channels, block = packed.inputs[0].shape[packed.attrs["axis"]], packed.attrs["block"]
    return isinstance(channels, int) and channels > block and channels % block != 0


def _border(value: Value, producers: Mapping[Value, Node]) -> Node | None:
    """The pad that a value is, with a number around its inner axes; None for other values."""
    node = producers.get(value)
    return node if node is not None and node.op == "pad" and node.attrs["mode"] == "constant" and _inside_last(node) else None


def _packed(value: Value, producers: Mapping[Value, Node]) -> Node | None:
    """The pack into channel blocks that a value is made of by elementwise functions."""
    for _ in range(_DEPTH):
        node = producers.get(value)
        if node is None or node.op == "pack":
            return node
        if node.op not in ("map", "convert", "bitcast"):
            return None
        value = next((operand for operand in node.inputs if _made_by(operand, producers, ("pack",))), node.inputs[0])
    return None


def _inside_last(node: Node) -> bool:
    """Whether a pad is around inner axes, with others outside of them and the lanes behind."""
    low, high = node.attrs["low"], node.attrs["high"]
    around = all(isinstance(n, int) and n >= 0 for n in low) and any(n != 0 for n in (*low, *high))
    return around and all(low[k] == 0 == high[k] for k in (0, 1, -1))


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
