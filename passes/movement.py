"""Algebra of data movement; part of ``passes/canonicalise.py``.

Movements change no element, so every rule here is exact. Canonical forms: a broadcast repeats missing axes only (where
extents are known), a movement of a movement of the same kind is one movement, what moves nothing is a reshape or nothing.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_reduction import identity
from tcompile.passes.rewrite import Context, Patch, patch, rule

# reshape ----------------------------------------------------------------------------------------------------


@rule("reshape")
def reshape_chain(node: Node, context: Context) -> Patch | None:
    x = node.inputs[0]
    if x.shape == node.output.shape:  # reshape(x, shape of x) == x
        return patch("reshape to the same shape", None, x)
    inner = context.producer(x, "reshape")
    if inner is None:
        return None
    b = context.build(node)  # reshape(reshape(x)) == reshape(x)
    return patch("reshape of a reshape", b, b.reshape(inner.inputs[0], node.output.shape))


@rule("reshape")
def reshape_of_splat(node: Node, context: Context) -> Patch | None:
    # reshape(broadcast(scalar)) == broadcast(scalar)
    inner = context.producer(node.inputs[0], "broadcast")
    if inner is None or inner.inputs[0].rank:
        return None
    b = context.build(node)
    return patch("reshape of a splat", b, b.broadcast_to(inner.inputs[0], node.output.shape))


# transpose --------------------------------------------------------------------------------------------------


@rule("transpose")
def transpose_chain(node: Node, context: Context) -> Patch | None:
    x, perm = node.inputs[0], node.attrs["perm"]
    if perm == tuple(range(len(perm))):  # transpose(x, 0 1 2 ...) == x
        return patch("transpose that moves nothing", None, x)
    inner = context.producer(x, "transpose")
    if inner is None:
        return None
    b = context.build(node)  # out axis k is axis inner[outer[k]] of x
    return patch("transpose of a transpose", b, b.transpose(inner.inputs[0], [inner.attrs["perm"][axis] for axis in perm]))


@rule("transpose")
def transpose_of_units(node: Node, context: Context) -> Patch | None:
    # axes of extent 1 may move freely: where the others keep their order, the row-major order stays
    x, perm = node.inputs[0], node.attrs["perm"]
    moved = [axis for axis in perm if x.shape[axis] != 1]
    if moved != sorted(moved):
        return None
    b = context.build(node)
    return patch("transpose of unit axes", b, b.reshape(x, node.output.shape))


@rule("transpose")
def transpose_of_broadcast(node: Node, context: Context) -> Patch | None:
    # transpose(broadcast(x)) == broadcast(x) where x's axes keep their order
    inner = context.producer(node.inputs[0], "broadcast")
    if inner is None:
        return None
    axes = tuple(node.attrs["perm"].index(axis) for axis in inner.attrs["axes"])
    if axes != tuple(sorted(axes)):
        return None
    b = context.build(node)
    return patch("transpose of a broadcast", b, b.emit("broadcast", inner.inputs[0], shape=node.output.shape, axes=axes))


# broadcast --------------------------------------------------------------------------------------------------


@rule("broadcast")
def broadcast_chain(node: Node, context: Context) -> Patch | None:
    x, axes = node.inputs[0], node.attrs["axes"]
    if x.shape == node.output.shape:  # every axis maps to itself
        return patch("broadcast to the same shape", None, x)
    inner = context.producer(x, "broadcast")
    if inner is None:
        return None
    b = context.build(node)  # x's axis k goes to inner.axes[k], and that to axes[inner.axes[k]]
    composed = tuple(axes[axis] for axis in inner.attrs["axes"])
    return patch("broadcast of a broadcast", b, b.emit("broadcast", inner.inputs[0], shape=node.output.shape, axes=composed))


@rule("broadcast")
def squeeze_broadcast(node: Node, context: Context) -> Patch | None:
    # an operand axis of extent 1 that becomes longer says nothing that a missing one does not
    x, axes, shape = node.inputs[0], node.attrs["axes"], node.output.shape
    kept = [k for k, extent in enumerate(x.shape) if extent != 1 or shape[axes[k]] == 1]
    if len(kept) == x.rank:
        return None
    b = context.build(node)
    squeezed = b.reshape(x, [x.shape[k] for k in kept])
    return patch("broadcast of unit axes", b, b.emit("broadcast", squeezed, shape=shape, axes=tuple(axes[k] for k in kept)))


@rule("broadcast")
def broadcast_that_reshapes(node: Node, context: Context) -> Patch | None:
    # a broadcast that only adds axes of extent 1 is a reshape; that of a scalar stays, as all splats are
    x, axes = node.inputs[0], node.attrs["axes"]
    if not x.rank:
        return None
    added = [extent for axis, extent in enumerate(node.output.shape) if axis not in axes]
    if any(extent != 1 for extent in added) or tuple(node.output.shape[axis] for axis in axes) != x.shape:
        return None
    b = context.build(node)
    return patch("broadcast that only adds unit axes", b, b.reshape(x, node.output.shape))


# slice ------------------------------------------------------------------------------------------------------


@rule("slice")
def slice_chain(node: Node, context: Context) -> Patch | None:
    x, start, size, step = node.inputs[0], node.attrs["start"], node.attrs["size"], node.attrs["step"]
    if size == x.shape and all(s == 0 for s in start) and all(k == 1 for k in step):
        return patch("slice of everything", None, x)
    inner = context.producer(x, "slice")
    if inner is None:
        return None
    b = context.build(node)  # element i is x[a + (start + i * step) * k]
    starts = [a + s * k for a, k, s in zip(inner.attrs["start"], inner.attrs["step"], start, strict=True)]
    steps = [k * s for k, s in zip(inner.attrs["step"], step, strict=True)]
    return patch("slice of a slice", b, b.slice(inner.inputs[0], starts, size, steps))


@rule("slice")
def slice_step(node: Node, context: Context) -> Patch | None:
    # the step of one element does not matter
    size, step = node.attrs["size"], node.attrs["step"]
    wanted = tuple(1 if extent == 1 or extent == 0 else k for extent, k in zip(size, step, strict=True))
    if wanted == step:
        return None
    b = context.build(node)
    return patch("step of one element", b, b.emit("slice", node.inputs[0], start=node.attrs["start"], size=size, step=wanted))


@rule("slice")
def slice_of_concat(node: Node, context: Context) -> Patch | None:
    # a slice that lies inside one operand of a concat is a slice of that operand
    inner = context.producer(node.inputs[0], "concat")
    if inner is None:
        return None
    axis, start = inner.attrs["axis"], list(node.attrs["start"])
    size, step = node.attrs["size"][axis], node.attrs["step"][axis]
    first = 0
    for value in inner.inputs:
        extent = value.shape[axis]
        low = start[axis] - first
        span = (low, low + (size - 1) * step)
        if size != 0 and all(dims.nonnegative(at, context.ranges) and dims.nonnegative(extent - 1 - at, context.ranges) for at in span):
            start[axis] = low
            b = context.build(node)
            return patch("slice inside one operand", b, b.slice(value, start, node.attrs["size"], node.attrs["step"]))
        first = first + extent
    return None


# concat -----------------------------------------------------------------------------------------------------


@rule("concat")
def concat_flat(node: Node, context: Context) -> Patch | None:
    """Nested and empty operands go; one operand is itself."""
    axis, operands = node.attrs["axis"], []
    for value in node.inputs:
        inner = context.producer(value, "concat")
        nested = inner is not None and inner.attrs["axis"] == axis and context.used_once(value)
        operands += inner.inputs if nested else [value]  # concat(concat(a, b), c) == concat(a, b, c)
    kept = [value for value in operands if value.shape[axis] != 0] or operands[:1]  # an empty operand adds nothing
    if len(kept) == 1 and kept[0].type == node.output.type:
        return patch("concat of one", None, kept[0])
    if tuple(kept) == node.inputs:
        return None
    b = context.build(node)
    return _same_type(node, "flat concat", b, b.emit("concat", *kept, axis=axis))


@rule("concat")
def concat_of_slices(node: Node, context: Context) -> Patch | None:
    # slices of one tensor that touch, joined again: concat(x[a:b], x[b:c]) == x[a:c]
    axis = node.attrs["axis"]
    for at, (left, right) in enumerate(zip(node.inputs, node.inputs[1:], strict=False)):
        joined = _touching(context.producer(left, "slice"), context.producer(right, "slice"), axis)
        if joined is None:
            continue
        b = context.build(node)
        whole = b.slice(*joined)
        rest = (*node.inputs[:at], whole, *node.inputs[at + 2 :])
        return _same_type(node, "concat of touching slices", b, b.emit("concat", *rest, axis=axis))
    return None


def _touching(left: Node | None, right: Node | None, axis: int) -> tuple | None:
    """The arguments of the slice that covers both, where right begins at the end of left and nothing else differs."""
    if left is None or right is None or left.inputs != right.inputs:
        return None
    a, c = left.attrs, right.attrs
    if a["step"] != c["step"] or a["step"][axis] != 1 or a["start"][axis] + a["size"][axis] != c["start"][axis]:
        return None
    others = [k for k in range(len(a["step"])) if k != axis]
    if any(a[name][k] != c[name][k] for name in ("start", "size") for k in others):
        return None
    size = tuple(n + m if k == axis else n for k, (n, m) in enumerate(zip(a["size"], c["size"], strict=True)))
    return left.inputs[0], a["start"], size, a["step"]


# pad, gather, reduce ----------------------------------------------------------------------------------------


@rule("pad")
def pad_nothing(node: Node, context: Context) -> Patch | None:
    if node.output.shape == node.inputs[0].shape and all(n == 0 for n in (*node.attrs["low"], *node.attrs["high"])):
        return patch("pad by nothing", None, node.inputs[0])
    return None


@rule("pad")
def pad_chain(node: Node, context: Context) -> Patch | None:
    # pad(pad(x, c), c) == pad(x, c) by both amounts
    inner = context.producer(node.inputs[0], "pad")
    if inner is None or {node.attrs["mode"], inner.attrs["mode"]} != {"constant"}:
        return None
    fills = [context.scalar(pad.inputs[1]) for pad in (node, inner)]
    if inner.inputs[1] is not node.inputs[1] and (None in fills or fills[0] != fills[1]):
        return None
    b = context.build(node)
    low, high = (tuple(x + y for x, y in zip(node.attrs[k], inner.attrs[k], strict=True)) for k in ("low", "high"))
    return patch("pad of a pad", b, b.emit("pad", inner.inputs[0], inner.inputs[1], low=low, high=high, mode="constant"))


@rule("gather")
def gather_of_run(node: Node, context: Context) -> Patch | None:
    """A gather of constant, equally spaced indices is a slice."""
    indices = context.constant(node.inputs[1])
    x, axis = node.inputs[0], node.attrs["axis"]
    extent = x.shape[axis]
    if indices is None or indices.size == 0 or indices.ndim > 1 or not isinstance(extent, int):
        return None
    flat = indices.reshape(-1).astype(np.int64)
    steps = np.unique(np.diff(flat)) if flat.size > 1 else np.ones(1, np.int64)
    if steps.size != 1 or steps[0] == 0 or flat.min() < 0 or flat.max() >= extent:
        return None
    b = context.build(node)
    part = b.slice_axis(x, axis, int(flat[0]), flat.size, int(steps[0]))
    return patch("gather of a run", b, b.reshape(part, node.output.shape))


@rule("reduce")
def reduce_units(node: Node, context: Context) -> Patch | None:
    """The fold of one element is the element (for add, of -0.0 too)."""
    x, axes = node.inputs[0], node.attrs["axes"]
    left = tuple(axis for axis in axes if x.shape[axis] != 1)
    if left == axes and axes:
        return None
    b = context.build(node)
    if not left:
        return patch("reduce over unit axes", b, b.reshape(x, node.output.shape))
    kept = [axis for axis in range(x.rank) if axis not in axes or axis in left]
    squeezed = b.reshape(x, [x.shape[axis] for axis in kept])
    return patch("reduce over unit axes", b, b.emit("reduce", squeezed, fn=node.attrs["fn"], axes=tuple(map(kept.index, left))))


@rule("reduce")
def reduce_chain(node: Node, context: Context) -> Patch | None:
    # reduce(reduce(x, a), b) == reduce(x, a and b); narrow floats round once instead of twice
    inner = context.producer(node.inputs[0], "reduce")
    if inner is None or inner.attrs["fn"] != node.attrs["fn"] or not context.used_once(inner.output):
        return None
    x = inner.inputs[0]
    left = [axis for axis in range(x.rank) if axis not in inner.attrs["axes"]]
    axes = tuple(sorted((*inner.attrs["axes"], *(left[axis] for axis in node.attrs["axes"]))))
    b = context.build(node)
    return patch("reduce of a reduce", b, b.emit("reduce", x, fn=node.attrs["fn"], axes=axes))


def _pads_into(node: Node, context: Context, fill: float | int, free: range) -> Node | None:
    """The constant pad that makes a node's first operand, where it pads ``free`` axes only, with ``fill``."""
    inner = context.producer(node.inputs[0], "pad")
    if inner is None or inner.attrs["mode"] != "constant" or context.scalar(inner.inputs[1]) != fill:
        return None
    amounts = zip(inner.attrs["low"], inner.attrs["high"], strict=True)
    return inner if all(axis in free or pair == (0, 0) for axis, pair in enumerate(amounts)) else None


