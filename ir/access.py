"""Which element of each operand an op reads for one element of its result: the algebra fusion reasons with.

Covers the ops whose every result element depends on at most one element per operand; a kernel can evaluate such an op
wherever it needs a value, without a buffer. Indices are expressions over iteration variables.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges, Shape
from tcompile.ir.graph import Node, Value

ELEMENTWISE = frozenset({"map", "convert", "bitcast"})
SOURCES = frozenset({"constant", "dim", "iota"})
VIEWS = frozenset({"broadcast", "reshape", "transpose", "slice", "pack", "unpack"})  # every element is one of the operand's (or a zero)
MOVEMENT = VIEWS | {"pad", "concat", "gather", "gather_elements", "gather_nd"}
INLINABLE = ELEMENTWISE | SOURCES | MOVEMENT

_UNKNOWN = dims.symbol("?")  # an index that is data


def inlinable(node: Node) -> bool:
    """Whether each result element is an expression of at most one element per operand."""
    if node.op == "constant":
        return node.attrs["value"].size == 1
    return node.op in INLINABLE


def operand_indices(node: Node, index: Shape, ranges: Ranges) -> list[tuple[Value, Shape]]:
    """The operand elements that the element ``index`` of an inlinable node's result is made of."""
    if node.op in ELEMENTWISE:
        return [(operand, index) for operand in node.inputs]
    if node.op in SOURCES:
        return []
    if node.op == "concat":
        return _concat(node, index)
    if node.op in ("gather", "gather_elements", "gather_nd"):
        return _gather(node, index)
    data, *rest = node.inputs
    return [(data, _VIEW_INDEX[node.op](node, index, ranges)), *((scalar, ()) for scalar in rest)]


def flatten(index: Shape, shape: Shape) -> DimLike:
    """The row-major position of an element."""
    flat: DimLike = 0
    for i, extent in zip(index, shape, strict=True):
        flat = flat * extent + i
    return flat


def unflatten(flat: DimLike, shape: Shape, ranges: Ranges) -> Shape:
    """The indices of a row-major position; axes of extent 1 get 0, and so do all of a tensor without elements."""
    index: list[DimLike] = [0] * len(shape)
    if any(isinstance(extent, int) and extent == 0 for extent in shape):
        return tuple(index)
    axes = [axis for axis, extent in enumerate(shape) if extent != 1]
    for axis in reversed(axes):
        if axis == axes[0]:
            index[axis] = flat
        else:
            index[axis] = dims.mod(flat, shape[axis], ranges)
            flat = dims.floordiv(flat, shape[axis], ranges)
    return tuple(index)


def result_index(node: Node, index: Shape, ranges: Ranges) -> Shape | None:
    """Where the (first) operand's element ``index`` lands, for ops that move each of them to exactly one place; else None."""
    if node.op in ELEMENTWISE:
        return index
    if node.op == "transpose":
        return tuple(index[axis] for axis in node.attrs["perm"])
    if node.op == "reshape":
        return unflatten(flatten(index, node.inputs[0].shape), node.output.shape, ranges)
    if node.op == "pad" and node.attrs["mode"] == "constant":
        return tuple(i + low for i, low in zip(index, node.attrs["low"], strict=True))
    if node.op == "broadcast" and node.inputs[0].type.size == node.output.type.size:
        found: list[DimLike] = [0] * node.output.rank
        for axis, i in zip(node.attrs["axes"], index, strict=True):
            found[axis] = i
        return tuple(found)
    return None


def _reshape(node: Node, index: Shape, ranges: Ranges) -> Shape:
    return unflatten(flatten(index, node.output.shape), node.inputs[0].shape, ranges)


def _transpose(node: Node, index: Shape, ranges: Ranges) -> Shape:
    found: list[DimLike] = [0] * len(index)
    for axis, source in enumerate(node.attrs["perm"]):
        found[source] = index[axis]
    return tuple(found)


def _broadcast(node: Node, index: Shape, ranges: Ranges) -> Shape:
    data = node.inputs[0]
    return tuple(0 if extent == 1 else index[axis] for axis, extent in zip(node.attrs["axes"], data.shape, strict=True))


def _slice(node: Node, index: Shape, ranges: Ranges) -> Shape:
    return tuple(start + i * step for i, start, step in zip(index, node.attrs["start"], node.attrs["step"], strict=True))


def _pad(node: Node, index: Shape, ranges: Ranges) -> Shape:
    if node.attrs["mode"] != "constant":
        return tuple(i if i == 0 else _UNKNOWN for i in index)  # reflected: some element of the operand
    return tuple(i - low for i, low in zip(index, node.attrs["low"], strict=True))


def _pack(node: Node, index: Shape, ranges: Ranges) -> Shape:
    axis, block = node.attrs["axis"], node.attrs["block"]
    *outer, lane = index
    outer[axis] = outer[axis] * block + lane
    return tuple(outer)


def _unpack(node: Node, index: Shape, ranges: Ranges) -> Shape:
    axis, block = node.attrs["axis"], node.attrs["block"]
    outer = list(index)
    lane = dims.mod(outer[axis], block, ranges)
    outer[axis] = dims.floordiv(outer[axis], block, ranges)
    return (*outer, lane)


_VIEW_INDEX = {
    "reshape": _reshape, "transpose": _transpose, "broadcast": _broadcast, "slice": _slice,
    "pad": _pad, "pack": _pack, "unpack": _unpack,
}  # fmt: skip


def _concat(node: Node, index: Shape) -> list[tuple[Value, Shape]]:
    axis, offset, found = node.attrs["axis"], 0, []
    for operand in node.inputs:
        found.append((operand, (*index[:axis], index[axis] - offset, *index[axis + 1 :])))
        offset = offset + operand.shape[axis]
    return found


def _gather(node: Node, index: Shape) -> list[tuple[Value, Shape]]:
    data, indices = node.inputs
    if node.op == "gather_nd":
        unknown = (_UNKNOWN,) * (data.rank - node.attrs["batch"])
        return [(data, (*index[: node.attrs["batch"]], *unknown)), (indices, (*index[: indices.rank - 1], _UNKNOWN))]
    axis = node.attrs["axis"]
    if node.op == "gather_elements":
        return [(data, (*index[:axis], _UNKNOWN, *index[axis + 1 :])), (indices, index)]
    inner = index[axis : axis + indices.rank]
    return [(data, (*index[:axis], _UNKNOWN, *index[axis + indices.rank :])), (indices, inner)]


def iteration(shape: Sequence[DimLike], prefix: str) -> tuple[Shape, dict[str, dims.Range]]:
    """One variable per axis (0 where the extent is 1) and their ranges. A dot keeps their names apart from those of extents."""
    index: list[DimLike] = []
    ranges: dict[str, dims.Range] = {}
    for axis, extent in enumerate(shape):
        name = f"{prefix}.{axis}"
        index.append(0 if extent == 1 else dims.symbol(name))
        if extent != 1:
            ranges[name] = dims.Range(0, extent - 1)
    return tuple(index), ranges
