"""ONNX operators that read and write at indices, or keep elements that a condition picks."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import I64
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.onnx_tensor import as_bool
from tcompile.ir.terms import Term, join

_COMBINERS = {"none": "set", "add": "add", "mul": "mul", "min": "min", "max": "max"}


def wrapped(ctx: OpContext, indices: Value, extent: DimLike) -> Value:
    """Indices with negative ones counted from the end of an axis."""
    constant = ctx.builder.constant_of(indices)
    if indices.dtype.kind == "u" or (constant is not None and not (constant < 0).any()):
        return indices
    index = Term(ctx.builder, indices)
    return (index < 0).where(index + extent, index).value


@onnx_op("Gather")
def import_gather(ctx: OpContext) -> Item:
    """Slices of an axis, in the order of the indices; one known slice needs no gather."""
    x, indices, b = ctx.input(0), ctx.input(1), ctx.builder
    axis = ctx.axis(ctx.attr("axis"), x.rank)
    extent = x.shape[axis]
    index = ctx.known(1) if indices.rank == 0 else None
    if isinstance(index, int):
        index = index + extent if index < 0 else index
        if isinstance(index, int) and isinstance(extent, int) and not 0 <= index < extent:
            ctx.invalid(f"index {index} is outside of axis {axis} of {x.type}")
        return Term(b, x).at(axis, index).value
    if index is not None and dims.nonnegative(index, b.symbols) and dims.nonnegative(extent - 1 - index, b.symbols):
        return Term(b, x).at(axis, index).value
    return b.emit("gather", x, wrapped(ctx, indices, extent), axis=axis)


@onnx_op("GatherElements", since=11)
def import_gather_elements(ctx: OpContext) -> Item:
    """One element per index, along an axis."""
    x = ctx.input(0)
    axis = ctx.axis(ctx.attr("axis"), x.rank)
    return ctx.builder.emit("gather_elements", x, wrapped(ctx, ctx.input(1), x.shape[axis]), axis=axis)


@onnx_op("GatherND", since=11)
def import_gather_nd(ctx: OpContext) -> Item:
    """The last axis of the indices addresses the axes of the data that follow the batch axes."""
    x, indices = ctx.input(0), ctx.input(1)
    batch = ctx.attr("batch_dims", 0)
    return ctx.builder.emit("gather_nd", x, _wrapped_rows(ctx, indices, x.shape[batch:]), batch=batch)


def _wrapped_rows(ctx: OpContext, indices: Value, extents: tuple[DimLike, ...]) -> Value:
    """As ``wrapped``, for tuples of indices along the last axis."""
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or depth > len(extents):
        ctx.invalid(f"indices of the type {indices.type} do not address {len(extents)} axes")
    b = ctx.builder
    constant = b.constant_of(indices)
    if constant is not None and not (constant < 0).any():
        return indices
    index = Term(b, indices)
    return (index < 0).where(index + b.dim(extents[:depth], indices.dtype), index).value


def _combiner(ctx: OpContext) -> str:
    name = ctx.attr("reduction", "none")
    if name not in _COMBINERS:
        ctx.invalid(f"the reduction {name!r} is not one of {', '.join(_COMBINERS)}")
    return _COMBINERS[name]


@onnx_op("ScatterElements", "Scatter", since=9)
def import_scatter_elements(ctx: OpContext) -> Item:
    """A copy of the data with elements replaced, or combined, along an axis."""
    x, b = ctx.input(0), ctx.builder
    axis = ctx.axis(ctx.attr("axis", 0), x.rank)
    indices = wrapped(ctx, ctx.input(1), x.shape[axis])
    return b.emit("scatter_elements", x, indices, ctx.input(2), axis=axis, combiner=_combiner(ctx))


@onnx_op("ScatterND", since=11)
def import_scatter_nd(ctx: OpContext) -> Item:
    """A copy of the data with slices replaced, or combined."""
    x, b = ctx.input(0), ctx.builder
    indices = _wrapped_rows(ctx, ctx.input(1), x.shape)
    return b.emit("scatter_nd", x, indices, ctx.input(2), combiner=_combiner(ctx))


@onnx_op("TensorScatter", since=24)
def import_tensor_scatter(ctx: OpContext) -> Item:
    """A cache with an update written from ``write_indices[batch]`` on along an axis; circular wraps around."""
    b = ctx.builder
    cache, update = ctx.input(0), Term(b, ctx.input(1))
    axis = ctx.axis(ctx.attr("axis"), cache.rank)
    place = Term(b, b.iota(update.shape, axis))
    if ctx.has(2):
        place = place + Term(b, ctx.input(2)).convert(I64).reshape(cache.shape[0], *[1] * (cache.rank - 1))
    if ctx.attr("mode", "linear") == "circular":
        place = place % cache.shape[axis]
    return b.emit("scatter_elements", cache, place.value, update.value, axis=axis, combiner="set")


def selected(ctx: OpContext, mask: Value, hint: str) -> Value:
    """The i64 indices of a bool vector's true elements; their number becomes a symbol."""
    b = ctx.builder
    indices, count = b.emit_all("compact", (mask,))
    return b.slice_axis(indices, 0, 0, b.bind_dim(count, hint, 0, mask.shape[0]))


@onnx_op("NonZero", since=9)
def import_non_zero(ctx: OpContext) -> Item:
    """[rank, count]: the coordinates of non-zero elements, in row-major order."""
    x, b = ctx.input(0), ctx.builder
    flat = Term(b, selected(ctx, b.reshape(as_bool(b, x), (x.type.size,)), "nonzero"))
    if not x.rank:
        return b.broadcast_to(b.constant(np.zeros((0, 1), np.int64)), (0, *flat.shape))  # ONNX: no row for a scalar
    rows = []
    for k, extent in enumerate(x.shape):
        inner = dims.product(x.shape[k + 1 :])
        row = flat if inner == 1 else flat.map("div", inner)
        rows.append((row % extent if k else row).expand(0))
    return join(rows, 0).value


@onnx_op("Compress", since=9)
def import_compress(ctx: OpContext) -> Item:
    """The slices of an axis (of the flattened input without one) whose condition is true; a short condition ends with false."""
    x, condition, b = ctx.input(0), ctx.input(1), ctx.builder
    if not ctx.has_attr("axis"):
        x, axis = b.reshape(x, (x.type.size,)), 0
    else:
        axis = ctx.axis(ctx.attr("axis"), x.rank)
    return b.emit("gather", x, selected(ctx, condition, "kept"), axis=axis)
