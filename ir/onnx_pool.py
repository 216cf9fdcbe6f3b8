"""ONNX pooling: MaxPool, AveragePool, LpPool, their global forms, MaxUnpool and MaxRoiPool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_conv import Window, read_window
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, arange, as_term, expand, full, number, where


@dataclass(frozen=True)
class Pool:
    """A window over x [N, C, ...] and the extents it gives; ``tail`` is the pad that only ceil_mode adds, per axis."""

    window: Window
    places: tuple[DimLike, ...]
    tail: tuple[DimLike, ...]

    @property
    def high(self) -> tuple[DimLike, ...]:
        """The pads behind the data, the tail included."""
        return tuple(p + t for p, t in zip(self.window.high, self.tail, strict=True))


def read_pool(ctx: OpContext, x: Value) -> Pool:
    """Window attributes of a pooling node; a window that would start in the pads behind the data is dropped (opset 19)."""
    extents = x.shape[2:]
    window = read_window(ctx, extents, ctx.attr("kernel_shape"))
    if not ctx.attr("ceil_mode", 0) or window.same:
        return _floor_pool(window, extents)
    places, tail = [], []
    for extent, low, high, stride, reach in zip(extents, window.low, window.high, window.strides, window.reach, strict=True):
        count = dims.ceildiv(extent + low + high - reach, stride) + 1
        count = dims.minimum(count, dims.floordiv(extent + low - 1, stride) + 1)
        places.append(count)
        tail.append(dims.maximum((count - 1) * stride + reach - (extent + low + high), 0))
    return Pool(window, tuple(places), tuple(tail))


def _floor_pool(window: Window, extents: Sequence[DimLike]) -> Pool:
    places = tuple(
        dims.floordiv(extent + low + high - reach, stride) + 1
        for extent, low, high, stride, reach in zip(extents, window.low, window.high, window.strides, window.reach, strict=True)
    )
    return Pool(window, places, (0,) * len(places))


def reduce_pool(b: Builder, fn: str, x: Value, pool: Pool) -> Value:
    """The reduction of every window of x [N, C, ...]; pads are the identity of ``fn``."""
    window = pool.window
    y = b.emit(
        "reduce_window", x, fn=fn, window=(1, 1, *window.kernel), strides=(1, 1, *window.strides),
        dilation=(1, 1, *window.dilations), low=(0, 0, *window.low), high=(0, 0, *pool.high),
    )  # fmt: skip
    return b.slice(y, (0,) * y.rank, (*x.shape[:2], *pool.places))


@onnx_op("MaxPool")
def max_pool(ctx: OpContext) -> Value | tuple[Value, Value]:
    """MaxPool (opset 1, 8, 10, 11, 12, 22) with the optional flat Indices of the maxima."""
    x = ctx.input(0)
    pool = read_pool(ctx, x)
    if not ctx.wants(1):
        return reduce_pool(ctx.builder, "max", x, pool)
    return _max_with_indices(ctx, Term(ctx.builder, x), pool)


def _max_with_indices(ctx: OpContext, x: Term, pool: Pool) -> tuple[Value, Value]:
    """Gathers the taps of every window into a last axis, whose arg-maximum tells the position."""
    b, extents = x.b, x.shape[2:]
    spots, inside = _window_positions(b, extents, pool)
    count, places = dims.product(pool.window.kernel), dims.product(pool.places)
    flat = x.reshape(*x.shape[:2], dims.product(extents))
    taps = flat.take(spots.value, 2).reshape(*x.shape[:2], places, count)
    taps = inside.where(taps, lowest(x))
    best = Term(b, b.emit("arg_reduce", taps.value, fn="max", axis=3, last=False)).expand(3)
    y = taps.take_along(best, 3).reshape(*x.shape[:2], *pool.places)
    spots = spots.reshape(places, count)
    at = spots.broadcast(*x.shape[:2], places, count).take_along(best, 3).reshape(*x.shape[:2], places)
    if ctx.attr("storage_order", 0):
        at = _column_major(at, extents)
    plane = Term(b, b.iota((x.shape[0] * x.shape[1],))).reshape(*x.shape[:2], 1)
    at = at + plane * dims.product(extents)
    return y.value, at.reshape(*x.shape[:2], *pool.places).value


def lowest(x: Term) -> float:
    """The identity of max in a term's element type."""
    return -np.inf if x.dtype.is_float else int(np.iinfo(x.dtype.numpy).min)