@rule("conv")
def pad_into_conv(node: Node, context: Context) -> Patch | None:
    # a convolution's own pads are zeros too
    x = node.inputs[0]
    inner = _pads_into(node, context, 0, range(2, x.rank))
    if inner is None or set(node.attrs["lhs_dilation"]) != {1}:
        return None
    b = context.build(node)
    pads = {k: tuple(x + y for x, y in zip(node.attrs[k], inner.attrs[k][2:], strict=True)) for k in ("low", "high")}
    return _same_type(node, "pad into convolution", b, b.emit("conv", inner.inputs[0], node.inputs[1], **{**node.attrs, **pads}))


@rule("reduce_window")
def pad_into_window(node: Node, context: Context) -> Patch | None:
    # a window's own pads are the identity of its fold
    inner = _pads_into(node, context, identity(node.attrs["fn"], node.output.dtype), range(node.inputs[0].rank))
    if inner is None:
        return None
    b = context.build(node)
    pads = {k: tuple(x + y for x, y in zip(node.attrs[k], inner.attrs[k], strict=True)) for k in ("low", "high")}
    return _same_type(node, "pad into window", b, b.emit("reduce_window", inner.inputs[0], **{**node.attrs, **pads}))


def _same_type(node: Node, reason: str, b: Builder, value: Value) -> Patch | None:
    """The patch, unless symbolic extents come out written in another way."""
    return patch(reason, b, value) if value.type == node.output.type else None


RULES = (
    reshape_chain,
    reshape_of_splat,
    transpose_chain,
    transpose_of_units,
    transpose_of_broadcast,
    broadcast_chain,
    squeeze_broadcast,
    broadcast_that_reshapes,
    slice_chain,
    slice_step,
    slice_of_concat,
    concat_flat,
    concat_of_slices,
    pad_nothing,
    pad_chain,
    gather_of_run,
    reduce_units,
    reduce_chain,
    pad_into_conv,
    pad_into_window,
)