def _window_positions(b: Builder, extents: Sequence[DimLike], pool: Pool) -> tuple[Term, Term]:
    """Flat spatial position of each (place, tap), 0 where it is outside: [places * taps]; whether it is inside: [places, taps]."""
    window, rank = pool.window, len(extents)
    flat, inside = None, None
    for k in range(rank):
        place = expand(arange(b, pool.places[k]), *(j for j in range(2 * rank) if j != k))
        tap = expand(arange(b, window.kernel[k]), *(j for j in range(2 * rank) if j != rank + k))
        along = as_term(b, place * window.strides[k] + tap * window.dilations[k] - window.low[k])
        ok = (along >= 0) & (along < extents[k])
        along = ok.where(along, 0)
        flat = along if flat is None else flat * extents[k] + along
        inside = ok if inside is None else inside & ok
    places, taps = dims.product(pool.places), dims.product(window.kernel)
    return flat.reshape(places * taps), inside.reshape(places, taps)


def _column_major(at: Term, extents: Sequence[DimLike]) -> Term:
    """Row-major flat positions as column-major ones (storage_order 1)."""
    total, rest, stride = None, at, dims.product(extents)
    for k in reversed(range(len(extents))):
        stride = dims.product(extents[:k])
        digit = rest % extents[k]
        rest = rest // extents[k]
        total = digit * stride if total is None else total + digit * stride
    return total


@onnx_op("AveragePool")
def average_pool(ctx: OpContext) -> Value:
    """AveragePool (opset 1, 7, 10, 11, 19, 22): the sum of each window over the number of its elements."""
    return average_windows(ctx, Term(ctx.builder, ctx.input(0))).value


def average_windows(ctx: OpContext, x: Term) -> Term:
    """The mean of each window of x, by the node's attributes."""
    pool = read_pool(ctx, x.value)
    total = Term(x.b, reduce_pool(x.b, "add", x.value, pool))
    return total / _counts(x.b, x.value, pool, bool(ctx.attr("count_include_pad", 0)))


def _counts(b: Builder, x: Value, pool: Pool, include_pad: bool) -> Term:
    """Number of elements of each window, shaped to broadcast over [N, C, ...]; separable over the axes."""
    rank = len(pool.places)
    total = number(b, 1, x.dtype)
    for k in range(rank):
        counts = as_term(b, _counts_along(b, pool, k, x.shape[2 + k], include_pad), x.dtype)
        total = total * counts.reshape(*(counts.shape[0] if j == k else 1 for j in range(rank)))
    return total


def _counts_along(b: Builder, pool: Pool, k: int, extent: DimLike, include_pad: bool) -> Term | np.ndarray:
    """Number of taps inside the data (or data and pads) for each place along an axis."""
    window = pool.window
    low, high = (window.low[k], window.high[k]) if include_pad else (0, 0)
    if (include_pad and pool.tail[k] == 0) or window.low[k] == window.high[k] == pool.tail[k] == 0:
        return np.array([window.kernel[k]])
    place = expand(arange(b, pool.places[k]), 1) * window.strides[k]
    along = place + expand(arange(b, window.kernel[k]), 0) * window.dilations[k] - window.low[k]
    if not isinstance(along, Term) and all(isinstance(end, int) for end in (extent, low, high)):
        return ((along >= -low) & (along < extent + high)).sum(1)
    along = as_term(b, along)
    inside = (along >= 0 - low) & (along < extent + high)
    return where(inside, full(b, (), 1, dtypes.I64), 0).sum(1)


@onnx_op("LpPool")
def lp_pool(ctx: OpContext) -> Value:
    """LpPool (opset 1, 2, 11, 18, 22): the p-norm of each window."""
    b, x = ctx.builder, Term(ctx.builder, ctx.input(0))
    return _norm(ctx, x, lambda powers: Term(b, reduce_pool(b, "add", powers.value, read_pool(ctx, x.value))))


@onnx_op("GlobalLpPool")
def global_lp_pool(ctx: OpContext) -> Value:
    """GlobalLpPool (opset 1, 2, 22)."""
    x = Term(ctx.builder, ctx.input(0))
    return _norm(ctx, x, lambda powers: powers.sum(*range(2, x.rank), keepdims=True))


def _norm(ctx: OpContext, x: Term, total) -> Value:
    p = ctx.attr("p", 2)
    if p == 2:
        return total(x * x).map("sqrt").value
    size = x.map("abs")
    return (total(size) if p == 1 else total(size**p) ** (1.0 / p)).value


@onnx_op("GlobalAveragePool")
def global_average_pool(ctx: OpContext) -> Value:
    """GlobalAveragePool (opset 1, 22)."""
    x = Term(ctx.builder, ctx.input(0))
    return x.mean(*range(2, x.rank), keepdims=True).value


@onnx_op("GlobalMaxPool")
def global_max_pool(ctx: OpContext) -> Value:
    """GlobalMaxPool (opset 1, 22)."""
    x = Term(ctx.builder, ctx.input(0))
    return x.max(*range(2, x.rank), keepdims=True).value


@onnx_op("MaxUnpool", since=9)
def max_unpool(ctx: OpContext) -> Value:
    """MaxUnpool (opset 9, 11, 22): values put back to the flat positions that MaxPool returned; zeros elsewhere.

    The positions count in the tensor without output_shape's growth, as MaxPool made them.
    """
    b = ctx.builder
    x, indices = ctx.input(0), ctx.input(1)
    rank = x.rank - 2
    kernel = ctx.attr("kernel_shape")
    strides = tuple(ctx.attr("strides", None) or (1,) * rank)
    pads = tuple(ctx.attr("pads", None) or (0,) * (2 * rank))
    places = [(e - 1) * s + k - p - q for e, s, k, p, q in zip(x.shape[2:], strides, kernel, pads[:rank], pads[rank:], strict=True)]
    inferred = (*x.shape[:2], *places)
    wanted = ctx.shape_operand(2) if ctx.has(2) else inferred
    size = dims.product(inferred)
    target = full(b, (size,), 0, x.dtype)
    updates = b.reshape(x, (dims.product(x.shape),))
    flat = b.reshape(indices, (dims.product(x.shape), 1))
    y = b.emit("scatter_nd", target.value, flat, updates, combiner="set")
    y = b.reshape(y, inferred)
    if tuple(wanted) == inferred:
        return y
    high = tuple(w - i for w, i in zip(wanted, inferred, strict=True))
    return b.emit("pad", y, number(b, 0, x.dtype).value, low=(0,) * y.rank, high=high, mode="constant")


@onnx_op("MaxRoiPool")
def max_roi_pool(ctx: OpContext) -> Value:
    """MaxRoiPool (opset 1, 22): the maximum over each cell of a grid laid over each region [batch, x1, y1, x2, y2].

    The cell borders are data, so each cell is a masked maximum over a whole axis, first the columns, then the rows.
    """
    b = ctx.builder
    x, rois = Term(b, ctx.input(0)), Term(b, ctx.input(1))
    rows, columns = ctx.attr("pooled_shape")
    scaled = rois * ctx.attr("spatial_scale", 1.0)
    begin_x, begin_y, end_x, end_y = ((scaled.at(1, k) + 0.5).map("floor") for k in range(1, 5))
    maps = x.take(rois.at(1, 0).convert(dtypes.I64), 0)  # [R, C, H, W]
    inside_w = _cells(begin_x, end_x, columns, x.shape[3])  # [R, columns, W]
    inside_h = _cells(begin_y, end_y, rows, x.shape[2])  # [R, rows, H]
    narrow = inside_w.expand(1, 2).where(maps.expand(3), lowest(x)).max(4)  # [R, C, H, columns]
    y = inside_h.expand(1, 4).where(narrow.expand(2), lowest(x)).max(3)  # [R, C, rows, columns]
    return (y > lowest(x)).where(y, 0.0).value


def _cells(begin: Term, end: Term, count: int, extent: DimLike) -> Term:
    """Whether each position of an axis lies in each cell of each region: bool [R, count, extent]."""
    size = (end - begin + 1).map("max", 1.0) / count
    cell = as_term(begin.b, arange(begin.b, count), begin.dtype)
    first = ((cell * size.expand(1)).map("floor") + begin.expand(1)).map("max", 0).map("min", extent)
    last = (((cell + 1) * size.expand(1)).map("ceil") + begin.expand(1)).map("max", 0).map("min", extent)
    place = as_term(begin.b, arange(begin.b, extent), begin.dtype)
    return (place >= first.expand(2)) & (place < last.expand(2))
